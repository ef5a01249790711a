"""config.json of a run directory: written with a version and a checksum, read as this version has it."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm_jax import files
from ldm_jax.errors import ConfigError, Damaged, Missing
from ldm_jax.files import at, mistaken


def save(workdir: str | Path, config: dict) -> None:
    """Writes config.json. If the run already had one, prints the options that changed. WriteFailed if it cannot."""
    path = at(workdir) / "config.json"
    text = _signed(json.dumps({"version": VERSION, "checksum": _UNSIGNED, **config}, indent=2).encode() + b"\n")
    for name, (before, now) in changes(workdir, config).items():
        print(f"changed since this run began: {name} was {before!r}, is {now!r}")
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
    if not files.exists(path):
        return {}
    before, now = dict(leaves(load(workdir))), dict(leaves(json.loads(json.dumps(config))))
    kind = now.get("network.kind")
    unused = tuple(f"{other}." for other in ("unet", "dit") if kind not in (None, other))
    names = sorted(name for name in before.keys() | now.keys() if not name.startswith(unused))
    return {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}


def leaves(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
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
    "first_stage": {"use_quant_conv": True, "use_post_quant_conv": True, "norm_groups": 32},
    "unet": {"norm_groups": 32},
}
# The same of recipes with a latent scale.
YOUNGER_LATENTS = {"latent_scale_kind": "scalar", "latent_channel_shift": [], "latent_channel_scale": []}
# The same of config.diffusion of diffusion models, of this version's runs, too.
YOUNGER_DIFFUSION = {"kind": "diffusion", "zero_terminal_snr": False, "min_snr_gamma": 5.0, "offset_noise": 0.0,
                     "t_distribution": "uniform", "t_mean": 0.0, "t_std": 1.0}  # fmt: skip


# Sections, where they are there.
_SECTIONS = ("network", "unet", "dit", "classifier", "loss", "diffusion", "sample", "mesh", *YOUNGER)
_TYPES = {dict: "a section", str: "a text", bool: "true or false", list: "a list", int: "an integer", float: "a number"}


def _check(config: dict, path: Path) -> None:
    """ConfigError that names an option of a wrong type, of those whose type is known here."""
    for name, value, default in _known(config):
        if type(value) is not type(default) and not (type(value) is int and type(default) is float):
            raise ConfigError(f"{path}: {name} is {str(value)[:40]!r}, but it must be {_TYPES[type(default)]}")


def _known(config: dict) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, another value of the type that it must have). Who takes a wrong one takes no further one."""
    top = YOUNGER_OF_RECIPES | YOUNGER_LATENTS | {"task": "", "latent_scale": 0.0} | {name: {} for name in _SECTIONS}
    yield from ((name, config[name], default) for name, default in top.items() if name in config)
    known = YOUNGER | {"metrics": YOUNGER_OF_RECIPES["metrics"], "diffusion": YOUNGER_DIFFUSION}
    for section, options in known.items():
        there = config.get(section, {})
        yield from ((f"{section}.{name}", there[name], default) for name, default in options.items() if name in there)
    yield from _known_parts("conditioner", config.get("conditioner", {}))


def _known_parts(name: str, section: dict) -> Iterator[tuple[str, Any, Any]]:
    """Of a hybrid condition."""
    if "parts" in section:
        yield f"{name}.parts", section["parts"], {}
        for part, options in section["parts"].items():
            yield f"{name}.parts.{part}", options, {}
            yield from _known_parts(f"{name}.parts.{part}", options)


def migrate(config: dict, path: Path) -> dict:
    """The configuration in `path` as this version has it. ConfigError for a file of a newer version, and for options of
    a wrong type."""
    version = config.pop("version", 1)
    config.pop("checksum", None)
    if type(version) is not int:
        raise ConfigError(f"{path} has the version {str(version)[:40]!r}, but it must be an integer")
    if version > VERSION:
        raise ConfigError(f"{path} is of version {version}, newer than {VERSION}: install a newer ldm_jax")
    _check(config, path)
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


def load(workdir: str | Path) -> dict:
    """The options of a run. Missing if the folder is not a run directory, Damaged if its config.json is not what was
    written, ConfigError if it never was one. Those of older versions have no checksum, and are read as they are."""
    path = at(workdir) / "config.json"
    if not files.exists(path):
        raise Missing(
            f"{workdir} is not a run directory: it has no config.json. Runs are made by "
            "`python train.py --config=... --workdir=DIR`."
        )
    with files.opened(path) as file:
        text = file.read()
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
