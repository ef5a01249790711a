"""What made an image: its request as JSON, as a command, as Python, and inside its PNG file.

    found = ldm_jax.read_settings("samples/000000.png")
    model = found["model"]
    pipe = ldm_jax.load(model["path"], checkpoint=model["step"], averaged=not model["raw"])
    images = pipe.sample(**found["request"])

A PNG of `Images.save`, sample.py or the page has the text entry `ldm_jax`, which holds one JSON object (`record`).
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ldm_jax
from ldm_jax import conditions
from ldm_jax.errors import RequestError
from ldm_jax.files import mistaken
from ldm_jax.images import open_image
from ldm_jax.request import SampleRequest

KEY = "ldm_jax"  # the name of the PNG's text entry
PAIRS = ("interpolate", "guidance_interval")  # options of two values
NO_FILE = ("noise", "fields")  # arrays that no option of sample.py takes
FILES = {"layout": "layout.json", "vectors": "vectors.npy"}  # the others are pictures
WIDTH = 100  # columns of Python code


class Model(NamedTuple):
    """Where a model came from. step: of its checkpoint; raw: not the averaged parameters, though there are some."""

    path: str
    step: int | None = None
    raw: bool = False


def record(request: SampleRequest, model: Model) -> dict[str, Any]:
    """What is written into PNG files, as JSON has it.

    program: "ldm_jax VERSION". model: its path, step, and whether it is raw. request: the options that are not the
    default, and the seed: `pipe.sample(**request)`. command: the same of sample.py, None where it has no such option.
    not_kept: {option: what it was} of pictures and arrays that were given in memory, and are not in `request`.
    """
    given = _given(request)
    kept = {name: _kept(value) for name, value in given.items() if _is_kept(value)}
    return {
        "program": f"ldm_jax {ldm_jax.__version__}",
        "model": model._asdict(),
        "request": kept,
        "command": command(request, model),
        "not_kept": {name: _described(value) for name, value in given.items() if name not in kept},
    }


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings inside a PNG file: `record`'s entries, and "index", the image's number in its request; a grid has
    none.

    RequestError where the file is no picture, or has no such settings.
    """
    try:
        with open_image(path) as image:
            texts = dict(getattr(image, "text", {}))
    except Exception as error:  # Pillow's decoders raise nearly any kind for a damaged file
        reason = mistaken(path) or str(error)[:300] or type(error).__name__
        raise RequestError(f"{path} is not a picture that can be read: {reason}") from None
    try:
        found = json.loads(texts[KEY])
        index = {"index": int(texts["index"])} if "index" in texts else {}
        return {name: found[name] for name in ("program", "model", "request", "command", "not_kept")} | index
    except (KeyError, TypeError, ValueError, RecursionError):
        raise RequestError(
            f"{path} has no settings: only PNG files that sample.py, Images.save or the page wrote have them, and many "
            "programs leave them out when they save such a file again"
        ) from None


def command(request: SampleRequest, model: Model) -> str | None:
    """The command that makes the same images, None where sample.py has no such option. A picture that was given in
    memory is a file of its option's name there: --image=image.png."""
    words = [f"--workdir={shlex.quote(model.path)}"]
    words += [f"--checkpoint={model.step}"] if model.step is not None else []
    words += ["--no-ema"] if model.raw else []
    for name, value in _given(request).items():
        options = _options(name, value)
        if options is None:
            return None
        words += options
    return " ".join(["python sample.py", *words])


def python(request: SampleRequest, model: Model) -> str:
    """Lines of Python that make the same images. Pictures that were given in memory are files as in `command`; arrays
    that are no pictures are variables of their option's name."""
    how = [json.dumps(model.path, ensure_ascii=False)]
    how += [f"checkpoint={model.step}"] if model.step is not None else []
    how += ["averaged=False"] if model.raw else []
    words = [f"{name}={_literal(name, value)}" for name, value in _given(request).items()]
    call = f"images = pipe.sample({', '.join(words)})"
    if len(call) > WIDTH:
        call = "images = pipe.sample(\n" + "".join(f"    {word},\n" for word in words) + ")"
    return f'import ldm_jax\n\npipe = ldm_jax.load({", ".join(how)})\n{call}\nimages.save("images")\n'


def file_of(option: str) -> str:
    """The file's name that stands for a picture that was given in memory."""
    return FILES.get(option, f"{option}.png")


def _given(request: SampleRequest) -> dict[str, Any]:
    """{option: value} of what is not the default, and the seed; options of further kinds of condition are as others."""
    found = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name == "conditions":
            found |= value
        elif field.name == "seed" or not _is_default(value, field.default):
            found[field.name] = value
    return found


def _is_default(value: Any, default: Any) -> bool:
    return isinstance(value, bool | int | float | str | Path | None) and value == default


def _options(name: str, value: Any) -> list[str] | None:
    flag = f"--{name.replace('_', '-')}"
    if name in NO_FILE:
        return None
    if isinstance(value, bool):
        return [flag] * value
    if name == "size":
        return [f"{flag}={'x'.join(map(str, value))}"]
    if name in PAIRS:
        names = (f"{name}_{i}.png" for i in range(2))
        return [flag, *(shlex.quote(str(v)) if _is_kept(v) else file for v, file in zip(value, names))]
    if (name == "layout" and not isinstance(value, str | Path)) or not _is_kept(value):
        return [f"{flag}={file_of(name)}"]
    known = conditions.all_options().get(name)
    values = _kept(value)
    if name == "guidance" and isinstance(values, list):
        return [flag, *map(str, values)]
    if isinstance(values, list) and not (known and known.repeats):
        return [f"{flag}={file_of(name)}"] if name == "vectors" else None
    return [f"{flag}={shlex.quote(str(v))}" for v in (values if isinstance(values, list) else [values])]


def _literal(name: str, value: Any) -> str:
    if name in NO_FILE:
        return name
    if name in PAIRS and not _is_kept(value):
        ends = (_kept(v) if _is_kept(v) else f"{name}_{i}.png" for i, v in enumerate(value))
        return repr(tuple(ends))
    if not _is_kept(value):
        return f'"{file_of(name)}"'
    kept = _kept(value)
    return json.dumps(kept, ensure_ascii=False) if isinstance(kept, str) else repr(kept)


def _is_kept(value: Any) -> bool:
    """Whether JSON can hold it: names, numbers, and lists of these; not pictures."""
    try:
        _kept(value)
    except TypeError:
        return False
    return True


def _kept(value: Any) -> Any:
    """The value as JSON has it; infinity, for which it has no number, is "inf". TypeError for pictures, and for arrays
    of more than one axis."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim < 2):
        value = value.tolist()
    if isinstance(value, Path) or (isinstance(value, float) and math.isinf(value)):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _kept(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_kept(one) for one in value]
    raise TypeError(type(value).__name__)


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{kind} {value.dtype} {'x'.join(map(str, value.shape))}"
    size = getattr(value, "size", None)
    return f"{kind} {size[0]}x{size[1]}" if isinstance(size, tuple) and len(size) == 2 else kind
