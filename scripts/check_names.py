"""Measures how well a text model follows names: is a sample nearest to training pictures that have the asked name?

    python scripts/get_weights.py efficientnet_lite0
    python scripts/check_names.py runs/emoji/text
    python scripts/check_names.py pretrained/emoji_text --data=datasets/emoji64 --num=200 --guidance=3

Takes a text model of a folder of captioned pictures. --num captions of the training pictures are drawn (those whose
SHA-256 are smallest: the same everywhere), and one sample is made for each. A sample counts when its caption is among
those of the 5 training pictures with the nearest EfficientNet-Lite0 features (Euclidean distance). For comparison there
is the same share of the first stage's reconstructions of the pictures that have these captions, which limits a model of
its latents. Writes names.json and names.png (for each name: true picture, its reconstruction, the sample) into --out.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ldm_jax
from ldm_jax import process
from ldm_jax.cli.options import Parser
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import features, metrics, weights
from ldm_jax.images import save_png, to_uint8

NETWORK = "efficientnet_lite0"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("workdir", type=Path, help="run directory or exported folder of a text model")
    parser.add_argument("--data", type=Path, help="folder of the captioned pictures (default: that of the training)")
    parser.add_argument("--out", type=Path, help="where names.json and names.png go (default: WORKDIR)")
    parser.add_argument("--num", type=int, default=200, help="names (default 200)")
    parser.add_argument("--nearest", type=int, default=5, help="training pictures that may have the name (default 5)")
    parser.add_argument("--batch", type=int, default=50, help="samples at a time (default 50)")
    parser.add_argument("--steps", type=int, default=50, help="steps of sampling (default 50)")
    parser.add_argument("--eta", type=float, default=1.0, help="DDIM's noise (default 1)")
    parser.add_argument("--guidance", type=float, default=3.0, help="scale (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--weights", default=weights.FOLDER, help="folder of the feature network's weights")
    args = parser.parse_args(arguments)
    for option in ("num", "nearest", "batch"):
        if getattr(args, option) < 1:
            parser.error(f"--{option}={getattr(args, option)} must be 1 at least")
    return args


def chosen(captions: list[str], number: int) -> list[int]:
    """Numbers of `number` pictures with different captions, those of the smallest SHA-256 of the caption first."""
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    names = sorted(first, key=lambda caption: hashlib.sha256(caption.encode()).digest())
    return [first[name] for name in names[:number]]


def share(found: np.ndarray, reference: np.ndarray, captions: list[str], wanted: list[int], nearest: int) -> float:
    """Of the features `found` [N,D]: share whose caption is among those of the nearest rows of `reference` [M,D]."""
    numbers, _ = metrics.nearest(found, reference, nearest)
    return float(np.mean([captions[i] in {captions[j] for j in row} for i, row in zip(wanted, numbers)]))


def training_pictures(pipe: ldm_jax.Pipeline, data: str | None) -> tuple[np.ndarray, list[str]]:
    """(pictures as training sees them, uint8 [N,H,W,3]; their captions)."""
    from ldm_jax.training import setup

    config = pipe.config.copy_and_resolve_references()
    if config.task != "ldm" or config.conditioner.kind != "text" or config.data.source != "folder":
        kind = config.conditioner.kind if config.task == "ldm" else "none"
        raise UsageError(
            f"a run of task {config.task!r}, condition {kind!r}, on {config.data.source!r}: this check needs a text "
            "model of a folder of captioned pictures"
        )
    if data:
        config.data.path = str(data)
    config.data.flip = False
    source = setup.source(config, train=True)
    transform = setup.image_transform(config, False)
    examples = (source[i] for i in range(len(source)))
    pairs = [(to_uint8(transform(e, np.random.default_rng(0))["image"]), e["text"]) for e in examples]
    return np.stack([picture for picture, _ in pairs]), [
        text if isinstance(text, str) else text[0] for _, text in pairs
    ]


def main() -> None:
    args = parse()
    process.setup()
    pipe = ldm_jax.load(args.workdir)
    pictures, captions = training_pictures(pipe, args.data)
    wanted = chosen(captions, args.num)
    extract = features.load(NETWORK, args.weights)
    tap = extract.network.tap
    print(f"features of {len(pictures)} training pictures ...", flush=True)
    reference = extract(pictures)[tap]

    def show(progress) -> None:
        if progress.step == progress.steps:
            print(f"{progress.first + progress.number}/{progress.total} samples", flush=True)

    began = time.perf_counter()
    samples = np.stack(list(pipe.sample(
        prompt=[captions[i] for i in wanted], num=1, steps=args.steps, eta=args.eta, guidance=args.guidance,
        seed=args.seed, batch=args.batch, on_progress=show,
    )))  # fmt: skip
    seconds = time.perf_counter() - began
    truth = pictures[wanted]
    reconstructions = np.stack(list(pipe.reconstruct(truth, batch=args.batch)))
    rows = {"samples": samples, "reconstructions": reconstructions}
    scores = {what: share(extract(rows[what])[tap], reference, captions, wanted, args.nearest) for what in rows}
    print(
        f"\n{len(wanted)} of {len(set(captions))} names, {args.steps} steps, eta {args.eta:g}, "
        f"guidance {args.guidance:g}: "
        f"share with the asked name among the {args.nearest} nearest of {len(pictures)} training pictures"
    )
    for what, value in scores.items():
        print(f"  {what:16} {value:.3f}")
    print(f"sampling took {seconds:.0f} s with compiling")
    settings = {name: getattr(args, name) for name in ("num", "nearest", "steps", "eta", "guidance", "seed")}
    out = args.out or args.workdir
    out.mkdir(parents=True, exist_ok=True)
    names = [captions[i] for i in wanted]
    (out / "names.json").write_text(json.dumps(dict(settings, **scores, names=names), indent=1) + "\n")
    columns = [np.concatenate(each) for each in zip(truth[:64], reconstructions[:64], samples[:64])]
    lines = [np.concatenate(columns[i : i + 16], axis=1) for i in range(0, len(columns) // 16 * 16 or len(columns), 16)]
    save_png(out / "names.png", np.concatenate(lines), {"names": names[:64]})
    print(out / "names.png")


if __name__ == "__main__":
    process.restart_with_hugepages()
    main()
