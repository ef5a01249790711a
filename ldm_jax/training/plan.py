"""What a training run will need, before any data is read: its step is traced and compiled for shapes alone.

    python train.py --config=imagenet_ldm4 --compile-only --topology=v5e:16x16

Parameters and operations are those of the recipe. Bytes and collectives are what the compiler says of the program that
it has split over the devices. Times are estimates from published rates (chips.py), and are called so.
"""

import os
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from ml_collections import ConfigDict

from ldm_jax import build, process
from ldm_jax.models import kernels
from ldm_jax.training import collectives, flops, nonfinite, setup, sharding, tasks
from ldm_jax.training.chips import Chip, Topology
from ldm_jax.training.state import TrainState

Tree = Any
REACHED = 0.4  # share of the published rate of products that a step is assumed to reach
FREE = 0.06  # share of a device's memory that is left to driver and runtime
# Only the plan of the program is wanted, not fast code.
_IN_A_HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Devices:
    """Those to plan for. chip: None where its rates are not known. real: the program is compiled by the compiler that
    these devices have, otherwise by the one for CPUs, on as many pretended devices."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    real: bool


def find(topology: Topology | None) -> Devices:
    """The devices of a topology, or (None) those that JAX has. To be called before JAX's first computation."""
    process.faster_cpu()
    process.faster_accelerators()
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache does not tell its memory
    if topology is None:
        found = jax.devices()
        return Devices(f"{len(found)} x {found[0].device_kind}", found, None, True)
    name = f"{topology.number} x {topology.chip.name}"
    jax.config.update("jax_platforms", "cpu")
    if topology.is_tpu and find_spec("libtpu"):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this machine is not asked what it is
        found = list(topologies.get_topology_desc(topology.name, "tpu").devices)
        return Devices(name, found, topology.chip, True)
    jax.config.update("jax_num_cpu_devices", topology.number)
    return Devices(name, jax.devices("cpu")[: topology.number], topology.chip, False)


def abstract(config: ConfigDict) -> tuple[tasks.Task, TrainState, Tree]:
    """(task, TrainState, frozen) of shapes. Raises what build raises for a recipe that does not fit together."""
    task, (state, frozen) = setup.task(config), setup.abstract_run(config)
    if config.task == "first_stage" and task.lpips is not None:
        image = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
        frozen = {"lpips": jax.eval_shape(task.lpips.init, jax.random.key(0), image, image)["params"]}
    return task, state, frozen


@dataclass(frozen=True)
class Plan:
    """Of one training step. operations: {flops.KINDS: of the whole batch}. held, temporary: bytes a device, None where
    the compiler does not say; state, fixed: the parts of `held` that are TrainState and frozen arrays, by their shapes
    and shardings. compile_s: seconds that it took. mesh: {"data", "fsdp"}."""

    devices: Devices
    mesh: dict[str, int]
    batch: int
    accumulate: int
    trained: int
    frozen: int
    operations: dict[str, float]
    state: int
    fixed: int
    held: int | None
    temporary: int | None
    collectives: list[collectives.Collective]
    compile_s: float

    @property
    def peak(self) -> int | None:
        """Bytes of a device."""
        return None if self.held is None else self.held + self.temporary

    @property
    def fits(self) -> bool | None:
        """Whether a chip has so much memory."""
        chip = self.devices.chip
        return None if chip is None or self.peak is None else self.peak <= (1 - FREE) * chip.memory

    def computing(self) -> float:
        """Estimated seconds of a step's products on one chip."""
        chip, ways = self.devices.chip, self.mesh["data"] * self.mesh["fsdp"]
        return sum(work / getattr(chip, kind) for kind, work in self.operations.items()) / ways / REACHED

    def sending(self) -> float:
        """Estimated seconds of a step's collectives."""
        return sum(c.sent / self.devices.chip.rate(c.group) for c in self.collectives)


def plan(config: ConfigDict, devices: Devices) -> Plan:
    """Compiles the step of a recipe for the devices. ConfigError as training raises it."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices.devices)
    sharding.check_batch(config.batch_size, mesh, config.optim.accumulate)
    (task, state, frozen), batch = abstract(config), build.batch_shapes(config, config.batch_size)
    shardings = sharding.tree_shardings(state, mesh)
    step = nonfinite.step_of(task.step, config.on_nonfinite, config.noise_seed)
    args = (
        sharding.placed(state, shardings),
        sharding.placed(frozen, sharding.tree_shardings(frozen, mesh)),
        sharding.placed(batch, dict.fromkeys(batch, sharding.batch_sharding(mesh))),
    )
    platform = devices.devices[0].platform
    if devices.real:
        forms, options = nullcontext() if platform == jax.default_backend() else kernels.use(platform), None
    else:
        forms, options = kernels.plain(), _IN_A_HURRY
    began = time.perf_counter()
    with jax.set_mesh(mesh), forms:
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
        traced = jitted.trace(*args)
        compiled = traced.lower().compile(options)
    seconds = time.perf_counter() - began
    memory = process.planned(compiled)
    held, temporary = (None, None) if memory is None else (memory.held, memory.temporary)
    return Plan(
        devices, dict(mesh.shape), config.batch_size, config.optim.accumulate, _number(state.params), _number(frozen),
        dict(flops.count_by_kind(traced.jaxpr)), *map(sharding.bytes_of, args[:2]), held, temporary,
        collectives.of_program(compiled.as_text(), mesh.size), seconds,
    )  # fmt: skip


def table(made: Plan) -> str:
    """The plan in plain words, two columns."""
    ways, chip = made.mesh["data"] * made.mesh["fsdp"], made.devices.chip
    each = made.batch // ways
    parts = f" in {made.accumulate} parts" if made.accumulate > 1 else ""
    rows = [
        ("devices", f"{made.devices.name}, mesh data={made.mesh['data']} fsdp={made.mesh['fsdp']}"),
        ("batch", f"{made.batch} images, {each} a device{parts}"),
        ("parameters", f"{made.trained:,} trained, {made.frozen:,} frozen"),
        ("operations of a step", _operations(made.operations)),
        ("a device holds", f"{_gib(made.state)} weights, average and optimiser; {_gib(made.fixed)} frozen"),
    ]
    if made.peak is not None:
        limit = f" of {_gib(chip.memory)}: {'fits' if made.fits else 'does not fit'}" if chip else ""
        rows.append(("temporary memory of a device", _gib(made.temporary)))
        rows.append(("all memory of a device", f"{_gib(made.peak)}{limit}"))
    else:
        rows.append(("all memory of a device", "not known: the compiler does not say it"))
    for kind, (number, sent) in by_kind(made.collectives).items():
        rows.append((kind, f"{number} in a step, a device sends {_gib(sent)}"))
    if not made.collectives:
        rows.append(("sent between devices", "nothing"))
    if chip:
        computing, sending = made.computing(), made.sending()
        slow, fast = computing + sending, max(computing, sending)
        rows += [
            ("estimate: computing", f"{1e3 * computing:,.1f} ms at {REACHED:.0%} of the published rate"),
            ("estimate: sending", f"{1e3 * sending:,.1f} ms at the published rate of the links"),
            ("estimate: a step", f"{1e3 * fast:,.1f} ms (sending hidden behind computing) to {1e3 * slow:,.1f} ms"),
            ("estimate: images a second", f"{made.batch / slow:,.0f} to {made.batch / fast:,.0f}"),
            ("estimate: of perfect scaling", f"{computing / slow:.0%} to {computing / fast:.0%}"),
        ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)


def by_kind(found: list[collectives.Collective]) -> dict[str, tuple[int, float]]:
    """{kind: (how many in a step, bytes that a device sends)}."""
    numbers: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for c in found:
        number, sent = numbers[c.kind]
        numbers[c.kind] = number + c.times, sent + c.sent
    return {kind: numbers[kind] for kind in collectives.KINDS if kind in numbers}


def remarks(made: Plan) -> str:
    """What the reader of the table must know of its numbers."""
    lines = ["Nothing ran: the step was compiled for shapes alone. No data, weights or devices are needed."]
    if not made.devices.real:
        lines.append(
            "The compiler was the one for CPUs, on pretended devices: temporary memory is its plan, which has bfloat16 "
            "widened and attention not fused, and it makes an all-reduce of what others make a reduce-scatter. With "
            "libtpu (pip install libtpu) a TPU's own compiler is asked."
        )
    if made.devices.chip:
        lines.append("Estimates take the makers' rates; none of them was measured.")
    return "\n".join(lines)


def run(config: ConfigDict, topology: Topology | None, name: str) -> None:
    """Prints the plan of a recipe."""
    devices = find(topology)
    process.setup(matmul_precision=config.matmul_precision)
    made = plan(config, devices)
    print(f"{name}, compiled in {made.compile_s:.0f} s:\n\n{table(made)}\n\n{remarks(made)}", flush=True)


def _number(shapes: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.2f} MiB"


def _operations(counted: dict[str, float]) -> str:
    words = {"half": "in bfloat16", "float32": "in float32", "exact": "in exact float32"}
    return ", ".join(f"{counted[kind] / 1e12:,.3g} TFLOP {words[kind]}" for kind in flops.KINDS if counted.get(kind))
