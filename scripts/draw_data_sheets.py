"""Draws what the generators of the conditional tasks do to a picture: docs/masks.png, degradations.png, layouts.png.

    python scripts/draw_data_sheets.py [--out docs]

The pictures are scenes of the built-in shapes and, where datasets/emoji is there, an emoji.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm_jax.cli.options import Parser  # noqa: E402
from ldm_jax.conditions.inpaint import Masked  # noqa: E402
from ldm_jax.data import degradation, fields, layout, masks, shapes, transforms  # noqa: E402
from ldm_jax.images import to_uint8  # noqa: E402

EMOJI = ROOT / "datasets" / "emoji" / "images" / "1f98a.png"
GAP, SIDE_HEAD = 4, 100


def picture(size: int) -> np.ndarray:
    """uint8 [size,size,3]: an emoji, or a scene where there is none."""
    if not EMOJI.is_file():
        return shapes.draw(0, 11, size)["image"]
    with Image.open(EMOJI) as image:
        return transforms.resize(np.asarray(image.convert("RGB")), (size, size), "lanczos")


def sheet(rows: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """Rows of pictures of one size with a name at the left of each."""
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    out = Image.new("RGB", (SIDE_HEAD + columns * (width + GAP), GAP + len(rows) * (height + GAP)), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(13)
    for j, (name, pictures) in enumerate(rows):
        y = GAP + j * (height + GAP)
        pen.text((4, y + height // 2 - 8), name, fill="black", font=font)
        for k, shown in enumerate(pictures):
            out.paste(Image.fromarray(shown), (SIDE_HEAD + k * (width + GAP), y))
    return out


def mask_sheet() -> Image.Image:
    """Seven masks of every setting, the hole black as the model sees it."""
    image, rows = picture(128), []
    for setting in masks.SETTINGS:
        transform = fields.WithFields(transforms.ImageTransform(128), (Masked(setting),))
        made = [transform({"image": image}, np.random.default_rng([7, k])) for k in range(7)]
        rows.append((setting, [to_uint8(one["masked_image"]) for one in made]))
    return sheet(rows)


def degradation_sheet() -> Image.Image:
    """Low-resolution images of every kind, four times enlarged without smoothing, of two pictures."""
    images = (picture(192), shapes.draw(5, 9, 192)["image"])

    def low(image, kind, seed):
        small = degradation.degrade(np.random.default_rng([3, seed]), image, 4, kind)
        return np.repeat(np.repeat(small, 4, 0), 4, 1)

    rows = [("original,\nbicubic", [shown for image in images for shown in (image, low(image, "bicubic", 0))])]
    for kind in ("bsr", "bsr_light"):
        rows += [(kind, [low(image, kind, 10 * j + k) for image in images for k in range(2)]) for j in range(2)]
    return sheet(rows)


def layout_sheet() -> Image.Image:
    """Scenes, and what their tokens say: boxes of the whole image with the crop, and boxes of the crop alone."""
    size = 176
    whole = layout.LayoutCoder(len(shapes.CLASS_NAMES))
    cropped = layout.LayoutCoder(len(shapes.CLASS_NAMES), crop_tokens=False)
    transform = transforms.ImageTransform(size, resize="square", smallest_square=0.6, flip=True)
    names, columns = shapes.CLASS_NAMES, []
    for index in (3, 4, 9, 14, 21):
        scene = shapes.draw(5, index, size)
        rng = np.random.default_rng(index)
        placing = transform.place(scene, rng)
        seen = placing.image(scene["image"])
        objects, crop = whole.decode(whole.encode(scene["objects"], placing.shown, placing.flip, rng))
        inside, _ = cropped.decode(cropped.encode(scene["objects"], placing.shown, placing.flip, rng))
        mirrored = scene["image"][:, ::-1] if placing.flip else scene["image"]
        columns.append(
            [
                scene["image"],
                layout.draw_layout(objects, (size, size), names, crop, mirrored),
                seen,
                layout.draw_layout(inside, (size, size), names, background=seen),
            ]
        )
    heads = ("scene", "tokens + crop", "crop", "without crop")
    return sheet([(head, [column[k] for column in columns]) for k, head in enumerate(heads)])


def save(image: Image.Image, path: Path, most: int = 400_000) -> None:
    """As PNG, in 256 colours where it would be larger than `most` bytes otherwise."""
    image.save(path, optimize=True)
    if path.stat().st_size > most:
        image.quantize(256).save(path, optimize=True)
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size // 1000} kB")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    save(mask_sheet(), out / "masks.png")
    save(degradation_sheet(), out / "degradations.png")
    save(layout_sheet(), out / "layouts.png")


if __name__ == "__main__":
    main()
