"""Reads and writes the files of a run directory. Only this module uses Orbax.

workdir/config.json          all options of the run
workdir/frozen/              arrays that training does not change: first stage and latent scale (diffusion models)
workdir/checkpoints/<step>/  the TrainState, written in the background

Checkpoints and frozen/ have a manifest (manifest.py), which is compared whenever they are read, at the same time. Those
of version 0.1.0 have none, and are read as they are.
"""

import json
import re
import shutil
import zlib
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
from ldm_jax.errors import ConfigError, Damaged, Missing, SaveFailed
from ldm_jax.files import at, mistaken

Tree = Any
FINISHED = "_CHECKPOINT_METADATA"  # a file that Orbax writes into each checkpoint
COMMITTED = "commit_success.txt"  # a file that it writes last, in a bucket
_AFTERWARDS = (FINISHED, COMMITTED)  # what Orbax changes after the manifest: dates, no numbers of the model
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder while Orbax fills it
MADE_FROM = "made_from.json"  # in frozen/: what it was made from
BAD = "bad-"  # begins the names of checkpoints that were set aside


def steps(workdir: str | Path) -> list[int]:
    """Steps of the finished checkpoints, ascending. They may be damaged: `problems` looks into them."""
    folders = (at(workdir) / "checkpoints").glob("[0-9]*")
    return sorted(int(path.name) for path in folders if path.name.isdigit() and _is_finished(path))


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether the run directory holds a finished checkpoint."""
    return bool(steps(workdir))


def _is_finished(folder: Any) -> bool:
    if not files.is_local(folder):  # Orbax writes into the folder itself, and this file at the end
        return (folder / COMMITTED).exists()
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
        return None
    try:
        json.loads((folder / FINISHED).read_text())
    except FileNotFoundError:
        found.append(f"{FINISHED}: it is missing")
    except (OSError, ValueError):
        found.append(f"{FINISHED}: it is damaged")
    return found


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
        if not wrong and (folder / manifest.NAME).exists():
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
        aside = next(self.path / name for name in names if not (self.path / name).exists())
        files.move_folder(self.path / str(step), aside)
        return aside

    def save(self, step: int, state: Tree) -> None:
        """Starts to write in the background. Afterwards the arrays of `state` may be donated. SaveFailed if the save
        before it, or the beginning of this one, has failed."""
        self.wait()
        folder = self.path / str(step)
        if jax.process_index() == 0 and folder.exists() and step not in self.manager.all_steps():
            files.remove_folder(folder)  # it is not a finished checkpoint
        self.saving = step
        try:
            self.manager.save(step, args=ocp.args.StandardSave(state))
        except OSError as error:
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
        if jax.process_index() == 0:
            for folder in _temporaries(self.path, str(step)):
                files.remove_folder(folder, missing_ok=True)
        kept = steps(self.path.parent)
        return SaveFailed(
            f"the checkpoint of step {step} could not be written into {self.path}: {_in_short(error)}. "
            f"{_free(self.path)}What was written of it is removed. "
            f"{f'The newest checkpoint is that of step {kept[-1]}' if kept else 'The run has no checkpoint yet'}. "
            f"{'Make room' if files.is_local(self.path) else 'Mend that'}, then the same command goes on from there"
        )

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


def _free(folder: Path) -> str:
    """A sentence on the free space of the folder's disk; "" for a bucket."""
    if not files.is_local(folder):
        return ""
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB are free there. "


def _temporaries(folder: Path, step: str) -> list[Path]:
    """Folders that Orbax fills, or has left, for a step, or for the steps that a pattern says."""
    if not files.is_local(folder):
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
        raise SaveFailed(
            f"{path} could not be written: {_in_short(error)}. {_free(path.parent)}What was written of it is removed. "
            f"{'Make room' if files.is_local(path) else 'Mend that'}, then give the same command again"
        ) from error


def has_tree(path: Path) -> bool:
    """Whether `save_tree` has written the folder, all of it."""
    return path.exists() if files.is_local(path) else (path / COMMITTED).exists()


def made_from(path: str | Path) -> dict | None:
    """What `save_tree` was told of the tree in the folder; None if it was told nothing. Damaged if the folder is."""
    path = at(path)
    file = path / MADE_FROM
    if not (has_tree(path) and file.exists()):
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


def keep_config(workdir: str | Path, config: dict) -> None:
    """Writes config.json. If the run already had one, prints the options that changed."""
    path = at(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _signed(json.dumps({"version": VERSION, "checksum": _UNSIGNED, **config}, indent=2).encode() + b"\n")
    for name, (before, now) in changes(workdir, config).items():
        print(f"changed since this run began: {name} was {before!r}, is {now!r}")
    files.write(path, text)


# config.json begins with its version and its checksum, the CRC-32 of its bytes with zeros in place of the checksum.
_UNSIGNED = "crc32:00000000"
_SIGNATURE = re.compile(rb'"checksum": "(crc32:[0-9a-f]{8})"')
_HEAD = 80  # bytes


def _signed(text: bytes) -> bytes:
    return text.replace(_UNSIGNED.encode(), f"crc32:{zlib.crc32(text):08x}".encode(), 1)


def _is_changed(text: bytes) -> bool:
    """Whether a config.json is not, to the bit, what was written. One bit cannot hide that there is a checksum."""
    head = text[:_HEAD]
    found = _SIGNATURE.search(head)
    if found is None:
        return b'"checksum"' in head or b'"crc32:' in head
    return _signed(text.replace(found[1], _UNSIGNED.encode(), 1)) != text


def changes(workdir: str | Path, config: dict) -> dict[str, tuple]:
    """Options that differ from the run's config.json: {dotted name: (before, now)}. {} without a config.json.

    Those of the network that config.network.kind does not choose have no effect, and do not count."""
    path = at(workdir) / "config.json"
    if not path.exists():
        return {}
    before, now = dict(leaves(load_config(workdir))), dict(leaves(json.loads(json.dumps(config))))
    kind = now.get("network.kind")
    unused = tuple(f"{other}." for other in ("unet", "dit") if kind not in (None, other))
    names = sorted(name for name in before.keys() | now.keys() if not name.startswith(unused))
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
YOUNGER_OF_RECIPES = {
    "keep_every": 0,
    "init_from": "",
    "on_nonfinite": "stop",
    "nonfinite_limit": 10,
    "noise_seed": 0,
    "watchdog_minutes": 0.0,
    "metrics": {"networks": "efficientnet_lite0", "weights": "weights", "samples": 1000, "reference": 10_000,
                "steps": 0, "guidance": 1.0, "batch": 64, "raw": False, "best": ""},
}  # fmt: skip
YOUNGER = {
    "every": {"metrics": 0, "checkpoint_minutes": 0.0},
    "optim": {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.0},
    "conditioner": {"trainable": True, "checkpoint": ""},
    "data": {"cache_latents": "", "classes": ""},
    "ema": {"kind": "exponential", "sigma_rel": [0.05, 0.1], "snapshot_every": 0, "snapshot_dtype": "float16"},
    "first_stage": {"use_quant_conv": True, "use_post_quant_conv": True},
}
# The same of recipes with a latent scale.
YOUNGER_LATENTS = {"latent_scale_kind": "scalar", "latent_channel_shift": [], "latent_channel_scale": []}
# The same of config.diffusion of diffusion models, of this version's runs, too.
YOUNGER_DIFFUSION = {"kind": "diffusion", "zero_terminal_snr": False, "min_snr_gamma": 5.0, "offset_noise": 0.0,
                     "t_distribution": "uniform", "t_mean": 0.0, "t_std": 1.0}  # fmt: skip


def migrate(config: dict, path: Path) -> dict:
    """The configuration in `path` as this version has it. ConfigError for a file of a newer version."""
    version = config.pop("version", 1)
    config.pop("checksum", None)
    if type(version) is not int:
        raise ConfigError(f"{path} has the version {str(version)[:40]!r}, but it must be an integer")
    if version > VERSION:
        raise ConfigError(f"{path} is of version {version}, newer than {VERSION}: install a newer ldm_jax")
    if version < 2:
        config = {"matmul_precision": "default"} | config
    config |= {name: options | config[name] for name, options in YOUNGER.items() if name in config}
    if "conditioner" in config:
        config |= {"conditioner": _condition(config["conditioner"])}
    if "latent_scale" in config:
        config = YOUNGER_LATENTS | config
    if config.get("task") == "ldm" and "diffusion" in config:
        config = {"network": {"kind": "unet"}} | config | {"diffusion": YOUNGER_DIFFUSION | config["diffusion"]}
    return YOUNGER_OF_RECIPES | config if "every" in config else config


def _condition(section: dict) -> dict:
    """config.conditioner, or one of its parts, with what it may lack."""
    if section.get("kind") == "class":
        return {"embedding_std": 1.0} | section
    if section.get("kind") != "hybrid":
        return section
    parts = {name: _condition(part) for name, part in section.get("parts", {}).items()}
    return {"drop_each": 0.0} | section | ({"parts": parts} if parts else {})


def load_config(workdir: str | Path) -> dict:
    """The options of a run. Missing if the folder is not a run directory, Damaged if its config.json is not what was
    written, ConfigError if it never was one. Those of older versions have no checksum, and are read as they are."""
    path = at(workdir) / "config.json"
    if not path.exists():
        raise Missing(
            f"{workdir} is not a run directory: it has no config.json. Runs are made by "
            "`python train.py --config=... --workdir=DIR`."
        )
    text = path.read_bytes()
    if _is_changed(text):
        raise Damaged(
            f"{path} is damaged: it is not what was written (another CRC-32). Bring it back from a copy. If it was "
            'changed on purpose, remove its line "checksum"'
        )
    try:
        config = json.loads(text)
        if not isinstance(config, dict) or "task" not in config:
            raise ValueError("it has no 'task'")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not the configuration of a run: {mistaken(path) or error}") from None
    return migrate(config, path)
