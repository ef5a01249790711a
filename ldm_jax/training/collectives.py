"""What the devices send each other in a compiled program, read from its text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) -> [^\n]*)?\{$", re.MULTILINE)
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_WHILE = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)')
_CALLS = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


@dataclass(frozen=True)
class Collective:
    """One operation. times: how often it is done in a run of the program; bytes: of its whole result on one device (of
    a reduce-scatter: of its operand); group: the devices of its first group, by their place in the mesh."""

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int = 1

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all of them, as rings do it."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.times * share * self.bytes


def of_program(text: str, devices: int) -> list[Collective]:
    """Those of a compiled program (`Compiled.as_text()`) on so many devices. Loops count as often as they turn, where
    the compiler knows that; groups of one device send nothing and are left out."""
    bodies = _computations(text)
    times = _times(bodies)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            shapes, kind, start, rest = match.groups()
            group = _group(rest, kind, devices)
            if len(group) > 1:
                found.append(Collective(kind, _size(shapes, kind, bool(start), len(group)), group, times[name]))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """{name: lines}; the entry is the last one that says ENTRY."""
    found, lines = {}, []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = found.setdefault(("ENTRY " if line.startswith("ENTRY") else "") + match.group(1), [])
        else:
            lines.append(line)
    return found


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs."""
    callers = defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            loop = _WHILE.search(line)
            if loop:
                trips = _TRIPS.search(line)
                callers[loop.group(1)].append((name, int(trips.group(1)) if trips else 1))
            else:
                for called in _CALLS.findall(line):
                    callers[called].append((name, 1))
    found: dict[str, int] = {}

    def times(name: str) -> int:
        if name not in found:
            found[name] = 1 if not callers[name] else sum(trips * times(caller) for caller, trips in callers[name])
        return found[name]

    return {name: times(name) for name in bodies}


def _size(shapes: str, kind: str, start: bool, n: int) -> int:
    sizes = [
        math.prod(int(d) for d in dims.split(",") if d) * _BYTES[name]
        for name, dims in _ARRAY.findall(shapes) if name in _BYTES
    ]  # fmt: skip
    if start and kind in ("all-gather", "collective-permute"):  # (operands, results, ...)
        size = max(sizes)
    elif start and kind == "reduce-scatter":
        size = min(size for size in sizes if size > 8) * n
    else:
        size = sum(sizes) * (n if kind == "reduce-scatter" else 1)
    return size


def _group(rest: str, kind: str, devices: int) -> tuple[int, ...]:
    """Places of the first group."""
    if kind == "collective-permute":
        pairs = re.findall(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
        return tuple(map(int, pairs[0])) if pairs else ()
    listed = _LISTED.search(rest)
    if listed:
        return tuple(int(i) for i in listed.group(1).split(","))
    counted = _COUNTED.search(rest)
    if not counted:
        return tuple(range(devices))  # "replica_groups={}": all
    _, each, dims, order = counted.groups()
    dims = [int(d) for d in dims.split(",")]
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    axes = [int(a) for a in order.split(",")] if order else list(range(len(dims)))
    found = []
    for flat in range(int(each)):  # the first `each` entries of the transposed numbers
        place = 0
        for axis in reversed(axes):
            flat, i = divmod(flat, dims[axis])
            place += i * strides[axis]
        found.append(place)
    return tuple(found)
