"""Runs recorded outputs of the original PyTorch code ("goldens") against this code.

    python tests/run_goldens.py CASES_DIR --manifests DIR [--only REGEX]

CASES_DIR holds <name>.json and <name>.npz, --manifests the state-dict shapes <model>.json that they name; default
are the copies in tests/golden. What a case is about is told from its contents, not from its name. One line an output:

    <case> <output> <max difference / standard deviation of the golden> <tolerance> pass|FAIL [reason]

and a last line `N passed, M failed, K not supported`, in cases. A case passes when every output it records agrees
within 1e-4 of its standard deviation (of its value, for scalars); other tolerances are stated with their reason.
Exit code 0 only if all cases passed. The largest cases run last; a model of 1.45B parameters takes about 10 GB.
"""

import argparse
import gc
import json
import math
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from tests.golden_kinds import judge
from tests.golden_tools import GOLDEN, MismatchError, UnsupportedError, load


def parameters(path: Path, manifests: Path) -> int:
    """Roughly how many parameters a case has, to run the small ones first. 0 where that cannot be told."""
    try:
        meta = json.loads(path.read_text())
        shapes = meta.get("weight_manifest") or json.loads((manifests / f"{meta['manifest']}.json").read_text())
        prefixes = tuple(meta.get("weight_prefixes", ("",)))
        return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefixes))
    except (KeyError, OSError, ValueError):
        return 0


def run_case(name: str, cases: Path, manifests: Path) -> str:
    """Prints a case's outputs; "passed", "failed" or "not supported"."""
    start = time.time()
    try:
        case = load(name, cases, manifests)
        results = judge(case)
    except UnsupportedError as error:
        print(f"{name} not supported: {error}", flush=True)
        return "not supported"
    except MismatchError as error:
        print(f"{name} FAIL {error}", flush=True)
        return "failed"
    except Exception as error:  # whatever stops a case must not stop the others
        print(f"{name} not supported, it ended with {type(error).__name__}: {error}", flush=True)
        return "not supported"
    for result in results:
        verdict = "pass" if result.passed else "FAIL"
        reason = f"  ({result.reason})" if result.reason else ""
        print(f"{name} {result.output} {result.difference:.1e} {result.tolerance:.0e} {verdict}{reason}")
    print(f"{name}: {time.time() - start:.1f} s", flush=True)
    return "passed" if results and all(result.passed for result in results) else "failed"


def run_all(cases: Path, manifests: Path, only: str = "") -> dict[str, int]:
    """Runs the cases of a folder whose name matches `only`; how many passed, failed and were not supported."""
    paths = [path for path in sorted(cases.glob("*.json")) if re.search(only, path.stem)]
    counts = {"passed": 0, "failed": 0, "not supported": 0}
    for path in sorted(paths, key=lambda path: parameters(path, manifests)):
        counts[run_case(path.stem, cases, manifests)] += 1
        gc.collect()
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="?", default=GOLDEN / "cases")
    parser.add_argument("--manifests", type=Path, default=GOLDEN / "manifests")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name it matches (re.search)")
    args = parser.parse_args(argv)
    if not args.cases.is_dir():
        parser.error(f"{args.cases} is not a folder")
    jax.config.update("jax_default_matmul_precision", "highest")
    counts = run_all(args.cases, args.manifests, args.only)
    return 0 if counts["passed"] and not counts["failed"] and not counts["not supported"] else 1


if __name__ == "__main__":
    sys.exit(main())
