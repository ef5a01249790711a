"""The whole system in minutes on a CPU: first stage, latent diffusion, samples, on shapes drawn on the fly.

    python scripts/demo.py --out=runs/demo

Runs the same three commands that a user would type and copies the pictures to look at into --out. Interrupted,
it goes on where it stopped.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser
from ldm_jax.training import stopping

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    print("\n$ python " + " ".join(command), flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if code == stopping.AGAIN:
        print("stopped; the same command goes on from there")
        sys.exit(code)
    if code:
        sys.exit(f"failed with exit code {code}: python {' '.join(command)}")


def newest(folder: Path, name: str) -> Path:
    return sorted(folder.glob(f"{name}_*.png"))[-1]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", default="runs/demo", help="where everything is written (default runs/demo)")
    out = Path(parser.parse_args().out).absolute()
    began = time.perf_counter()
    first_stage, ldm = out / "first_stage", out / "ldm"
    run("train.py", "--config=configs/quickstart_first_stage.py", f"--workdir={first_stage}")
    run(
        "train.py", "--config=configs/quickstart_ldm.py", f"--workdir={ldm}",
        f"--config.first_stage.checkpoint={first_stage}",
    )  # fmt: skip
    run("sample.py", f"--workdir={ldm}", "--num=64", "--batch=64", "--steps=100", "--eta=1", f"--out={out / 'samples'}")
    shutil.copy(newest(first_stage / "pictures", "reconstructions"), out / "reconstructions.png")
    shutil.copy(out / "samples" / "grid.png", out / "samples.png")
    print(f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes. Look at:")
    print(f"  {out / 'reconstructions.png'}  (left image, right its reconstruction)")
    print(f"  {out / 'samples.png'}  (64 images that were never drawn)")


if __name__ == "__main__":
    main()
