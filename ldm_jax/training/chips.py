"""Accelerators as their makers describe them, and the names of arrangements of them ("v5e:16x16", "h100x8").

Rates are the published ones, of dense products. Sources: NVIDIA's data sheets (SXM cards), Google Cloud's pages of each
TPU version. Nothing of this is measured here.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ldm_jax.errors import UsageError


@dataclass(frozen=True)
class Chip:
    """half, float32, exact: operations per second of products in bfloat16, in float32 as JAX makes them by default (on
    GPUs TF32; TPUs take bfloat16) and in float32 of the precision "highest" (on TPUs six bfloat16 products).
    memory: bytes. link: bytes per second that a chip can send to those it is wired to. node: chips that are wired so
    (0: all), network: bytes per second that each can send to others."""

    name: str
    half: float
    float32: float
    exact: float
    memory: float
    link: float
    node: int = 0
    network: float = 0.0

    def rate(self, group: Sequence[int]) -> float:
        """Bytes per second of one chip's share when the chips of a group send in rings."""
        if not self.node or len({place // self.node for place in group}) == 1:
            return self.link
        together = sum(place // self.node == group[0] // self.node for place in group)
        return min(self.link, together * self.network)  # the rings of a node leave it through all its network cards


def _tpu(name: str, tflops: float, gb: float, gigabits: float) -> Chip:
    return Chip(f"TPU {name}", tflops * 1e12, tflops * 1e12, tflops * 1e12 / 6, gb * 2**30, gigabits * 1e9 / 8)


CHIPS = {
    "a100": Chip("NVIDIA A100 80 GB", 312e12, 156e12, 19.5e12, 85.1e9, 300e9, 8, 25e9),
    "h100": Chip("NVIDIA H100 80 GB", 989e12, 495e12, 67e12, 85.1e9, 450e9, 8, 50e9),
    "h200": Chip("NVIDIA H200 141 GB", 989e12, 495e12, 67e12, 151.4e9, 450e9, 8, 50e9),
    "v4": _tpu("v4", 275, 32, 2400),
    "v5e": _tpu("v5e", 197, 16, 1600),
    "v5p": _tpu("v5p", 459, 95, 4800),
    "v6e": _tpu("v6e", 918, 32, 3200),
}
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:4x8, h100x8, h200x64, a100x16"


@dataclass(frozen=True)
class Topology:
    """So many chips of a kind. name: as it was asked for."""

    name: str
    chip: Chip
    number: int
    is_tpu: bool


def topology(name: str) -> Topology:
    """ "v5e:16x16" or "h100x8" as a Topology. UsageError for other names."""
    gpu, tpu = re.fullmatch(r"([a-z]\d+)x(\d+)", name), re.fullmatch(r"(v\d+[a-z]?):(\d+(?:x\d+)+)", name)
    kind, sizes = (gpu.groups() if gpu else tpu.groups()) if gpu or tpu else ("", "")
    number = math.prod(int(size) for size in sizes.split("x")) if sizes else 0
    if kind not in CHIPS or number < 1:
        raise UsageError(f"--topology={name} is not known; it is written like {EXAMPLES}. Chips: {', '.join(CHIPS)}")
    return Topology(name, CHIPS[kind], number, bool(tpu))
