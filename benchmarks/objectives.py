"""UNet and transformer, v-prediction and flow matching, trained for the same minutes on the classes of shapes.

    python benchmarks/objectives.py --minutes=8
    python benchmarks/objectives.py --minutes=8 --first-stage=runs/demo/first_stage --networks=dit

Trains the first stage of `make demo`, and then one after another the model of each pair on the demo's recipe. A short
run says how many steps of training fit into the minutes; that is the length of the learning rate's schedule. All have
about the same number of parameters, and the same batch size, optimiser and averages.

The share is that of samples whose largest shape has the kind and the colour that were asked for
(ldm_jax/evaluation/scenes.py), 50 steps. The scale of guidance, and how much noise each step of sampling adds, are
chosen on the samples of one seed (`chosen_share`); the share is that of another seed with the same choice.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common
from ldm_jax.data import shapes
from ldm_jax.evaluation import scenes

NETWORKS = {
    "unet": [],
    "dit": [
        "--config.network.kind=dit", "--config.dit.width=192", "--config.dit.depth=6", "--config.dit.num_heads=6",
        "--config.dit.patch_size=1", "--config.optim.learning_rate=5e-4", "--config.conditioner.dim=192",
        "--config.conditioner.embedding_std=0.02",
    ],
}  # fmt: skip
OBJECTIVES = {"v": [], "flow": ["--config.diffusion.kind=flow", "--config.diffusion.t_distribution=logit_normal"]}
GUIDANCE, ETA = (1.0, 2.0, 4.0, 6.0), (0.0, 1.0)


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False, batch="16", repeats=1)
    p.add_argument("--minutes", type=float, default=8.0, help="of training, of each model, default 8")
    p.add_argument("--trial", type=int, default=150, help="steps of the short run, default 150")
    p.add_argument("--first-stage", type=Path, help="a run of demo_first_stage (default: it is trained)")
    p.add_argument("--networks", type=common.words, default=tuple(NETWORKS), help=f"default {','.join(NETWORKS)}")
    p.add_argument("--objectives", type=common.words, default=tuple(OBJECTIVES), help=f"default {','.join(OBJECTIVES)}")
    p.add_argument("--variant", default="", help="of both recipes: tiny")
    p.add_argument("--num", type=int, default=256, help="samples of each share, default 256")
    p.add_argument("--steps", type=int, default=50, help="of sampling, default 50")
    args = p.parse_args(argv)
    for option, known in (("networks", NETWORKS), ("objectives", OBJECTIVES)):
        if unknown := set(getattr(args, option)) - set(known):
            p.error(f"--{option}={','.join(unknown)}: there are {', '.join(known)}")
    env, rows = common.environment(), []
    variant = f":{args.variant}" if args.variant else ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first_stage = args.first_stage or folder / "first_stage"
        if not args.first_stage:
            train(f"demo_first_stage{variant}", first_stage)
        pairs = itertools.product(args.networks, args.objectives)
        for (network, objective), batch in itertools.product(pairs, args.batch):
            options = [
                *NETWORKS[network], *OBJECTIVES[objective], f"--config.first_stage.checkpoint={first_stage.absolute()}",
                f"--config.batch_size={batch}", "--config.every.picture=0", "--config.every.evaluate=0",
            ]  # fmt: skip
            recipe, of = f"demo_class{variant}", f"{network}_{objective}_{batch}"
            rate = train(recipe, folder / f"trial_{of}", *options, f"--config.steps={args.trial}")
            steps = max(int(args.minutes * 60 * rate / batch), 1)
            arguments = recipe, folder / of, *options, f"--config.steps={steps}"
            seconds, rate = common.timed(partial(train, *arguments))
            rows.append(
                {"network": network, "objective": objective, "batch": batch, "steps": steps, "seen": steps * batch}
                | {"images_s": rate, "minutes": seconds / 60}
                | measured(folder / of, args)
            )
            print(common.table(rows[-1:]), flush=True)
    print(f"\n{common.table(rows)}")
    common.save(args, "objectives", rows, env)
    return rows


def train(recipe: str, workdir: Path, *options: str) -> float:
    """Images a second in the end."""
    command = [sys.executable, "train.py", f"--config={recipe}", f"--workdir={workdir}", *options]
    subprocess.run(command, cwd=common.ROOT, check=True)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if "images_per_second" in line][-1]


def measured(workdir: Path, args) -> common.Row:
    """Parameters and shares of a model. The choice of guidance and eta is made with seed 1, the share is of seed 0."""
    import ldm_jax
    from ldm_jax import tree

    pipe = ldm_jax.load(workdir)
    labels = [shapes.SIMPLE_CLASSES[i % len(shapes.SIMPLE_CLASSES)] for i in range(args.num)]

    def share(guidance: float, eta: float, seed: int) -> float:
        images = pipe.sample(label=labels, steps=args.steps, eta=eta, guidance=guidance, seed=seed, batch=64)
        return scenes.share_of_classes(images, labels)

    chosen = {pair: share(*pair, seed=1) for pair in itertools.product(GUIDANCE, ETA)}
    guidance, eta = best = max(chosen, key=chosen.__getitem__)
    return {
        "parameters": tree.count(pipe.params), "guidance": guidance, "eta": eta, "chosen_share": chosen[best],
        "share": share(guidance, eta, seed=0),
    }  # fmt: skip


if __name__ == "__main__":
    common.run(main)
