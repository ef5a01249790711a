"""The whole system in minutes on a CPU: first stage, latent diffusion, samples of asked classes, on shapes drawn on
the fly.

    python scripts/demo.py --out=runs/demo

Runs the commands that a user would type, draws two samples of each class and reads them back: how many show the kind
and the colour that were asked for? Interrupted, it goes on where it stopped.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser
from ldm_jax.data import shapes
from ldm_jax.training import stopping

ROOT = Path(__file__).resolve().parents[1]
PER_CLASS = 2


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


def gigaflops() -> float:
    """Of float32 products of 2048 x 2048 on this machine: what its minutes are to be compared with."""
    a = np.random.default_rng(0).random((2048, 2048), np.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


def sample(run_directory: Path, out: Path, seed: int) -> float:
    """Writes a picture of samples, a row for each kind and sample, a column for each colour. Returns the share of them
    whose largest shape has the kind and the colour of its class."""
    import ldm_jax
    from ldm_jax import process
    from ldm_jax.evaluation import scenes

    process.setup()
    pipe = ldm_jax.load(run_directory)
    colours = len(shapes.COLOURS)
    starts = [i for i in range(0, len(shapes.SIMPLE_CLASSES), colours) for _ in range(PER_CLASS)]
    labels = [label for i in starts for label in shapes.SIMPLE_CLASSES[i : i + colours]]
    images = pipe.sample(label=labels, steps=50, eta=1, guidance=4, seed=seed, batch=64)
    picture = images.grid(columns=colours)
    picture.resize((2 * picture.width, 2 * picture.height), 0).save(out)
    return scenes.share_of_classes(images, labels)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="where everything is written (default runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and sampling (default 0)")
    args = parser.parse_args()
    out = args.out.absolute()
    rate = gigaflops()
    print(f"float32 products of 2048 x 2048: {rate:.0f} GFLOP/s")
    began = time.perf_counter()
    first_stage, model = out / "first_stage", out / "class"
    run("train.py", "--config=configs/demo_first_stage.py", f"--workdir={first_stage}", f"--config.seed={args.seed}")
    run(
        "train.py", "--config=configs/demo_class.py", f"--workdir={model}",
        f"--config.first_stage.checkpoint={first_stage}", f"--config.seed={args.seed}",
    )  # fmt: skip
    shutil.copy(newest(first_stage / "pictures", "reconstructions"), out / "reconstructions.png")
    share = sample(model, out / "samples.png", args.seed)
    minutes = (time.perf_counter() - began) / 60
    record = dict(seed=args.seed, share=share, minutes=minutes, gigaflops=rate)
    (out / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nDone in {minutes:.1f} minutes, at {rate:.0f} GFLOP/s. Look at:")
    print(f"  {out / 'reconstructions.png'}  (left image, right its reconstruction)")
    print(f"  {out / 'samples.png'}  (rows: {', '.join(shapes.SIMPLE_KINDS)}; columns: {', '.join(shapes.COLOURS)})")
    print(f"make web RUN={model}   opens a page to play with it")
    print(f"{share:.0%} of the samples show the kind and the colour that were asked for")


if __name__ == "__main__":
    main()
