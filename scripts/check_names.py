"""Measures how well a text model follows names: is a sample nearest to training pictures that have the asked name?

    python scripts/get_weights.py efficientnet_lite0
    python scripts/check_names.py runs/emoji/text
    python scripts/check_names.py pretrained/emoji_text --data=datasets/emoji128 --num=200 --guidance=2

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
from ldm_jax import process, report, shipped
from ldm_jax.cli import options
from ldm_jax.cli.sample import SamplingLine
from ldm_jax.data.sources import Source
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import features, kept, metrics, picture_sets, weights
from ldm_jax.images import grid, save_png

NETWORK = "efficientnet_lite0"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    parser.add_argument("workdir", type=Path, help="run directory or exported folder of a text model")
    parser.add_argument("--data", type=Path, help="folder of the captioned pictures (default: that of the training)")
    parser.add_argument(
        "--out", type=Path, help="folder of both files (default: WORKDIR; of a model by name samples/NAME)"
    )
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


def training_pictures(pipe: ldm_jax.Pipeline, data: Path | None) -> picture_sets.DataPictures:
    """Those of a text model's captioned folder. UsageError for other models."""
    config = pipe.config.copy_and_resolve_references()
    kind = config.conditioner.kind if config.task == "ldm" else "none"
    if kind != "text" or config.data.source != "folder":
        raise UsageError(
            f"a run of task {config.task!r}, condition {kind!r}, on {config.data.source!r}: this check needs a text "
            "model of a folder of captioned pictures"
        )
    if data:
        config.data.path = str(data)
    return report.data_of(config, pipe.path)


def captions_of(source: Source) -> list[str]:
    """Of each picture the caption, or the first one."""
    texts = [source.annotations(i)["text"] for i in range(len(source))]
    return [text if isinstance(text, str) else text[0] for text in texts]


def main() -> None:
    args = parse()
    process.setup()
    with options.mistakes("check_names.py"):
        run(args)


def run(args: argparse.Namespace) -> None:
    pipe = ldm_jax.load(args.workdir)
    training = training_pictures(pipe, args.data)
    captions = captions_of(training.source)
    wanted = chosen(captions, args.num)
    extract = features.load(NETWORK, args.weights)
    tap = extract.network.tap
    reference = kept.features_of(training, extract, (tap,))[tap]
    line = SamplingLine(pipe, len(wanted), active=True)
    began = time.perf_counter()
    with line.live:
        samples = pipe.sample(
            prompt=[captions[i] for i in wanted], num=1, steps=args.steps, eta=args.eta, guidance=args.guidance,
            seed=args.seed, batch=args.batch, on_progress=line.show,
        ).array  # fmt: skip
    seconds = time.perf_counter() - began
    truth = np.stack([training.part(i, i + 1)[0] for i in wanted])
    rows = {"samples": samples, "reconstructions": pipe.reconstruct(truth, batch=args.batch).array}
    scores = {what: share(extract(rows[what])[tap], reference, captions, wanted, args.nearest) for what in rows}
    print(
        f"\n{len(wanted)} of {len(set(captions))} names, {args.steps} steps, eta {args.eta:g}, guidance "
        f"{args.guidance:g}: share with the asked name among the {args.nearest} nearest of {len(training)} pictures"
    )
    for what, value in scores.items():
        print(f"  {what:16} {value:.3f}")
    print(f"sampling took {seconds:.0f} s with compiling")
    settings = {name: getattr(args, name) for name in ("num", "nearest", "steps", "eta", "guidance", "seed")}
    out = args.out or shipped.made_of(args.workdir)
    out.mkdir(parents=True, exist_ok=True)
    names = [captions[i] for i in wanted]
    (out / "names.json").write_text(json.dumps(dict(settings, **scores, names=names), indent=1) + "\n")
    strips = np.concatenate([truth, rows["reconstructions"], samples], axis=1)[:64]
    save_png(out / "names.png", grid(strips, columns=16), {"names": names[:64]})
    print(out / "names.png")


if __name__ == "__main__":
    process.restart_with_hugepages()
    main()
