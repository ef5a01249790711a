"""From nothing to shapes that are read as what was asked for: scripts/demo.py with several seeds.

    python benchmarks/speedrun.py --seeds=0,1,2

A row is a seed: minutes with everything (start, compiling, training, sampling), the share of 64 samples that show the
kind and the colour of their class, and how fast this machine multiplies. What was tried: docs/speedrun.md.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False, repeats=1)
    p.add_argument("--seeds", default="0,1,2", help="separated by commas, default 0,1,2")
    args = p.parse_args(argv)
    env, rows = common.environment(), []
    for seed in (int(part) for part in args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "scripts/demo.py", f"--out={out}", f"--seed={seed}"]
            subprocess.run(command, cwd=common.ROOT, check=True)
            rows.append(json.loads(Path(out, "demo.json").read_text()))
    print(common.table(rows))
    common.save(args, "speedrun", rows, env, "float32")
    return rows


if __name__ == "__main__":
    common.run(main)
