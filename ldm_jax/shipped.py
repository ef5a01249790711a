"""Trained models that come with the package, found by name: `ldm_jax.load("shapes_class")`.

Each folder of pretrained/ that holds a config.json is one; nothing else lists them.
"""

from pathlib import Path

from ldm_jax.files import at, is_local

_PACKAGE = Path(__file__).resolve().parent
# An installed package has pretrained/ inside, a checkout beside the package.
FOLDER = _PACKAGE / "pretrained" if (_PACKAGE / "pretrained").is_dir() else _PACKAGE.parent / "pretrained"


def names() -> list[str]:
    """All trained models of the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def is_name(run: str | Path) -> bool:
    """Whether `run` means a trained model of the package: it has its name, and nothing on disk has that path."""
    path = at(run, "the run directory")
    return is_local(path) and str(path) in names() and not path.exists()


def find(run: str | Path) -> Path:
    """Where to read the model `run`: the path itself, or the folder of the package's trained model of that name."""
    return FOLDER / at(run, "the run directory") if is_name(run) else at(run)


def made_of(run: str | Path) -> Path:
    """Where scripts write what they make of a run: its own folder; samples/NAME for a model of the package by its name.
    Nothing is written into the package, nor into a folder that would hide the name."""
    return Path("samples") / run if is_name(run) else at(run, "the run directory")


def hint(run: str | Path) -> str:
    """A sentence that lists the names, for the error about a run directory that does not exist; "" where there is
    something of that path."""
    path = at(run, "the run directory")
    if not is_local(path) or path.exists() or not names():
        return ""
    return f" Trained models that come with the package, by name: {', '.join(names())}."
