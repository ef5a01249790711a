"""What test_eight_devices.py asks of eight devices: run by itself, prints one line of JSON at the end.

A tiny network on pixels; arrays count as large from 512 numbers on.
"""

import contextlib
import io
import json
import re
import sys
import time

import jax
import numpy as np

from ldm_jax import recipes
from ldm_jax.cli import train
from ldm_jax.models import kernels
from ldm_jax.training import collectives, loop, plan, setup, sharding, tasks
from tests.fast import QUICK

BATCH = 48  # three images a device in each of two parts
OPTIONS = [f"--config.{option}" for option in (
    "mesh.fsdp=4", f"batch_size={BATCH}", "optim.accumulate=2", "optim.schedule=constant", "first_stage.kind=identity",
    "data.image_size=8", "unet.channel_mult=(1,)", "unet.attention_downsamples=()", "unet.num_res_blocks=1",
)]  # fmt: skip


def whole(text, *sizes):
    """Arrays of a compiled program that hold images of a whole batch of one of the sizes."""
    return sorted(set(re.findall(rf"\w+\[(?:{'|'.join(map(str, sizes))}),\d+,\d+,\d+\]", text)))


def held(tree):
    """The share of all bytes of a tree that the first device has."""
    leaves = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def planned():
    """What train.py prints, and the text of the program; also makes the eight devices."""
    told, texts, read = io.StringIO(), [], collectives.of_program
    plan.collectives.of_program = lambda text, devices: texts.append(text) or read(text, devices)
    with contextlib.redirect_stdout(told):
        train.main(["--config=quickstart_ldm:tiny", "--compile_only", "--topology=h100x8", *OPTIONS])
    return told.getvalue(), whole(texts[0], BATCH, BATCH // 2)


def sums(forms):
    """Of a program that sums [512,512] over four parts: what its loop carries, and the sum itself."""
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)

    def fn(batch, keys, carry):
        return {"sum": batch["image"].T @ batch["image"]}, carry

    def add(x, keys):
        return tasks.accumulate(fn, {"image": x}, keys, (), 4)[0]["sum"]

    keys = jax.random.split(jax.random.key(0), 64)
    mesh = sharding.make_mesh(data=1, fsdp=8)
    with jax.set_mesh(mesh), kernels.use(forms):
        placed = sharding.put({"x": x}, mesh)["x"]
        compiled = jax.jit(add).lower(placed, keys).compile(QUICK)
        found = compiled(placed, keys)
    error = float(np.abs(found - x.T @ x / 4).max())
    shard = found.addressable_shards[0].data.shape
    return {"loops": re.findall(r"= (\([^=]*\)) while\(", compiled.as_text()), "error": error, "shard": shard}


def drawn():
    """Shares of state and frozen arrays that a device holds; whole batches in programs of validation and pictures."""
    config = recipes.load("quickstart_ldm:tiny", OPTIONS)
    mesh, task = setup.mesh(config), setup.task(config)
    image = np.zeros((BATCH, 8, 8, 3), np.float32)
    batch = sharding.put({"image": image}, mesh)
    frozen = loop._split(setup.frozen(config, "") | {"large": np.ones((64, 64), np.float32)}, mesh)
    shapes = jax.eval_shape(task.init, jax.random.key_data(jax.random.key(0)), frozen, batch)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    state = jax.device_put(zeros, sharding.tree_shardings(shapes, mesh))
    with jax.set_mesh(mesh):
        evaluate = jax.jit(task.evaluate).lower(state, frozen, batch, 0).compile(QUICK)
    kept = sharding.placed(state, sharding.tree_shardings(state, mesh))
    ahead = len(task.compile_pictures(kept, frozen, sharding.placed(batch, {"image": batch["image"].sharding}), mesh))
    made = task.pictures(state, frozen, batch, mesh)["samples"]
    (programs,) = task.programs.values()
    pictures = {str(key[0][0]): whole(p.as_text(), programs.batch_size(1)) for key, p in programs._programs.items()}
    return {"held": [held(state), held(frozen)], "evaluate": whole(evaluate.as_text(), BATCH), "samples": made.shape,
            "pictures": pictures, "programs": [ahead, programs.compiled]}  # fmt: skip


def main():
    sharding.MIN_SHARDED_SIZE = 512
    facts, began = {}, time.process_time()
    for name, ask in {
        "plan": planned, "unrolled": lambda: sums("cpu"), "loop": lambda: sums("reference"), "drawn": drawn
    }.items():  # fmt: skip
        facts[name] = ask()
        print(f"{name}: {time.process_time() - began:.1f} s of CPU until now", file=sys.stderr)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
