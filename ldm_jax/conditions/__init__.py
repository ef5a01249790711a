"""The kinds of condition, `config.conditioner.kind`: a file for each. All files of this folder are imported.

To add one, put a file with a subclass of `Condition` (base.py) here; docs/architecture.md shows a whole one.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ldm_jax.conditions.base import KINDS, Condition, Option
from ldm_jax.errors import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def condition_of(config: "ConfigDict") -> Condition:
    """The condition of a diffusion model. ConfigError for an unknown kind."""
    kind = config.conditioner.kind
    if kind not in KINDS:
        raise ConfigError(f"config.conditioner.kind={kind!r} is not one of {', '.join(sorted(KINDS))}")
    return KINDS[kind](config.conditioner)


def needs_context(section: dict) -> bool:
    """Whether a section of a recipe is that of a kind, or of parts, with a context."""
    return any(KINDS[kind].has_context for kind in (section["kind"], *section.get("parts", ())))


def all_options() -> dict[str, Option]:
    """Every option of any kind, by name, in the order in which they are listed for users."""
    return {
        option.name: option
        for kind in KINDS.values()
        for option in (*(option for group in kind.options for option in group), *kind.extra_options)
    }
