"""Recipes: found by name, read with the options of a command line.

Each file in configs/ is a recipe: one model, or one that its variant chooses; its docstring says how it is run. What
recipes share is here: `sections` and `laptop` (the small ones).
"""

import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

from ldm_jax.errors import ConfigError
from ldm_jax.files import at, local

# Ends of options that may lie in a bucket: run directories, data and tokenizers.
IN_BUCKETS = (".checkpoint", "config.guides", "config.init_from", "data.path", "data.classes", "data.cache_latents",
              ".tokenizer")  # fmt: skip
_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package has configs/ inside, a checkout beside the package.
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """All recipes in configs/."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def variants(name: str) -> tuple[str, ...]:
    """The models of a recipe that holds several, else (). Each is `NAME:VARIANT`."""
    return tuple(getattr(_module(name), "VARIANTS", ()))


def find(name: str) -> Path:
    """The file of a recipe. `name` is that of a file in configs/, or a path; a variant after a colon is left out.

    Raises ConfigError with similar names if there is none.
    """
    file = name.partition(":")[0]
    path = Path(file) if file.endswith(".py") else FOLDER / f"{file}.py"
    if file and path.is_file():
        return path
    near = difflib.get_close_matches(Path(file).stem, names(), n=6, cutoff=0.5)
    what = f"there is no file {file}" if file.endswith(".py") else f"there is no recipe {file!r}"
    raise ConfigError(f"{what}; {'similar recipes' if near else 'the recipes'}: {', '.join(near or names())}")


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of "NAME[:VARIANT]" or "PATH.py[:VARIANT]", changed by options "--config.X=Y".

    Raises ConfigError for a recipe, a variant or an option that does not exist, and for a value of the wrong type;
    UsageError for a path that is an address.
    """
    _, colon, variant = name.partition(":")
    return override(_module(name).get_config(*[variant] if colon else []), overrides, name)


def override(config: ConfigDict, overrides: Sequence[str], name: str) -> ConfigDict:
    """The configuration changed by options "--config.X=Y". name: of the configuration, for messages.

    Raises ConfigError for an option that does not exist, and for a value of the wrong type.
    """
    if overrides:  # the flags cost time: they write the whole configuration as text, twice
        config = _with_flags(config, overrides, name)
    _check_paths(config, "config")
    return config.lock()


def _with_flags(config: ConfigDict, overrides: Sequence[str], name: str) -> ConfigDict:
    _check_options(config, overrides)
    values, argv = flags.FlagValues(), ["", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error
    if rest:
        raise ConfigError(f"unexpected: {' '.join(rest)} (options of the recipe are written --config.NAME=VALUE)")
    return holder.value


def _check_paths(section: ConfigDict, name: str) -> None:
    """Puts paths of this machine in place of addresses file:///... UsageError for an option that is another address
    where a folder or a file is meant."""
    for option, value in section.items():
        if isinstance(value, ConfigDict):
            _check_paths(value, f"{name}.{option}")
        elif isinstance(value, str) and "://" in value:
            place = at if f"{name}.{option}".endswith(IN_BUCKETS) else local
            section[option] = str(place(value, f"--{name}.{option}"))


def _check_options(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Raises ConfigError with similar names if one is not an option of the recipe."""
    known = list(_options(config, "--config."))
    for override in overrides:
        option = override.partition("=")[0].replace("--noconfig.", "--config.")
        if option.startswith("--config.") and option not in known:
            near = difflib.get_close_matches(option, known, n=3, cutoff=0.8)
            similar = f"; similar: {', '.join(near)}" if near else ""
            raise ConfigError(f"{option} is no option of this recipe{similar}")


def _options(section: ConfigDict, prefix: str) -> Iterator[str]:
    for name, value in section.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from _options(value, f"{prefix}{name}.")


def _module(name: str) -> ModuleType:
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
