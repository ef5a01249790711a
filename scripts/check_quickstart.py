"""Measures how well a conditional model follows its conditions, on unseen scenes of the built-in shapes.

    python scripts/check_quickstart.py runs/quickstart/class
    python scripts/check_quickstart.py runs/emoji/superres --num=64 --batch=16

Takes any conditional model trained with data.source=shapes and data.simple_scenes=True, and super-resolution and
inpainting of any pictures, whose metric is PSNR. The model gets the conditions of --num scenes (pictures) of the
validation set, and ldm_jax/evaluation/scenes.py reads its samples back from their pixels. For comparison there is the
same metric of the first stage's reconstructions of the true scenes, which limit a model in its latents, and of a method
without a network where there is one. Writes check.json and check.png (true scene, its reconstruction, sample;
super-resolution and inpainting: the input first) into the run directory.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ldm_jax
from ldm_jax import process, rundir, shipped
from ldm_jax.cli.options import Parser
from ldm_jax.data import shapes
from ldm_jax.data.transforms import resize
from ldm_jax.evaluation import scenes
from ldm_jax.images import save_png, to_uint8


def psnr(image: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None) -> float:
    """dB of uint8 images, over the pixels `where` bool [H,W]."""
    error = np.square(image.astype(np.float64) - truth)
    return float(10 * np.log10(255**2 / max(error[where].mean() if where is not None else error.mean(), 1e-9)))


def true(fields: dict) -> np.ndarray:
    """The validation picture as the model would have seen it, uint8 [H,W,3]."""
    return to_uint8(fields["image"])


def names_of(scene: dict) -> list[str]:
    return [shapes.CLASS_NAMES[item["class"]] for item in scene["objects"]]


@dataclass(frozen=True)
class Check:
    """score(scene, fields of its condition, image) -> number, of samples and of reconstructions alike.

    plain: (fields, scene's image) -> what a method without a network makes. goal: what the samples' mean score must
    reach, given those of reconstructions and plain method. finish: changes a sample before it is read.
    """

    what: str
    score: Callable[[dict, dict, np.ndarray], float]
    goal: Callable[[float, float], float]
    guidance: float | None = None
    plain: Callable[[dict, np.ndarray], np.ndarray] | None = None
    plain_name: str = ""
    finish: Callable[[dict, np.ndarray, np.ndarray], np.ndarray] = lambda fields, made, image: made
    shown: Callable[[dict, np.ndarray], np.ndarray] | None = None


def hole(fields: dict) -> np.ndarray:
    return fields["mask"][..., 0] > 0.5


def bicubic(fields: dict, image: np.ndarray) -> np.ndarray:
    return resize(to_uint8(fields["low_res"]), image.shape[:2], "bicubic")


def mean_colour(fields: dict, image: np.ndarray) -> np.ndarray:
    """Holes filled with the mean colour of what is known."""
    known = image[~hole(fields)].mean(0)
    return np.where(hole(fields)[..., None], np.rint(known), image).astype(np.uint8)


CHECKS = {
    "class": Check(
        "largest shape has the class's kind and colour (share)",
        lambda scene, fields, image: scenes.main_is(image, names_of(scene)[0]),
        lambda ceiling, plain: 0.7 * ceiling,
        guidance=2.0,
    ),
    "text": Check(
        "every shape of the caption is there in its colour (share)",
        lambda scene, fields, image: scenes.all_there(image, names_of(scene)),
        lambda ceiling, plain: 0.5,
        guidance=6.0,
    ),
    "layout": Check(
        "boxes with a shape of their colour, centres within 1/8 of the image (mean share)",
        lambda scene, fields, image: np.mean(scenes.in_place(image, scene["objects"], shapes.CLASS_NAMES)),
        lambda ceiling, plain: 0.6,
        guidance=4.0,
    ),
    "semantic": Check(
        "pixels of the map's class, read by colour and outline (share)",
        lambda scene, fields, image: np.mean(scenes.segmentation(image) == scene["segmentation"]),
        lambda ceiling, plain: 0.8,
        plain=lambda fields, image: np.full_like(image, 128),
        plain_name="nothing but background",
    ),
    "superres": Check(
        "PSNR (dB)",
        lambda scene, fields, image: psnr(image, true(fields)),
        lambda ceiling, plain: plain + 1,
        plain=bicubic,
        plain_name="bicubic",
        shown=lambda fields, image: resize(to_uint8(fields["low_res"]), image.shape[:2], "nearest"),
    ),
    "inpaint": Check(
        "PSNR in the hole (dB)",
        lambda scene, fields, image: psnr(image, true(fields), hole(fields)),
        lambda ceiling, plain: plain + 3,
        plain=mean_colour,
        plain_name="mean colour of the rest",
        finish=lambda fields, made, image: np.where(hole(fields)[..., None], made, image),
        shown=lambda fields, image: to_uint8(fields["masked_image"]),
    ),
}


ANY_PICTURES = ("superres", "inpaint")  # conditions whose metric needs no shapes


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("workdir", type=Path, help="the run directory of a conditional model")
    parser.add_argument("--num", type=int, default=128, help="scenes (default 128)")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default 64)")
    parser.add_argument("--steps", type=int, default=100, help="DDIM steps (default 100)")
    parser.add_argument("--eta", type=float, default=1.0, help="DDIM's noise (default 1)")
    parser.add_argument("--guidance", type=float, help="scale (default: class 2, layout 4, text 6, else none)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    return parser.parse_args()


def unseen(config, workdir: Path, number: int) -> tuple[list[dict], list[dict]]:
    """Scenes of the validation stream, and the fields of each that the model reads."""
    from ldm_jax.training import setup

    source = setup.source(config, train=False)
    if number > len(source):
        sys.exit(f"--num={number}: there are {len(source)} validation images")
    transform = setup.transform(config, False, rundir.tokenizer_of(workdir))
    found = [source[i] for i in range(number)]
    return found, [transform(scene, np.random.default_rng([7, i])) for i, scene in enumerate(found)]


def generate(
    args: argparse.Namespace, pipe, fields: list[dict], guidance: float | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(samples, reconstructions), uint8 [H,W,3] each."""
    batch = {name: np.stack([f[name] for f in fields]) for name in fields[0]}

    def show(progress) -> None:
        if progress.step == progress.steps:
            print(f"{progress.first + progress.number}/{progress.total} samples", flush=True)

    samples = pipe.sample(
        fields=batch, steps=args.steps, eta=args.eta, guidance=guidance, seed=args.seed, batch=args.batch,
        on_progress=show,
    )  # fmt: skip
    return list(samples), list(pipe.reconstruct(batch["image"], batch=args.batch))


def main() -> None:
    args = parse()
    process.setup()
    pipe = ldm_jax.load(args.workdir)
    config = pipe.config
    kind = config.conditioner.kind if config.task == "ldm" else "none"
    simple = config.data.source == "shapes" and config.data.simple_scenes
    if kind not in (CHECKS if simple else ANY_PICTURES):
        sys.exit(
            f"{args.workdir} is a run of task {config.task!r}, condition {kind!r}, on {config.data.source!r}; this "
            f"check needs one of the conditions {', '.join(CHECKS)} and, but for {' and '.join(ANY_PICTURES)}, simple "
            "scenes of shapes"
        )
    check = CHECKS[kind]
    guidance = args.guidance if args.guidance is not None else check.guidance
    found, fields = unseen(config, args.workdir, args.num)
    began = time.perf_counter()
    samples, reconstructions = generate(args, pipe, fields, guidance)
    seconds = time.perf_counter() - began
    images = [true(f) for f in fields]
    samples = [check.finish(f, made, image) for f, made, image in zip(fields, samples, images)]

    def mean(drawn: list[np.ndarray]) -> float:
        return float(np.mean([check.score(*each) for each in zip(found, fields, drawn)]))

    scores = {"samples": mean(samples), "reconstructions": mean(reconstructions)}
    rows = [images, reconstructions, samples]
    if check.plain:
        scores[check.plain_name] = mean([check.plain(f, image) for f, image in zip(fields, images)])
    if check.shown:
        rows.insert(0, [check.shown(f, image) for f, image in zip(fields, images)])
    goal = check.goal(scores["reconstructions"], scores.get(check.plain_name, 0.0))
    print(f"\n{check.what}, {args.num} unseen pictures, {args.steps} steps, eta {args.eta:g}, guidance {guidance}:")
    for name, value in scores.items():
        print(f"  {name:24} {value:.3f}")
    print(f"  {'wanted of samples':24} {goal:.3f}   {'reached' if scores['samples'] >= goal else 'NOT REACHED'}")
    print(f"sampling took {seconds:.0f} s with compiling")
    settings = dict(scenes=args.num, steps=args.steps, eta=args.eta, guidance=guidance)
    report = dict(what=check.what, **settings, goal=goal, **scores)
    out = shipped.made_of(args.workdir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.json").write_text(json.dumps(report, indent=1) + "\n")
    strips = [np.concatenate(strip) for strip in zip(*rows)][:16]
    save_png(out / "check.png", np.concatenate(strips, axis=1), {"condition": kind})
    sys.exit(0 if scores["samples"] >= goal else 1)


if __name__ == "__main__":
    process.restart_with_hugepages()
    main()
