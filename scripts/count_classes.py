"""The most frequent classes of the objects of a prepared TensorFlow dataset, one a line, for --config.data.classes.

python scripts/count_classes.py --name=open_images_v4/300k --data_dir=TFDS_DIR --most=352 --out=classes.txt
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser
from ldm_jax.data.sources import TfdsSource


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--name", required=True, help="of the set, for example open_images_v4/300k")
    parser.add_argument("--data-dir", help="where it was prepared (default: as TFDS has it)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, required=True, help="how many classes")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args(argv)
    try:
        source = TfdsSource(args.name, args.split, args.data_dir)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"count_classes.py: {error}")
    counts = Counter()
    for i in range(len(source)):
        counts.update(item["class"] for item in source.annotations(i).get("objects", []))
    chosen = counts.most_common(args.most)
    if not chosen:
        sys.exit(f"count_classes.py: {args.name} has no objects")
    args.out.write_text("\n".join(source.object_names[k] for k, _ in chosen) + "\n")
    share = sum(n for _, n in chosen) / counts.total()
    print(f"{len(chosen)} of {len(counts)} classes, {share:.1%} of the {counts.total()} objects, in {args.out}")


if __name__ == "__main__":
    main()
