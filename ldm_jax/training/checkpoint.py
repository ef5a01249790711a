"""Everything on disk that a run directory holds, behind one module (Orbax changes often, our files do not).

    workdir/config.json          the full configuration of the run
    workdir/frozen/              what training never changes: first stage and latent scale (LDM runs)
    workdir/checkpoints/<step>/  TrainState, written asynchronously, visible only when complete
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

Tree = Any


class Checkpoints:
    """The numbered checkpoints of a run; the newest `keep` stay. `read_only`: nothing is made or deleted."""

    def __init__(self, workdir: str | Path, keep: int = 3, read_only: bool = False):
        self.path = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, enable_async_checkpointing=True, create=not read_only
        )
        self.manager = ocp.CheckpointManager(self.path, options=options)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Starts writing in the background; the arrays may be donated as soon as this returns."""
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract: Tree, step: int | None = None) -> Tree:
        """The state at `step` (default: the newest) with the shapes, types and shardings of `abstract`.

        abstract: tree of ShapeDtypeStruct with `sharding` set, so a checkpoint fits any number of devices.
        Raises FileNotFoundError with the steps that exist.
        """
        step = self.latest() if step is None else step
        steps = sorted(self.manager.all_steps())
        if step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.path}; there are: {steps or 'none'}")
        state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        # Restored buffers cannot be donated; copies made by XLA can.
        return jax.jit(lambda x: x, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(state)

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self.manager.close()


def save_tree(path: str | Path, tree: Tree) -> None:
    """Writes a tree once (atomically: a partial write is not visible under `path`)."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), tree, force=True)


def restore_tree(path: str | Path, abstract: Tree) -> Tree:
    """Reads what `save_tree` wrote. Raises FileNotFoundError when there is nothing."""
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, abstract)


def keep_config(workdir: str | Path, config: dict) -> None:
    """Writes config.json atomically; prints which options changed when the run had one already."""
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    for name, (before, now) in changes(workdir, config).items():
        print(f"changed since this run began: {name} was {before!r}, is {now!r}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def changes(workdir: str | Path, config: dict) -> dict[str, tuple]:
    """Options that differ from the run's config.json: dotted name -> (before, now). Empty without a config.json."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        return {}
    before, now = (dict(_leaves(json.loads(t))) for t in (path.read_text(), json.dumps(config)))
    names = sorted(before.keys() | now.keys())
    return {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether the run directory holds a finished checkpoint."""
    return any(p.name.isdigit() for p in (Path(workdir) / "checkpoints").glob("*"))


def _leaves(config: dict, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def load_config(workdir: str | Path) -> dict:
    """The configuration of a run. Raises FileNotFoundError that says what a run directory is."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} is not a run directory: it has no config.json. Runs are made by "
            "`python train.py --config=... --workdir=DIR`."
        )
    return json.loads(path.read_text())
