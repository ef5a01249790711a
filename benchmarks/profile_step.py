"""Where the time of one program goes: the slowest operations, with the place in the network that they come from.

    python benchmarks/profile_step.py --config=configs/celeba_ldm4.py --what=train --batch=1 --top=20

Reads the trace of jax.profiler; --keep=DIR keeps it (perfetto_trace.json.gz opens at ui.perfetto.dev). Shares are of
the time that operations took on all threads or streams, without what runs inside them. That time is printed beside
the clock's: on a CPU the trace has little of what libraries do in threads of their own (products, convolutions).
"""

import gzip
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work

WHAT = ("train", "forward", "sample", "decode", "encode")


def main(argv: list[str] | None = None) -> list[common.Row]:
    # A GPU's command buffers hide which operation a kernel belongs to.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()
    import jax

    p = common.parser(__doc__, repeats=3)
    p.add_argument("--what", choices=WHAT, default="train")
    p.add_argument("--top", type=int, default=20, help="operations shown, default 20")
    p.add_argument("--keep", type=Path, help="folder for the trace")
    args, config = common.load(p, argv)
    env, model = common.environment(), work.make_model(config)
    make = getattr(work, args.what)
    compiled = (make(model, args.batch[0], 5) if args.what == "sample" else make(model, args.batch[0])).compile()
    compiled()
    clock_ms = 1e3 * min(common.timed(compiled)[0] for _ in range(args.repeats))
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder)
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            for _ in range(args.repeats):
                compiled()
        newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        events = json.loads(gzip.decompress(newest.read_bytes()))
    rows = operations(_listed(events), places(compiled.executable.as_text()), args.repeats)
    kinds, traced_ms = by_kind(rows), sum(row["ms"] for row in rows)
    print(common.table(rows[: args.top]))
    print(f"\nby kind:\n{common.table(kinds[: args.top])}")
    print(f"\nall operations {traced_ms:,.1f} ms, by the clock {clock_ms:,.1f} ms without the profiler")
    common.save(args, f"profile_{args.what}", rows[: args.top], env, config.dtype, kinds=kinds,
                traced_ms=traced_ms, clock_ms=clock_ms)  # fmt: skip
    return rows


def _listed(events: dict | list) -> list[dict]:
    return events["traceEvents"] if isinstance(events, dict) else events


def places(hlo: str) -> dict[str, str]:
    """{operation's name: "UNet/middle_block_0/.../conv_general_dilated"} from a compiled program's text."""
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}\n]*op_name="([^"]+)"', hlo, re.MULTILINE)
    return {name: re.sub(r"jit\(\w+\)/|(?<=/)\w+\._\w+/", "", place) for name, place in found}


def operations(events: Iterable[Mapping], where: Mapping[str, str], calls: int) -> list[common.Row]:
    """Operations by self time, slowest first: ms a call, share, how often a call, and where each comes from.

    events: of the trace viewer's format. Operations are complete events ("ph": "X") that name an "hlo_op"; where
    there are devices (a GPU), those of devices only. Microseconds.
    """
    events = list(events)
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    lines = defaultdict(list)
    for e in events:
        if e.get("ph") == "X" and "hlo_op" in e.get("args", {}) and (not devices or e["pid"] in devices):
            lines[e["pid"], e["tid"]].append((e["ts"], -e["dur"], e["args"]["hlo_op"]))
    spent, count = defaultdict(float), defaultdict(int)
    for line in lines.values():
        open_until: list[tuple[float, str]] = []  # the operations that the next one may lie within
        for start, negative, name in sorted(line):
            while open_until and open_until[-1][0] <= start:
                open_until.pop()
            if open_until:
                spent[open_until[-1][1]] += negative
            spent[name] -= negative
            count[name] += 1
            open_until.append((start - negative, name))
    total = sum(spent.values())
    return [
        {"operation": name, "ms": us / 1e3 / calls, "share": us / total, "times": round(count[name] / calls, 1),
         "where": where.get(name, "")}
        for name, us in sorted(spent.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def by_kind(rows: Iterable[common.Row]) -> list[common.Row]:
    """The same summed by what the operation is: the last word of its place, "backward" where it is a gradient's."""
    ms, share = defaultdict(float), defaultdict(float)
    for row in rows:
        place = row["where"] or re.sub(r"[.\d]+$", "", row["operation"])
        kind = place.rsplit("/", 1)[-1] + (" (backward)" if "transpose(" in place else "")
        ms[kind] += row["ms"]
        share[kind] += row["share"]
    return [{"kind": kind, "ms": ms[kind], "share": share[kind]} for kind in sorted(ms, key=lambda k: -ms[k])]


if __name__ == "__main__":
    common.run(main)
