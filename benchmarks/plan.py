"""Plans the training step of recipes on 1 to 256 chips: memory, operations, what is sent, estimates of the time.

    python benchmarks/plan.py --recipes=celeba_ldm4,imagenet_ldm4,text2img_ldm8 --topology=h100,v5e

The step is traced, not compiled (train.py --compile-only compiles it for one number of chips). Operations and state
are exact. Memory of an image is what XLA planned for an H200 or a TPU v5p (the results of memory.py that there are).
What is sent is computed: gradients are summed over all chips; with `fsdp` weights are gathered for each part of the
batch, and once more where activations are recomputed. `fsdp` is the smallest power of two where --least images fit.
Times are estimates from published rates (ldm_jax/training/chips.py). Nothing runs on a chip.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax

from benchmarks import common
from ldm_jax import build, recipes
from ldm_jax.models import kernels
from ldm_jax.training import chips, flops, plan, sharding
from ldm_jax.training.collectives import Collective

RECIPES = "celeba_ldm4,imagenet_ldm4,text2img_ldm8"
GIB = 2**30
COLUMNS = {
    "recipe": "recipe", "chip": "chip", "chips": "chips", "fsdp": "fsdp", "held_gib": "GiB held",
    "fits": "largest images a chip", "each": "images a chip", "batch": "batch", "tflop": "TFLOP a step",
    "sent_gib": "a chip sends GiB", "computing_ms": "computing ms", "sending_ms": "sending ms",
    "images_s_low": "images/s from", "images_s_high": "to", "scaling_low": "scaling from", "scaling_high": "to ",
}  # fmt: skip


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False)
    p.add_argument("--recipes", type=common.words, default=common.words(RECIPES), help=f"default {RECIPES}")
    p.add_argument("--topology", type=common.words, default=("h100", "v5e"), help="chips, default h100,v5e")
    p.add_argument("--chips", type=common.numbers, default=(1, 8, 64, 256), help="numbers of them, default 1,8,64,256")
    p.add_argument("--each", type=int, default=16, help="images a chip where so many fit, default 16")
    p.add_argument("--least", type=int, default=8, help="images a chip that must fit, default 8")
    args = p.parse_args(argv)
    env, rows = common.environment(), []
    for recipe in args.recipes:
        config = recipes.load(recipe, ["--config.dtype=bfloat16"])
        shapes = traced(config)
        for kind in args.topology:
            image = image_gib(recipe, kind)
            rows += [row(recipe, shapes, chips.CHIPS[kind], n, image, args.each, args.least) for n in args.chips]
        common.save(args, "plan", rows, env, "bfloat16")
    print(f"\n{common.table(rows, COLUMNS)}")
    return rows


def traced(config) -> SimpleNamespace:
    """The step of one image: state and frozen arrays as shapes, operations by kind, and `recomputes` activations."""
    task, state, frozen = plan.abstract(config)
    batch = build.batch_shapes(config, 1)
    with kernels.plain():
        jaxpr = jax.make_jaxpr(task.step)(state, frozen, batch)
    recomputes = bool(config.get("unet", {}).get("remat", False))
    return SimpleNamespace(state=state, frozen=frozen, operations=flops.count_by_kind(jaxpr), recomputes=recomputes)


def image_gib(recipe: str, chip: str, results: Path = common.RESULTS) -> float | None:
    """GiB that one more image takes, as memory.py found it planned: for a TPU where there is such a result, otherwise
    for a GPU; with activations recomputed where the recipe does so. None without a result."""
    recomputes = bool(recipes.load(recipe).unet.remat)
    for planned in ("v5p-1x1x1", "h200") if chip.startswith("v") else ("h200",):
        path = results / f"memory_{planned}_{recipe}_cpu_bfloat16.json"
        if path.exists():
            fits = json.loads(path.read_text())["fits"]
            found = [fit["GiB per image"] for fit in fits if fit["remat"] == recomputes]
            if found:
                return found[0]
    return None


def held(shapes: SimpleNamespace, fsdp: int) -> int:
    """Bytes of state and frozen arrays on one chip."""
    mesh = SimpleNamespace(shape={"fsdp": fsdp})
    leaves = jax.tree.leaves((shapes.state, shapes.frozen))
    return sum(x.size * x.dtype.itemsize // (fsdp if any(sharding.leaf_spec(x.shape, mesh)) else 1) for x in leaves)


def expected(shapes: SimpleNamespace, number: int, fsdp: int, parts: int = 1) -> list[Collective]:
    """What a step sends on so many chips."""
    mesh = SimpleNamespace(shape={"fsdp": fsdp})
    params = jax.tree.leaves(shapes.state.params)
    split = [x.size * 4 for x in params if any(sharding.leaf_spec(x.shape, mesh))]
    whole, ours = sum(x.size * 4 for x in params) - sum(split), tuple(range(fsdp))
    found = [Collective("all-reduce", whole, tuple(range(number)), parts)]
    if split:
        gathers = parts * (2 if shapes.recomputes else 1)
        found.append(Collective("all-gather", sum(split), ours, gathers))
        found.append(Collective("reduce-scatter", sum(split), ours, parts))
        found.append(Collective("all-reduce", sum(split) // fsdp, tuple(range(0, number, fsdp)), parts))
    return [c for c in found if len(c.group) > 1 and c.bytes]


def row(
    recipe: str, shapes: SimpleNamespace, chip: chips.Chip, number: int, image: float | None, each: int, least: int
) -> common.Row:
    found: common.Row = {"recipe": recipe, "chip": chip.name, "chips": number}
    ways = [2**i for i in range(number.bit_length()) if number % 2**i == 0]
    room = {fsdp: (1 - plan.FREE) * chip.memory - held(shapes, fsdp) for fsdp in ways}
    needed = least * (image or 0) * GIB
    fitting = [fsdp for fsdp in ways if room[fsdp] >= needed]
    if not fitting:
        return found | {"held_gib": held(shapes, ways[-1]) / GIB, "fits": 0, "fsdp": ways[-1]}
    fsdp = fitting[0]
    largest = int(room[fsdp] / (image * GIB)) if image else None
    size = min(each, largest) if largest else each
    sent = expected(shapes, number, fsdp)
    operations = {kind: work * size * number for kind, work in shapes.operations.items()}
    computing = sum(work / getattr(chip, kind) for kind, work in operations.items()) / number / plan.REACHED
    sending = sum(c.sent / chip.rate(c.group) for c in sent)
    slow, fast = computing + sending, max(computing, sending)
    return found | {
        "fsdp": fsdp, "trained": sum(x.size for x in jax.tree.leaves(shapes.state.params)),
        "held_gib": held(shapes, fsdp) / GIB, "image_gib": image, "fits": largest, "each": size, "batch": size * number,
        "tflop": sum(operations.values()) / 1e12, "tflop_exact": operations.get("exact", 0.0) / 1e12,
        "sent_gib": sum(c.sent for c in sent) / GIB, "computing_ms": 1e3 * computing, "sending_ms": 1e3 * sending,
        "images_s_low": size * number / slow, "images_s_high": size * number / fast,
        "scaling_low": computing / slow, "scaling_high": computing / fast,
    }  # fmt: skip


if __name__ == "__main__":
    main()
