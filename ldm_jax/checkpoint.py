"""Reads and writes the files of a run directory. Only this module uses Orbax.

workdir/config.json          all options of the run
workdir/frozen/              arrays that training does not change: first stage and latent scale (diffusion models)
workdir/checkpoints/<step>/  the TrainState, written in the background
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from ldm_jax.errors import ConfigError, Missing
from ldm_jax.files import mistaken

Tree = Any
FINISHED = "_CHECKPOINT_METADATA"  # a file that Orbax writes into each checkpoint


def steps(workdir: str | Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return sorted(int(p.parent.name) for p in (Path(workdir) / "checkpoints").glob(f"*/{FINISHED}")
                  if p.parent.name.isdigit())  # fmt: skip


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether the run directory holds a finished checkpoint."""
    return bool(steps(workdir))


class _FinishedSteps(ocp.path.step.NameFormat):
    """Orbax's names for the folders of checkpoints. Orbax itself would also take an empty folder for a checkpoint."""

    standard = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        return self.standard.build_name(step)

    def find_all(self, base_path: Any) -> Iterator:
        return (step for step in self.standard.find_all(base_path) if (step.path / FINISHED).exists())

    def find_step(self, base_path: Any, step: int) -> Any:
        metadata = self.standard.find_step(base_path, step)
        if not (metadata.path / FINISHED).exists():
            raise ValueError(f"{metadata.path} is not a finished checkpoint")
        return metadata


class Checkpoints:
    """The checkpoints of a run, by step. The newest `keep` are kept, older ones are deleted."""

    def __init__(self, workdir: str | Path, keep: int = 3):
        if keep < 1:
            raise ConfigError(f"config.keep={keep} would delete every checkpoint: it must be at least 1")
        self.path = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True, step_name_format=_FinishedSteps()
        )
        self.manager = ocp.CheckpointManager(self.path, options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self.manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Starts to write in the background. Afterwards the arrays of `state` may be donated."""
        folder = self.path / str(step)
        if jax.process_index() == 0 and folder.exists() and step not in self.manager.all_steps():
            shutil.rmtree(folder)  # it is not a finished checkpoint
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract: Tree, step: int) -> Tree:
        """The state at `step`.

        abstract: tree of ShapeDtypeStruct with the shapes, types and shardings of the result; they need not be those of
        the devices that wrote the checkpoint. FileNotFoundError if there is no such step; it lists the steps.
        """
        steps = sorted(self.manager.all_steps())
        if step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.path}; there are: {steps or 'none'}")
        state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.map(_own, state)

    def wait(self) -> None:
        """Returns when everything is written."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Returns when everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()


def _own(leaf: jax.Array) -> jax.Array:
    """A copy of a restored array, which is freed. Copies made by XLA can be donated, restored arrays cannot. Arrays are
    copied one by one, so that only one of them is in memory twice."""
    copy = jax.jit(jnp.copy, out_shardings=leaf.sharding)(leaf)
    copy.block_until_ready()
    leaf.delete()
    return copy


AT_ONCE = 2**28  # bytes


class _FewAtATime(type_handlers.NumpyHandler):
    """Copies and writes arrays in groups of at most `AT_ONCE` bytes (or one array), so that little memory is needed for
    arrays that are views of a file."""

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        group, size = [], 0
        for value, info, arg in zip(values, infos, args):
            if group and size + value.nbytes > AT_ONCE:
                await self._write(group)
                group, size = [], 0
            group.append((value, info, arg))
            size += value.nbytes
        await self._write(group)
        return []

    async def _write(self, group):
        values, infos, args = zip(*group)
        for written in await super().serialize([np.asarray(v, order="C") for v in values], infos, args):
            written.result()


def save_from_numpy(workdir: str | Path, step: int, state: Tree) -> None:
    """Writes a checkpoint of numpy arrays. It needs little memory for views of mapped files or of one number."""
    previous = type_handlers.get_type_handler(np.ndarray)
    type_handlers.register_type_handler(np.ndarray, _FewAtATime(deepcopy_host_arrays=False), override=True)
    try:
        checkpoints = Checkpoints(workdir)
        checkpoints.save(step, state)
        checkpoints.close()
    finally:
        type_handlers.register_type_handler(np.ndarray, previous, override=True)


def restore_numpy(workdir: str | Path, step: int, abstract: Tree) -> Tree:
    """A part of the checkpoint at `step`, as numpy arrays. abstract: nested dict of the shapes to read."""
    wanted = _without_empty(abstract)
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
    path = Path(workdir).absolute() / "checkpoints" / str(step) / "default"
    leaves = jax.tree.leaves(ocp.PyTreeCheckpointer().restore(path, args=args))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _without_empty(part: Tree) -> Tree:
    """The tree without empty dicts, which Orbax does not store."""
    if not isinstance(part, dict):
        return part
    kept = {name: _without_empty(value) for name, value in part.items()}
    return {name: value for name, value in kept.items() if not isinstance(value, dict) or value}


def save_tree(path: str | Path, tree: Tree) -> None:
    """Writes a tree of arrays. The folder `path` appears when it is complete."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree, force=True)


def restore_tree(path: str | Path, abstract: Tree) -> Tree:
    """Reads a tree that `save_tree` wrote, as numpy arrays. abstract: its shapes and types.

    FileNotFoundError if it does not exist, ValueError if names or shapes differ.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    how = jax.tree.map(lambda s: ocp.RestoreArgs(restore_type=np.ndarray, dtype=s.dtype), abstract)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=how))
    tree = jax.tree.map(np.asarray, tree)
    wrong = [
        f"{jax.tree_util.keystr(where)}: {array.shape} there, {shape.shape} here"
        for (where, array), shape in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(abstract))
        if array.shape != shape.shape
    ]
    if wrong:
        raise ValueError(f"{path} has other shapes:\n" + "\n".join(wrong))
    return tree


def keep_config(workdir: str | Path, config: dict) -> None:
    """Writes config.json. If the run already had one, prints the options that changed."""
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, **config}, indent=2) + "\n"
    for name, (before, now) in changes(workdir, config).items():
        print(f"changed since this run began: {name} was {before!r}, is {now!r}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def changes(workdir: str | Path, config: dict) -> dict[str, tuple]:
    """Options that differ from the run's config.json: {dotted name: (before, now)}. {} without a config.json."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        return {}
    before, now = dict(leaves(load_config(workdir))), dict(leaves(json.loads(json.dumps(config))))
    names = sorted(before.keys() | now.keys())
    return {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}


def leaves(config: dict, prefix: str = ""):
    """(dotted name, value) of each option."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


VERSION = 2  # of config.json; files without a version are of version 1
# Options that older runs may not have in their config.json, and what they did: of recipes, and of their sections.
YOUNGER_OF_RECIPES = {"on_nonfinite": "stop", "nonfinite_limit": 10, "noise_seed": 0, "watchdog_minutes": 0.0}
YOUNGER = {
    "every": {"checkpoint_minutes": 0.0},
    "optim": {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.0},
    "conditioner": {"trainable": True, "checkpoint": ""},
    "data": {"cache_latents": "", "classes": ""},
}


def migrate(config: dict, path: Path) -> dict:
    """The configuration in `path` as this version has it. ConfigError for a file of a newer version."""
    version = config.pop("version", 1)
    if type(version) is not int:
        raise ConfigError(f"{path} has the version {str(version)[:40]!r}, but it must be an integer")
    if version > VERSION:
        raise ConfigError(f"{path} is of version {version}, newer than {VERSION}: install a newer ldm_jax")
    if version < 2:
        config = {"matmul_precision": "default"} | config
    config |= {name: options | config[name] for name, options in YOUNGER.items() if name in config}
    return YOUNGER_OF_RECIPES | config if "every" in config else config


def load_config(workdir: str | Path) -> dict:
    """The options of a run. Missing if the folder is not a run directory."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise Missing(
            f"{workdir} is not a run directory: it has no config.json. Runs are made by "
            "`python train.py --config=... --workdir=DIR`."
        )
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict) or "task" not in config:
            raise ValueError("it has no 'task'")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not the configuration of a run: {mistaken(path) or error}") from None
    return migrate(config, path)
