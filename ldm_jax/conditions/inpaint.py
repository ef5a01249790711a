"""A picture with a hole to fill: the latent of what is known, and the hole (paper, section 4.5)."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

from ldm_jax import images as pictures
from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.conditions.superres import SuperResolution
from ldm_jax.data import masks
from ldm_jax.data.fields import Field, Placed
from ldm_jax.errors import RequestError
from ldm_jax.images import to_float


def section() -> dict:
    """The latent of the picture without its hole, and the hole's mask. Which holes in training: config.data.masks."""
    return dict(kind="inpaint", drop_prob=0.0)


class Inpainting(ConditionNetwork):
    """batch["masked_image"] [B,H,W,3] (holes -1) encoded, and batch["mask"] [B,H,W,1] (1 = hole) in [-1,1].

    The mask is reduced to the latent's size by taking every f-th pixel. The null is a picture that is all hole.
    """

    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        z = encode(batch["masked_image"])
        mask = batch["mask"]
        rows, columns = mask.shape[1] // z.shape[1], mask.shape[2] // z.shape[2]
        small = 2.0 * mask[:, ::rows, ::columns].astype(z.dtype) - 1.0
        return Cond(concat=jnp.concatenate([z, small], axis=-1))

    def null(self, batch: Batch) -> Batch:
        image, mask = batch["masked_image"], batch["mask"]
        return {"masked_image": jnp.full_like(image, -1.0), "mask": jnp.ones_like(mask)}


@dataclass(frozen=True)
class Masked(Field):
    """ "mask" float32 [H,W,1], 1 = hole, and "masked_image" float32 [H,W,C] in [-1,1], -1 (black) in the hole.

    setting: one of masks.SETTINGS, a random mask; or "given", the source's own mask, for evaluation.
    """

    setting: str = "train_256"
    is_encoded = True

    def __post_init__(self):
        if self.setting not in (*masks.SETTINGS, "given"):
            raise ValueError(f"mask setting is {self.setting!r}, but must be one of {', '.join(masks.SETTINGS)}, given")

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.setting == "given":
            mask = placed.map("mask")
        else:
            mask = masks.make_mask(rng, *placed.image.shape[:2], self.setting)
        hole = mask[..., None] != 0
        return {"mask": hole.astype(np.float32), "masked_image": to_float(np.where(hole, np.uint8(0), placed.image))}


class Inpaint(Condition):
    kind = "inpaint"
    example = "--image=PICTURE.png --mask=MASK.png"
    options = (
        SuperResolution.options[0],
        (Option("mask", "inpainting: a PNG, white where the picture is to be filled, or a folder"),),
    )
    extra_options = (
        Option("feather", "inpainting: blend over so many pixels inside the hole's edge (default 0)", float),
    )

    def network(self, dtype):
        return Inpainting()

    def shapes(self, frame):
        return {"masked_image": ((*frame.image, 3), np.float32), "mask": ((*frame.image, 1), np.float32)}

    def fields(self, data, frame, train, tokenizer):
        return (Masked(data.masks),)

    def requests(self, asked, frame, tokenizer):
        """Masks belong to pictures by name (two folders), or by order (one picture and mask, two lists of arrays)."""
        images, holes = pictures.pictures("image", asked["image"]), pictures.pictures("mask", asked["mask"])
        feather = float(asked.get("feather") or 0.0)
        if feather < 0:
            raise RequestError(f"feather={feather:g} must not be negative")
        by_name = {hole.name: hole for hole in holes}
        if isinstance(asked["image"], str | Path) and not len(images) == len(holes) == 1:
            missing = [image.origin for image in images if image.name not in by_name]
            if missing:
                raise RequestError(
                    f"mask={asked['mask']} has no mask for {len(missing)} of {len(images)} pictures: "
                    f"{', '.join(Path(name).name for name in missing[:5])}"
                )
            holes = [by_name[image.name] for image in images]
        elif len(holes) == 1:
            holes = holes * len(images)
        elif len(holes) != len(images):
            raise RequestError(f"mask: {len(holes)} masks do not belong to {len(images)} pictures")
        return [_asked(*pair, frame.f * frame.divisor, feather) for pair in zip(images, holes)]


def _asked(picture: pictures.Picture, hole: pictures.Picture, multiple: int, feather: float) -> Asked:
    """What is not hole keeps its pixels exactly; `feather` > 0 blends over that many pixels inside the hole's edge."""
    image, grey = picture.pixels("image", 3), hole.image
    try:
        grey = grey if grey.mode == "L" else grey.convert("L")
    except ValueError as error:
        raise RequestError(f"mask: {hole.origin}: {error}") from None
    if grey.size != (image.shape[1], image.shape[0]):
        raise RequestError(
            f"mask: {hole.origin} is {grey.size[0]}x{grey.size[1]} pixels, its picture "
            f"{image.shape[1]}x{image.shape[0]}"
        )
    where = np.asarray(grey) >= 128
    if not where.any():
        raise RequestError(f"mask: {hole.origin} marks nothing: white (255) is the hole, black stays")
    share = where.astype(np.float32)
    if feather > 0:
        soft = Image.fromarray(np.uint8(255 * where)).filter(ImageFilter.GaussianBlur(feather))
        # 1/2 at the hole's edge after the blur; twice what exceeds it is 0 there and 1 well inside.
        share = np.clip(2 * np.asarray(soft, np.float32) / 255 - 1, 0, 1) * share

    def finish(made: np.ndarray) -> np.ndarray:
        made = made[: image.shape[0], : image.shape[1]]
        mixed = image + share[..., None] * (made.astype(np.float32) - image)
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)

    padded, mask = pictures.pad(image, multiple), pictures.pad(where, multiple)[..., None]
    fields = {"masked_image": to_float(np.where(mask, np.uint8(0), padded)), "mask": mask.astype(np.float32)}
    return Asked(picture.name, fields, padded.shape[:2], finish)
