"""What test_eight_devices.py asks of eight devices: run by itself, prints one line of JSON at the end.

Tiny networks; arrays count as large from 512 numbers on.
"""

import contextlib
import io
import json
import re

import jax
import numpy as np

from ldm_jax import recipes
from ldm_jax.cli import train
from ldm_jax.models import kernels
from ldm_jax.training import loop, setup, sharding, tasks
from tests.fast import QUICK

EACH = 3  # images a device and part
SMALL = ["unet.channel_mult=(1,)", "unet.attention_downsamples=()", "optim.schedule=constant"]


def config_of(recipe, **options):
    return recipes.load(recipe, [f"--config.{x}" for x in (*SMALL, *(f"{k}={v}" for k, v in options.items()))])


def held(tree):
    """The share of all bytes of a tree that the first device has."""
    leaves = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def whole(text, *sizes):
    """Arrays of a compiled program that hold images of a whole batch of one of the sizes."""
    return sorted(set(re.findall(rf"\w+\[(?:{'|'.join(map(str, sizes))}),\d+,\d+,\d+\]", text)))


def planned():
    """The table of train.py; it also makes the eight devices. The flags for GPUs of this version must be known."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        train.main(["--config=quickstart_ldm:tiny", "--compile_only", "--topology=h100x8", "--config.mesh.fsdp=4",
                    "--config.batch_size=16", *(f"--config.{option}" for option in SMALL)])  # fmt: skip
    return told.getvalue()


def sums(accumulated):
    """Of a program that sums [512,512] over four parts: its text, and the sum itself."""
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)

    def fn(batch, keys, carry):
        return {"sum": batch["image"].T @ batch["image"]}, carry

    def add(x, keys):
        return tasks.accumulate(fn, {"image": x}, keys, (), 4)[0]["sum"]

    keys = jax.random.split(jax.random.key(0), 64)
    mesh = sharding.make_mesh(data=1, fsdp=8)
    with jax.set_mesh(mesh), kernels.use(accumulated):
        placed = sharding.put({"x": x}, mesh)["x"]
        compiled = jax.jit(add).lower(placed, keys).compile()
        found = compiled(placed, keys)
    near = np.allclose(found, x.T @ x / 4, atol=1e-4)
    loops = re.findall(r"= (\([^=]*\)) while\(", compiled.as_text())
    return {"loops": loops, "near": bool(near), "spec": str(found.sharding.spec),
            "temporary": compiled.memory_analysis().temp_size_in_bytes}  # fmt: skip


def steps(devices, fsdp, accumulate, number=2):
    """Losses of some steps, what a device holds of state and frozen arrays, images of whole batches in the programs."""
    size = 8 * EACH * 2
    config = config_of("quickstart_ldm:tiny", batch_size=size, **{"optim.accumulate": accumulate})
    mesh = sharding.make_mesh(len(devices) // fsdp, fsdp, devices)
    task, frozen = setup.task(config), setup.frozen(config, "")
    rng = np.random.default_rng(0)
    batch = {"image": rng.uniform(-1, 1, (size, *[config.data.image_size] * 2, 3)).astype(np.float32)}
    batch = sharding.put(batch, mesh)
    frozen = loop._split(jax.device_put(frozen, sharding.replicated(mesh)), mesh)
    state, shardings = loop._first_state(task, 0, frozen, batch, mesh, None, 0, None)
    held_by_one = [held(state), held(frozen)]
    with jax.set_mesh(mesh):
        jitted = jax.jit(task.step, out_shardings=(shardings, sharding.replicated(mesh)))
        step = jitted.lower(state, frozen, batch).compile(QUICK)
        evaluate = jax.jit(task.evaluate).lower(state, frozen, batch, 0).compile(QUICK)
    losses = []
    for _ in range(number):
        state, metrics = step(state, frozen, batch)
        losses.append({name: float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")})
    parts = {size, size // accumulate} if len(devices) > 1 else {0}
    found = {"losses": losses, "held": held_by_one, "step": whole(step.as_text(), *parts),
             "evaluate": whole(evaluate.as_text(), size)}  # fmt: skip
    if len(devices) > 1:
        made = task.pictures(state, frozen, batch, mesh)["samples"]
        (programs,) = task.programs.values()
        found["pictures"] = {str(key[0][0]): whole(p.as_text(), 8) for key, p in programs._programs.items()}
        found["samples"] = list(made.shape)
    return found


if __name__ == "__main__":
    sharding.MIN_SHARDED_SIZE = 512
    facts = {"plan": planned()}
    devices = jax.devices()
    facts["sums"] = {form: sums(form) for form in ("cpu", "reference")}
    facts["one"] = steps(devices[:1], 1, 1)
    facts["eight"] = steps(devices, 4, 2)
    print(json.dumps(facts))
