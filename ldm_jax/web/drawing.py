"""The field that is drawn on with the mouse, as HTML; draw.js makes it work. No Gradio here."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm_jax.images import to_pil
from ldm_jax.web.form import colour

SCRIPT = Path(__file__).with_name("draw.js")
SHOWN = 384  # the longer side on the page, in its pixels
EXACT = 2**16  # pixels of a picture that is shown as PNG; larger ones as JPEG
CSS = """
.ldm-draw canvas { touch-action: none; cursor: crosshair; border: 1px solid #888; background-color: #fff;
  background-size: 100% 100%; image-rendering: pixelated; max-width: 100%; }
.ldm-draw[data-mode=show] canvas { cursor: default; }
.ldm-draw .tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-bottom: 6px; }
.ldm-draw .tools button, .ldm-draw .tools select { border: 1px solid #888; border-radius: 4px; padding: 2px 8px;
  background: #fff; color: #222; }
"""


def boxes(name: str, size: tuple[int, int], classes: Sequence[str]) -> str:
    """A white field of the proportions of (H, W), and the classes that a box can have."""
    scale = SHOWN / max(size)
    return _field(name, "boxes", tuple(round(scale * n) for n in size), _choice(classes), "drag to draw a box")


def plan(name: str, size: tuple[int, int], classes: Sequence[str]) -> str:
    """A map (H, W) to be painted with classes."""
    return _field(name, "map", size, _choice(classes) + _brush(size), "paint the places of the classes")


def hole(name: str, picture: np.ndarray) -> str:
    """A picture [H,W,3] over which a hole is painted."""
    return _field(name, "hole", picture.shape[:2], _brush(picture.shape[:2]), "paint what is to be filled", picture)


def shown(name: str, picture: np.ndarray) -> str:
    """A picture [H,W,3], to be looked at."""
    return _field(name, "show", picture.shape[:2], "", f"{picture.shape[1]}x{picture.shape[0]} pixels", picture)


def _field(
    name: str, mode: str, size: tuple[int, int], tools: str, hint: str, picture: np.ndarray | None = None
) -> str:  # fmt: skip
    height, width = size
    across = round(SHOWN * width / max(size))
    under = f";background-image:url({_url(picture)})" if picture is not None else ""
    buttons = "".join(f'<button type="button" data-do="{do.lower()}">{do}</button>' for do in ("Undo", "Clear"))
    return (
        f'<div class="ldm-draw" id="{name}" data-mode="{mode}"><div class="tools">{tools}'
        f"{'' if mode == 'show' else buttons}<span>{hint}</span></div>"
        f'<canvas width="{width}" height="{height}" style="width:{across}px{under}"></canvas></div>'
    )


def _choice(classes: Sequence[str]) -> str:
    options = (
        f'<option value="{k}" data-colour="#{bytes(colour(k)).hex()}" style="color:#{bytes(colour(k)).hex()}">'
        f"{html.escape(text)}</option>"
        for k, text in enumerate(classes)
    )
    return f'<select aria-label="class">{"".join(options)}</select>'


def _brush(size: tuple[int, int]) -> str:
    largest = max(max(size) // 2, 2)
    return f'<label>brush <input type="range" min="1" max="{largest}" value="{max(largest // 3, 1)}"></label>'


def _url(picture: np.ndarray) -> str:
    kind = "PNG" if picture.shape[0] * picture.shape[1] <= EXACT else "JPEG"
    file = io.BytesIO()
    to_pil(picture).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
