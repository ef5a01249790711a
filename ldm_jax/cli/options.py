"""What all commands and scripts share: how options are written, a recipe on the command line, how errors are shown.

Imports nothing slow.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ldm_jax import files
from ldm_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OF_RECIPE = ("--config.", "--noconfig.")  # options that the recipe has, not the command


class Parser(argparse.ArgumentParser):
    """argparse's, but the description is shown as it is written, options are not abbreviated, and `-` and `_` are
    alike in their names: --require_accelerator is --require-accelerator. An option of the type Path is of this machine:
    addresses such as gs://bucket/images are refused."""

    def __init__(self, description: str | None, **settings):
        settings |= dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        super().__init__(description=description, **settings)

    def add_argument(self, *names: str, **settings) -> argparse.Action:
        if settings.get("type") is Path:
            settings["type"] = _path
        return super().add_argument(*dict.fromkeys(_hyphens(name) for name in names), **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_hyphens(arg) for arg in args], namespace)

    def parse_with_overrides(self, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """(arguments, the options of the recipe). Exits with 2 for options that nobody has."""
        args, rest = self.parse_known_args(argv)
        unknown = [arg for arg in rest if arg.startswith("-") and not arg.startswith(_OF_RECIPE)]
        if unknown:
            self.error(f"unexpected: {' '.join(unknown)} (options of the recipe are written --config.NAME=VALUE)")
        return args, rest

    def recipe(self, name: str, overrides: Sequence[str]) -> "ConfigDict":
        """The configuration of a recipe. Exits with 2 for a recipe or an option that does not exist."""
        from ldm_jax import recipes

        try:
            return recipes.load(name, overrides)
        except UsageError as error:
            self.error(str(error))

    def make_local(self, args: argparse.Namespace, *names: str, **others: str) -> None:
        """Paths of this machine in place of the addresses file:///... of these arguments, a path or a list of them
        each. Exits with 2 where one is another address, such as gs://bucket/images. others: {name in args: the option},
        where they are not alike."""
        for name, option in ({name: _hyphens(f"--{name}") for name in names} | others).items():
            given = getattr(args, name)
            made = [self._local(path, option) for path in ([given] if isinstance(given, str | None) else given)]
            setattr(args, name, made[0] if isinstance(given, str | None) else made)

    def _local(self, path: str | None, option: str) -> str | None:
        if path is None or "://" not in path:
            return path
        try:
            return str(files.local(path, option))
        except UsageError as error:
            self.error(str(error))

    def check_run(self, option: str, path: str | None) -> None:
        """Exits with 2 where the option's path is an address at which no run directory can be."""
        try:
            files.at(path or "", option)
        except UsageError as error:
            self.error(str(error))


def numbers(kind: Callable[[str], float]) -> Callable[[str], tuple]:
    """For `type=`: numbers separated by commas, each an int or a float."""

    def read(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(",") if part)

    read.__name__ = "list of numbers"  # in the error about another text
    return read


def _path(text: str) -> Path:
    try:
        return files.local(text, "")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None


def _hyphens(arg: str) -> str:
    """The argument with hyphens in its option's name, if it has one."""
    if not arg.startswith("--") or arg.startswith(_OF_RECIPE):
        return arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value


@contextmanager
def mistakes(command: str, told: Callable[[str], str] = str) -> Iterator[None]:
    """Ends the command (`stop`) where the block raises a UsageError; `told` may change what is shown of it."""
    try:
        yield
    except UsageError as error:
        stop(f"{command}: {told(str(error))}")


def stop(message: object) -> NoReturn:
    """Ends a command with an error that the user can mend: one paragraph and exit code 2."""
    print(f"\n{message}\n", file=sys.stderr)
    sys.exit(2)
