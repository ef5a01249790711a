"""Makes a captioned image folder of about 3400 emoji renders out of two npm packages (no account, 23 MB).

    python scripts/prepare_emoji.py --out datasets/emoji

Images: `@lobehub/fluent-emoji-3d` (RGBA webp 256x256), composited on white and written as png.
Names and the nine categories: `emojibase-data` (en/data.json, en/messages.json). Both packages are MIT; what
they say about their licence is kept in OUT/LICENSE.txt. `npm pack` fetches the tarballs unless given.
The result is read by `FolderSource(OUT)`: images/*.png and metadata.jsonl with file_name, text, label. Each picture has
two texts, of which training draws one: its name ("cat face", "flag: Japan"), and how people ask for it ("a cat face",
"the flag of Japan").
"""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser

IMAGES = "@lobehub/fluent-emoji-3d"
NAMES = "emojibase-data"


def fetch(package: str, folder: Path) -> Path:
    """Downloads the npm package's tarball into `folder` and returns its path."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            f"npm was not found, so {package} cannot be fetched: install Node.js, or fetch the tarball "
            f"elsewhere with `npm pack {package}` and pass --tarball / --metadata-tarball"
        )
    print(f"fetching {package} ...", flush=True)
    done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"`npm pack {package}` failed: {done.stderr.strip()}")
    return folder / done.stdout.strip().splitlines()[-1]


def code_points(name: str) -> str:
    """One spelling for both packages: lower case, '-' between, no leading zeros, and without the variation
    selector fe0f and the end-of-tag e007f, which the file names do not always have."""
    parts = re.split("[-_]", name.lower())
    return "-".join(part.lstrip("0") for part in parts if part not in ("fe0f", "e007f"))


def read_names(tarball: Path) -> tuple[dict[str, tuple[str, str]], str]:
    """Returns code points -> (name, category), and the package's licence text."""
    with tarfile.open(tarball) as tar:
        emoji = json.load(tar.extractfile("package/en/data.json"))
        messages = json.load(tar.extractfile("package/en/messages.json"))
        licence = tar.extractfile("package/LICENSE").read().decode()
    categories = {group["order"]: group["message"] for group in messages["groups"]}
    names = {}
    for entry in emoji:
        for variant in [entry, *entry.get("skins", [])]:
            if "group" in variant:
                names[code_points(variant["hexcode"])] = (variant["label"], categories[variant["group"]])
    return names, licence


def captions(name: str) -> list[str]:
    """A name of emojibase, and how people ask for it."""
    kind, _, rest = name.partition(": ")
    if kind == "flag":
        return [name, f"the flag of {rest}"]
    article = "an" if re.match("(?!uni|one|euro)[aeiou]", kind.lower()) else "a"
    return [name, f"{article} {kind}{f' with {rest}' if rest else ''}"]


def on_white(data: bytes, size: int) -> Image.Image:
    """Decodes an RGBA image and composites it on white at size x size."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def write_images(tarball: Path, names: dict[str, tuple[str, str]], out: Path, size: int) -> tuple[list, list]:
    """Writes images/*.png. Returns the metadata records and the members that have no name (left out)."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    records, nameless = [], []
    with tarfile.open(tarball) as tar:
        for member in tar:
            if not member.name.endswith(".webp"):
                continue
            stem = Path(member.name).stem
            if code_points(stem) not in names:
                nameless.append(stem)
                continue
            text, label = names[code_points(stem)]
            file_name = f"images/{stem}.png"
            # Level 1: png compression is most of the run time.
            on_white(tar.extractfile(member).read(), size).save(out / file_name, compress_level=1)
            records.append({"file_name": file_name, "text": captions(text), "label": label})
            if len(records) % 500 == 0:
                print(f"  {len(records)} images", flush=True)
    return sorted(records, key=lambda record: record["file_name"]), nameless


def licence_text(tarball: Path, names_licence: str) -> str:
    """What both packages say about their licence."""
    with tarfile.open(tarball) as tar:
        package = json.load(tar.extractfile("package/package.json"))
        readme = tar.extractfile("package/README.md").read().decode()
    stated = [
        re.sub(r"<br */?>|\[|\](?:\[[^\]]*\]|\([^)]*\))", "", line).strip()
        for line in readme.splitlines()
        if "Copyright" in line or "licensed" in line
    ]
    return (
        f"Images: npm package {package['name']} {package['version']}, licence {package['license']}\n"
        f"({package['homepage']}). Its README:\n{chr(10).join(stated)}\n\n"
        f"Names and categories: npm package {NAMES}\n{names_licence}"
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. datasets/emoji")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--tarball", type=Path, help=f"the {IMAGES} tarball, if already here")
    parser.add_argument("--metadata-tarball", type=Path, help=f"the {NAMES} tarball, if already here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = args.tarball or fetch(IMAGES, Path(folder))
        names, names_licence = read_names(args.metadata_tarball or fetch(NAMES, Path(folder)))
        records, nameless = write_images(images, names, args.out, args.size)
        (args.out / "LICENSE.txt").write_text(licence_text(images, names_licence), encoding="utf-8")
    if not records:
        sys.exit(f"{images} holds no emoji image with a known name: is it the {IMAGES} tarball?")
    with open(args.out / "metadata.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    categories = sorted({record["label"] for record in records})
    print(
        f"{len(records)} images of {args.size}x{args.size} in {len(categories)} categories "
        f"({', '.join(categories)}) in {args.out}"
    )
    if nameless:
        print(f"left out, no name known: {len(nameless)} ({', '.join(nameless[:5])})")


if __name__ == "__main__":
    main()
