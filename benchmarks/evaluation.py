"""evaluate.py beside torch-fidelity: the same folders of pictures, the same Inception weights, two commands in turn.

    pip install -r requirements.lock -r requirements-bench.txt
    python benchmarks/evaluation.py --num=10000
    python benchmarks/evaluation.py --num=10000 --sides=jax            # where PyTorch is not installed

Pictures and weights are made up: two folders of PNG, of which one has another palette, so that their distance is not
small, and normally distributed weights. A time is that of a whole command, from its start to its numbers: reading and
decoding both folders, resizing, Inception, FID, KID, IS, precision and recall (here also sFID, density, coverage and
nearest neighbours). It includes the compilation, which a second evaluation finds in its cache. Above 1 in
"torch / jax": JAX is faster. `difference`: between the two sides' numbers, relative.
"""

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common
from ldm_jax.evaluation import metrics

SIDES = ("jax", "torch")
# torch-fidelity's names of our metrics.
METRICS = {
    "FID": "frechet_inception_distance",
    "KID": "kernel_inception_distance_mean",
    "IS": "inception_score_mean",
    "precision": "precision",
    "recall": "recall",
}
COLUMNS = {
    "batch": "batch", "jax_s": "JAX s", "torch_s": "torch-fidelity s", "jax_rate": "JAX images/s",
    "torch_rate": "torch-fidelity images/s", "torch / jax": "torch / jax", "jax_FID": "FID", "difference": "difference",
}  # fmt: skip
NOISE = 24.0  # of 255, on the made-up pictures


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False, batch="64", repeats=1)
    p.add_argument("--num", type=int, default=10_000, help="pictures that are measured, default 10000")
    p.add_argument("--reference-num", type=int, default=1000, help="pictures of the reference, default 1000")
    p.add_argument("--size", type=int, default=64, help="side of a picture, default 64")
    p.add_argument("--sides", type=common.words, default=SIDES, help="default jax,torch")
    args = p.parse_args(argv)
    if unknown := set(args.sides) - set(SIDES):
        p.error(f"--sides={','.join(unknown)}: there are {', '.join(SIDES)}")
    if "torch" in args.sides:
        run("-m", "torch_fidelity.fidelity", "--help")  # what cannot start says so now, not after JAX's side
    env, rows = common.environment(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_pictures(folder / "samples", args.num, args.size, stream=0)
        save_pictures(folder / "reference", args.reference_num, args.size, stream=1)
        save_weights(folder, torch="torch" in args.sides)
        for batch in args.batch:
            for turn in range(args.repeats):
                order = args.sides if turn % 2 == 0 else args.sides[::-1]
                found = {side: common.timed(partial(RUN[side], folder, batch)) for side in order}
                rows.append(row(found, batch, args.num + args.reference_num))
                print(common.table(rows[-1:], COLUMNS), flush=True)
    print(f"\n{common.table(rows, COLUMNS)}")
    common.save(args, "evaluation", rows, env)
    return rows


def row(found: dict[str, tuple[float, dict[str, float]]], batch: int, pictures: int) -> common.Row:
    """found: {side: (seconds, metrics)}."""
    made: common.Row = {"batch": batch}
    for side, (seconds, _) in found.items():
        made |= {f"{side}_s": seconds, f"{side}_rate": pictures / seconds}
    for side, (_, numbers) in found.items():
        made |= {f"{side}_{name}": numbers[name] for name in METRICS if name in numbers}
    if len(found) == 2:
        (ours_s, ours), (theirs_s, theirs) = found["jax"], found["torch"]
        made["torch / jax"] = theirs_s / ours_s
        made["difference"] = max(abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-12) for name in METRICS)
    return made


def save_pictures(folder: Path, count: int, size: int, stream: int) -> None:
    """`save_picture` for each, on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        list(processes.map(partial(save_picture, folder, size, stream), range(count), chunksize=200))


def save_picture(folder: Path, size: int, stream: int, index: int) -> None:
    """Two soft waves of random colours, and noise; deterministic."""
    from ldm_jax.images import file_name, save_png

    y, x = np.mgrid[:size, :size][..., None] / size
    r = np.random.default_rng([stream, index])
    waves = sum(
        r.uniform(-1, 1, 3) * np.sin(2 * np.pi * (r.uniform(-3, 3) * x + r.uniform(-3, 3) * y + r.uniform()))
        for _ in range(2)
    )
    image = 128 + 40 * stream + 50 * waves + NOISE * r.standard_normal((size, size, 3))
    save_png(folder / file_name(index, ""), np.clip(image, 0, 255).astype(np.uint8))


def save_weights(folder: Path, torch: bool) -> None:
    """inception.safetensors, and inception.pth where `torch`. Filters keep the variance of what they take."""
    import jax
    from safetensors.numpy import save_file

    from ldm_jax import tree
    from ldm_jax.convert import names
    from ldm_jax.evaluation import inception
    from ldm_jax.evaluation.layers import dotted

    shape = jax.ShapeDtypeStruct((1, inception.SIZE, inception.SIZE, 3), np.float32)
    shapes = jax.eval_shape(inception.Inception().init, jax.random.key(0), shape)["params"]
    r, state = np.random.default_rng(0), {}
    for path, leaf in tree.flatten(shapes).items():
        key, shape = dotted(path), names.torch_shape(path, leaf.shape)
        if len(shape) > 1:
            state[key] = r.standard_normal(shape, np.float32) * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))
        else:
            state[key] = (np.ones if key.endswith(("var", "bn.weight")) else np.zeros)(shape, np.float32)
    save_file(state, folder / "inception.safetensors")
    if torch:
        import torch as pytorch

        pytorch.save({key: pytorch.from_numpy(value) for key, value in state.items()}, folder / "inception.pth")


def run_jax(folder: Path, batch: int) -> dict[str, float]:
    """evaluate.py as a user runs it, with nothing kept from before."""
    with tempfile.TemporaryDirectory() as out:
        run(
            str(common.ROOT / "evaluate.py"), str(folder / "samples"), f"--reference={folder / 'reference'}",
            f"--weights={folder}", f"--feature-batch={batch}", f"--out={out}", f"--cache={out}/features",
        )  # fmt: skip
        return json.loads((Path(out) / "evaluation.json").read_text())["reports"][0]["metrics"]


def run_torch(folder: Path, batch: int) -> dict[str, float]:
    """The command of torch-fidelity, on the same device; precision and recall of Inception's features as ours."""
    import jax

    smaller = min(len(list((folder / name).iterdir())) for name in ("samples", "reference"))
    text = run(
        "-m", "torch_fidelity.fidelity", "--isc", "--fid", "--kid", "--prc", "--json", "--silent", "--no-cache",
        "--input1", str(folder / "samples"), "--input2", str(folder / "reference"), "--batch-size", str(batch),
        "--feature-extractor", "inception-v3-compat",
        "--feature-extractor-weights-path", str(folder / "inception.pth"),
        "--kid-subset-size", str(min(metrics.SUBSET, smaller)),
        *(("--cpu",) if jax.default_backend() == "cpu" else ("--gpu", "0")),
    )  # fmt: skip
    found = json.loads(text[text.index("{") :])
    return {name: found[theirs] for name, theirs in METRICS.items()}


RUN = {"jax": run_jax, "torch": run_torch}


def run(*arguments: str) -> str:
    """What a command of this Python prints. Ends with its errors where it fails."""
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=common.ROOT)
    if result.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {result.returncode}:\n{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    common.run(main)
