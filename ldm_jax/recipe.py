"""Reads a recipe of configs/, with the overrides of a command line, for scripts whose other options are argparse's."""

from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of "configs/NAME.py[:variant]" with "--config.X=Y" overrides.

    Raises ValueError that names the recipe, the overrides and what is wrong with them.
    """
    values, argv = flags.FlagValues(), ["", f"--config={name}", *overrides]
    holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        _ = holder.value.task  # a recipe that failed to load says so only when it is looked at
    except (flags.Error, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{' '.join(argv[1:])}: {error}") from error
    return holder.value
