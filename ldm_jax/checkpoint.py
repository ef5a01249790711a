"""Reads and writes the arrays of a run directory. Only this module uses Orbax.

workdir/frozen/              arrays that training does not change: first stage and latent scale (diffusion models)
workdir/checkpoints/<step>/  the TrainState, written in the background

Checkpoints and frozen/ have a manifest (manifest.py), which is compared whenever they are read, at the same time. Those
of version 0.1.0 have none, and are read as they are. What was written after the first manifest of the run has lost its
own: it is damaged.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from ldm_jax import files, hosts, manifest
from ldm_jax.errors import ConfigError, Damaged, Outage, ReadFailed, SaveFailed, SaveOutage, WriteFailed
from ldm_jax.files import at

Tree = Any
FINISHED = "_CHECKPOINT_METADATA"  # a file that Orbax writes into each checkpoint
COMMITTED = "commit_success.txt"  # a file that it writes last, in a bucket
_AFTERWARDS = (FINISHED, COMMITTED)  # what Orbax changes after the manifest: dates, no numbers of the model
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder while Orbax fills it
MADE_FROM = "made_from.json"  # in frozen/: what it was made from
BAD = "bad-"  # begins the names of checkpoints that were set aside


def steps(workdir: str | Path) -> list[int]:
    """Steps of the finished checkpoints, ascending. They may be damaged: `problems` looks into them."""
    place = at(workdir) / "checkpoints"
    with files.reaching(place):
        folders = [*place.glob("[0-9]*")]
    return sorted(int(path.name) for path in folders if path.name.isdigit() and _is_finished(path))


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether the run directory holds a finished checkpoint."""
    return bool(steps(workdir))


def _is_finished(folder: Any) -> bool:
    if not files.is_local(folder):  # Orbax writes into the folder itself, and this file at the end
        return files.exists(folder / COMMITTED)
    return (folder / FINISHED).exists() or (folder / manifest.NAME).exists()


def problems(workdir: str | Path, step: int) -> list[str] | None:
    """What is wrong with a checkpoint, a line each. [] where all is well, None where no manifest tells."""
    return folder_problems(at(workdir) / "checkpoints" / str(step))


def folder_problems(folder: Path) -> list[str] | None:
    """`problems` of a folder that Orbax wrote: a checkpoint, or frozen/."""
    return _problems(folder, manifest.Comparison(folder))


def _problems(folder: Path, comparison: manifest.Comparison) -> list[str] | None:
    """Waits for the comparison."""
    found = comparison.problems()
    if found is None:
        return [f"{manifest.NAME}: it is missing"] if _had_manifest(folder) else None
    try:
        with files.opened(folder / FINISHED) as file:
            text = file.read()
        json.loads(text)
    except FileNotFoundError:
        found.append(f"{FINISHED}: it is missing")
    except ReadFailed:  # of a bucket: it says nothing about the file
        raise
    except (OSError, ValueError):
        found.append(f"{FINISHED}: it is damaged")
    return found


def _had_manifest(folder: Path) -> bool:
    """Whether a folder without a manifest was written with one: something that the run wrote before it has one, or what
    came with manifests."""
    if not folder.name.isdigit():
        return files.exists(folder / MADE_FROM)
    before = (other for other in steps(folder.parents[1]) if other < int(folder.name))
    older = [folder.parents[1] / "frozen", *(folder.parent / str(other) for other in before)]
    return any(files.exists(other / manifest.NAME) for other in older)


def _in_short(error: Exception) -> str:
    """An error of Orbax in a line. The cause stands at its end, after long paths."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line if len(line) <= 250 else f'...{line[-200:]}'}"


def _damaged_step(workdir: str | Path, step: int, wrong: list[str]) -> Damaged:
    """The error for a checkpoint that is not whole: what is wrong, and which other one is whole."""
    others = [other for other in reversed(steps(workdir)) if other != step]
    good = next((other for other in sorted(others, key=lambda s: s > step) if not problems(workdir, other)), None)
    remedy = (
        "No other checkpoint of the run is whole: bring the folder back from a copy"
        if good is None
        else f"The checkpoint of step {good} is whole: ask for it with --checkpoint={good} (Python: checkpoint={good})"
    )
    return Damaged(f"{at(workdir) / 'checkpoints' / str(step)} is damaged: {manifest.few(wrong)}. {remedy}")


@contextmanager
def _reading(folder: Path, damaged: Callable[[list[str]], Damaged] | None) -> Iterator[None]:
    """While the block reads the folder, threads compare its files with the manifest: at the end of the block they are
    the ones that were written. Otherwise the error is `damaged` of what is wrong, whatever has happened in the block.

    damaged: None where they were compared before. Without a manifest, an error of the block is Damaged.
    """
    comparison = damaged and manifest.Comparison(folder)
    wrong = comparison and comparison.early
    try:
        if not wrong:
            yield
            wrong = comparison and _problems(folder, comparison)
    except Exception as error:
        wrong = comparison and _problems(folder, comparison)
        if not wrong and files.exists(folder / manifest.NAME):
            raise
        if not wrong:
            raise Damaged(
                f"{folder} cannot be read: {_in_short(error)}. It has no {manifest.NAME}, so nothing tells which file "
                "is damaged: bring the folder back from a copy, or remove it so that an older checkpoint is used"
            ) from error
    if wrong:
        raise damaged(_problems(folder, comparison))


_AHEAD: dict[Path, manifest.Comparison] = {}


def compare_ahead(workdir: str | Path) -> None:
    """Threads begin to compare the newest checkpoint with its manifest, while the run is prepared. `Checkpoints.latest`
    waits for them. For a run whose directory this process has locked."""
    if jax.process_index() == 0 and (found := steps(workdir)):
        folder = files.absolute(workdir) / "checkpoints" / str(found[-1])
        _AHEAD[folder] = manifest.Comparison(folder)


class _FinishedSteps(ocp.path.step.NameFormat):
    """Orbax's names for the folders of checkpoints. Orbax itself would also take an empty folder for a checkpoint."""

    standard = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        return self.standard.build_name(step)

    def find_all(self, base_path: Any) -> Iterator:
        return (step for step in self.standard.find_all(base_path) if _is_finished(step.path))

    def find_step(self, base_path: Any, step: int) -> Any:
        metadata = self.standard.find_step(base_path, step)
        if not _is_finished(metadata.path):
            raise ValueError(f"{metadata.path} is not a finished checkpoint")
        return metadata


class Checkpoints:
    """The checkpoints of a run that trains, by step.

    The newest `keep` are kept, and with `keep_every` above 0 also those whose step it divides; others are deleted.
    ConfigError for numbers that are too small. What killed saves have left is removed. On several hosts all make the
    same calls.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, keep_every: int = 0):
        if keep < 1:
            raise ConfigError(f"config.keep={keep} would delete every checkpoint: it must be at least 1")
        if keep_every < 0:
            raise ConfigError(f"config.keep_every={keep_every} must be a number of steps, or 0 (off)")
        self.path = files.absolute(workdir) / "checkpoints"
        self.saving: int | None = None  # the step that is being written, perhaps
        self.whole: set[int] = set()  # steps whose files were compared with their manifest
        hosts.decided(self._tidy)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=True, create=True,
            step_name_format=_FinishedSteps(),
            # Orbax calls it on the first host when all hosts have written, before the folder gets its final name.
            async_options=ocp.AsyncOptions(post_finalization_callback=lambda: _sign(self.path, self.saving)),
        )  # fmt: skip
        self.manager = ocp.CheckpointManager(self.path, options=options)

    def _tidy(self) -> None:
        for folder in _temporaries(self.path, "[0-9]*"):
            if not files.is_local(folder) and folder_problems(folder) == []:  # copied here, or killed just then
                (folder / COMMITTED).write_bytes(b"")
                continue
            print(f"removed {folder}, which a save that was killed had left")
            files.remove_folder(folder)

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is whole; None if the run has no checkpoints yet.

        Newer ones that are not whole are named, and become checkpoints/bad-STEP. Damaged if none is whole; then they
        stay where they are.
        """
        step = hosts.decided(self._newest_whole)
        self.manager.reload()
        if step is not None:
            self.whole.add(step)
        return step

    def _newest_whole(self) -> int | None:
        bad = {}
        for step in reversed(steps(self.path.parent)):
            folder = self.path / str(step)
            wrong = _problems(folder, _AHEAD.pop(folder, None) or manifest.Comparison(folder))
            if not wrong:
                break
            bad[step] = wrong
        else:
            aside = sorted(path.name for path in self.path.glob(f"{BAD}*"))
            if not bad and not aside:
                return None
            lines = [f"    {self.path / str(step)}: {manifest.few(wrong)}" for step, wrong in bad.items()]
            lines += [f"    {self.path / name}: set aside before" for name in aside]
            raise Damaged(
                "no checkpoint of this run is whole:\n" + "\n".join(lines) + "\nBring one back from a copy. To begin "
                "anew, give another --workdir."
            )
        for other, others_wrong in bad.items():
            aside = self._set_aside(other)
            print(f"the checkpoint of step {other} is damaged: {manifest.few(others_wrong)}. It is now {aside}")
        if bad:
            print(f"going on from step {step} instead: the {max(bad) - step} steps after it are done again")
        if wrong is None:
            print(f"the checkpoint of step {step} is of an older version, without a manifest: it is read unchecked")
        return step

    def _set_aside(self, step: int) -> Path:
        names = (f"{BAD}{step}{end}" for end in ("", *(f"-{n}" for n in range(2, 10_000))))
        aside = next(self.path / name for name in names if not files.exists(self.path / name))
        files.move_folder(self.path / str(step), aside)
        return aside

    def save(self, step: int, state: Tree) -> None:
        """Starts to write in the background. Afterwards the arrays of `state` may be donated. SaveFailed if the save
        before it, or the beginning of this one, has failed."""
        self.wait()
        folder = self.path / str(step)
        if jax.process_index() == 0 and files.exists(folder) and step not in self.manager.all_steps():
            files.remove_folder(folder)  # it is not a finished checkpoint
        self.saving = step
        try:
            self.manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:
            if files.is_local(self.path) and not isinstance(error, OSError):
                raise
            raise self._failed(error) from error

    def check(self) -> None:
        """Does not wait. SaveFailed, once, if the save that began last has ended with an error."""
        if not self.manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written. SaveFailed, once, if it could not be written."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self.saving = None

    def _failed(self, error: Exception) -> SaveFailed:
        """The error to raise. Removes what the save has left."""
        step, self.saving = self.saving, None
        told = (
            f"the checkpoint of step {step} could not be written into {self.path}: {_in_short(error)}. "
            f"{files.free_space(self.path)}"
        )
        try:
            if jax.process_index() == 0:
                for folder in _temporaries(self.path, str(step)):
                    files.remove_folder(folder, missing_ok=True)
            kept = steps(self.path.parent)
        except (ReadFailed, WriteFailed) as away:  # a bucket
            return _save_failed(self.path, away, f"{told}What is there could not be looked at: {away}")
        return _save_failed(
            self.path, error, f"{told}What was written of it is removed. "
            f"{f'The newest checkpoint is that of step {kept[-1]}' if kept else 'The run has no checkpoint yet'}. "
            f"{files.remedy(self.path)}, then the same command goes on from there"
        )  # fmt: skip

    def restore(self, abstract: Tree, step: int) -> Tree:
        """The state at `step`.

        abstract: tree of ShapeDtypeStruct with the shapes, types and shardings of the result; they need not be those of
        the devices that wrote the checkpoint. FileNotFoundError if there is no such step; it lists the steps. Damaged
        if its files are not those that were written.
        """
        steps = sorted(self.manager.all_steps())
        if step not in steps:
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.path}; there are: {steps or 'none'}")
        if step not in self.whole:
            hosts.decided(lambda: self._check(step))
        with _reading(self.path / str(step), None):
            state = self.manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree.map(_own, state)

    def _check(self, step: int) -> None:
        if wrong := problems(self.path.parent, step):
            raise _damaged_step(self.path.parent, step, wrong)

    def close(self) -> None:
        """Returns when everything is written. SaveFailed if it could not be written."""
        try:
            self.wait()
        finally:
            self.manager.close()


def _temporaries(folder: Path, step: str) -> list[Path]:
    """Folders that Orbax fills, or has left, for a step, or for the steps that a pattern says."""
    if not files.is_local(folder):
        with files.reaching(folder):
            return [path for path in folder.glob(step) if path.name.isdigit() and not _is_finished(path)]
    found = folder.glob(f"{step}{_TEMPORARY}*")
    return [path for path in found if re.match(rf"\d+{re.escape(_TEMPORARY)}", path.name) and path.is_dir()]


def _sign(folder: Path, step: int | None) -> None:
    """Writes the manifest into the checkpoint that Orbax is about to finish."""
    (temporary,) = _temporaries(folder, str(step))
    manifest.write(temporary, skip=_AFTERWARDS)


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
    """A part of the checkpoint at `step`, as numpy arrays. abstract: nested dict of the shapes to read.

    Damaged if a file of the checkpoint, of whatever part, is not the one that was written.
    """
    wanted = _without_empty(abstract)
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
    folder = files.absolute(workdir) / "checkpoints" / str(step)
    with _reading(folder, lambda wrong: _damaged_step(workdir, step, wrong)):
        leaves = jax.tree.leaves(ocp.PyTreeCheckpointer().restore(folder / "default", args=args))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _without_empty(part: Tree) -> Tree:
    """The tree without empty dicts, which Orbax does not store."""
    if not isinstance(part, dict):
        return part
    kept = {name: _without_empty(value) for name, value in part.items()}
    return {name: value for name, value in kept.items() if not isinstance(value, dict) or value}


def _save_failed(path: Path, error: Exception, told: str) -> SaveFailed:
    passes = not files.is_local(path) and (isinstance(error, Outage) or files.may_pass(error))
    return (SaveOutage if passes else SaveFailed)(told)


def save_tree(path: str | Path, tree: Tree, made_from: dict | None = None) -> None:
    """Writes a tree of arrays, what it was made from, and a manifest. The folder `path` appears when it is complete.
    SaveFailed if it could not be written."""
    path = files.absolute(path)

    def sign() -> None:
        temporary = path
        if files.is_local(path):
            left = path.parent.glob(f"{path.name}{_TEMPORARY}*")  # perhaps also one of a start that was killed
            temporary = max(left, key=lambda folder: folder.stat().st_mtime_ns)
        if made_from is not None:
            (temporary / MADE_FROM).write_text(json.dumps(made_from, indent=1) + "\n")
        manifest.write(temporary, skip=_AFTERWARDS)

    options = ocp.AsyncOptions(post_finalization_callback=sign)
    try:
        with ocp.StandardCheckpointer(async_options=options) as checkpointer:
            checkpointer.save(path, tree, force=True)
    except Exception as error:
        if files.is_local(path) and jax.process_index() == 0:
            for folder in path.parent.glob(f"{path.name}{_TEMPORARY}*"):
                files.remove_folder(folder, missing_ok=True)
        raise _save_failed(
            path,
            error,
            f"{path} could not be written: {_in_short(error)}. {files.free_space(path.parent)}"
            "What was written of it is removed. "
            f"{files.remedy(path)}, then give the same command again",
        ) from error


def has_tree(path: Path) -> bool:
    """Whether `save_tree` has written the folder, all of it."""
    return files.exists(path if files.is_local(path) else path / COMMITTED)


def made_from(path: str | Path) -> dict | None:
    """What `save_tree` was told of the tree in the folder; None if it was told nothing. Damaged if the folder is."""
    path = at(path)
    file = path / MADE_FROM
    if not (has_tree(path) and files.exists(file)):
        return None
    if wrong := manifest.problems(path, only=(MADE_FROM,)):
        raise manifest.damaged(path, wrong)
    return json.loads(file.read_text())


def restore_tree(path: str | Path, abstract: Tree) -> Tree:
    """Reads a tree that `save_tree` wrote, as numpy arrays. abstract: its shapes and types.

    FileNotFoundError if it does not exist, ValueError if names or shapes differ, Damaged if its files are not those
    that were written.
    """
    path = files.absolute(path)
    if not has_tree(path):
        raise FileNotFoundError(f"{path} does not exist")
    how = jax.tree.map(lambda s: ocp.RestoreArgs(restore_type=np.ndarray, dtype=s.dtype), abstract)
    with _reading(path, lambda wrong: manifest.damaged(path, wrong)), ocp.PyTreeCheckpointer() as checkpointer:
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
