"""Runs recorded outputs of evaluation's references ("goldens") against this code.

    python tests/run_eval_goldens.py CASES_DIR --manifests DIR [--only REGEX]

CASES_DIR holds <name>.json and <name>.npz, --manifests the state-dict shapes <model>.json that they name; default are
the copies in tests/eval_goldens. Other files that a case names lie in the folder above CASES_DIR. What a case is about
is told by its `kind`, not by its name. One line an output:

    <case> <output> <difference> <measure> <tolerance> pass|FAIL [reason]

and a last line `N passed, M failed, K not supported`, in cases. A case passes when all outputs that it records agree.
Exit code 0 only if all cases passed. The smallest run first.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.eval_goldens import kinds
from tests.eval_goldens.judge import HERE, judge, load


def work(path: Path) -> tuple[int, str]:
    """What cases are sorted by: roughly their work, and those of one network side by side."""
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        return 0, ""
    weights = meta.get("weights", {})
    network = json.dumps(weights) + str(meta.get("options", {}).get("resize"))
    return {"pipeline": 3, "dinov2_frechet": 2}.get(meta.get("kind"), 1) if weights else 0, network


def run_case(path: Path, manifests: Path) -> str:
    """Prints a case's outputs; "passed", "failed" or "not supported"."""
    start = time.time()
    try:
        case = load(path, manifests)
        lines = list(judge(case, kinds.run(case)))
    except kinds.UnsupportedError as error:
        print(f"{path.stem} not supported: {error}", flush=True)
        return "not supported"
    except Exception as error:  # whatever stops a case must not stop the others
        print(f"{path.stem} FAIL, it ended with {type(error).__name__}: {error}", flush=True)
        return "failed"
    for line, _ in lines:
        print(line)
    print(f"{path.stem}: {time.time() - start:.1f} s", flush=True)
    verdicts = {verdict for _, verdict in lines}
    if "FAIL" in verdicts or not verdicts:
        return "failed"
    return "not supported" if "missing" in verdicts else "passed"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="?", default=HERE / "cases")
    parser.add_argument("--manifests", type=Path, default=HERE / "manifests")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name it matches (re.search)")
    args = parser.parse_args(argv)
    if not args.cases.is_dir():
        parser.error(f"{args.cases} is not a folder")
    paths = [path for path in args.cases.glob("*.json") if re.search(args.only, path.stem)]
    counts = {"passed": 0, "failed": 0, "not supported": 0}
    for path in sorted(paths, key=lambda path: (*work(path), path.stem)):
        counts[run_case(path, args.manifests)] += 1
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0 if counts["passed"] and not counts["failed"] and not counts["not supported"] else 1


if __name__ == "__main__":
    sys.exit(main())
