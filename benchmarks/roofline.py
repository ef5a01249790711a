"""How near a program comes to what the machine can do: its work, and the machine's measured ceilings.

    utilisation = floating point operations / time / fastest matrix product measured in the same run
    bound       = max(operations / that product's rate, bytes / fastest copy): no program with this work is faster
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import work
from benchmarks.common import Row, alternate, out_of_memory, spread, timed


def count_flops(jaxpr: Any) -> float:
    """2 x the multiplications of all matrix products and convolutions in a (closed) jaxpr, its loops unrolled.

    The formula alone, whatever the compiler makes of it; elementwise work is not counted, nor are the zeros that a
    dilated convolution multiplies. A `while` counts once, of a `cond` the larger branch.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_flops(eqn) for eqn in jaxpr.eqns)


def _flops(eqn: Any) -> float:
    name, p = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = p["dimension_numbers"][0][0]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, p["dimension_numbers"].rhs_spec
        each = math.prod(kernel[i] for i in numbers[1:])  # input features of a group x window
        return 2.0 * eqn.outvars[0].aval.size * each / math.prod(p["lhs_dilation"])
    inner = [count_flops(x) for x in jax.tree.leaves(list(p.values()), is_leaf=_is_jaxpr) if _is_jaxpr(x)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (p["length"] if name == "scan" else 1)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def compiled_cost(executable: Any) -> tuple[float | None, float | None]:
    """(operations, bytes moved) as the compiler counts them; None where it does not.

    Calls of libraries (on CPUs and GPUs most matrix products) may be missing from its count.
    """
    cost = executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    return cost.get("flops"), cost.get("bytes accessed")


@dataclass(frozen=True)
class Ceilings:
    """flops: operations per second of a large matrix product; bytes: per second read and written by a large copy."""

    flops: float
    bytes: float
    dtype: str

    def row(self) -> Row:
        return {"gflops": self.flops / 1e9, "gbytes": self.bytes / 1e9, "dtype": self.dtype}

    def __str__(self) -> str:
        return f"ceilings: {self.flops / 1e9:,.0f} GFLOP/s ({self.dtype} product), {self.bytes / 1e9:,.1f} GB/s (copy)"


def measure_ceilings(dtype: str, small: bool = False) -> Ceilings:
    """The best of several calls. small: sizes for a test. Float32 products as JAX makes them (on a GPU: TF32)."""
    accelerator = jax.default_backend() != "cpu"
    n = 256 if small else 8192 if accelerator else 2048
    count = 2**20 if small else 2**28 if accelerator else 2**26
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product, copy = _fastest(lambda a: (a @ a) / n**0.5, a), _fastest(lambda x: x + 1, jnp.zeros(count))
    return Ceilings(2 * n**3 / product, 2 * 4 * count / copy, dtype)


def _fastest(fn: Callable, x: jax.Array, calls: int = 7) -> float:
    """Seconds; each call's result, in the same memory, is the next one's argument."""
    run, seconds = jax.jit(fn, donate_argnums=0).lower(x).compile(), []
    for _ in range(calls + 1):
        spent, x = timed(lambda x=x: jax.block_until_ready(run(x)))
        seconds.append(spent)
    return float(np.min(seconds[1:]))


def measure(program: work.Program, images: int, repeats: int, ceilings: Ceilings) -> Row:
    """Compiles and times a program that handles `images` images a call."""
    row: Row = {"batch": images}
    try:
        compiled = program.compile()
        times = alternate({"": compiled}, repeats)[""]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return row | {"note": "out of memory"}
    row |= spread(times)
    seconds = row["ms"] / 1e3
    row |= {"images_s": images / seconds, "trace_s": compiled.trace_s, "compile_s": compiled.compile_s}
    row |= {"memory_gib": compiled.memory_gib}
    _, moved = compiled_cost(compiled.executable)
    return row | against(ceilings, seconds, count_flops(compiled.jaxpr), moved)


COLUMNS = {
    "what": "what", "batch": "batch", "ms": "ms", "ms_10": "10 %", "ms_90": "90 %", "images_s": "images/s",
    "gflop": "GFLOP", "gflop_s": "GFLOP/s", "utilisation": "of product", "roofline": "of roofline",
    "memory_gib": "GiB", "trace_s": "trace s", "compile_s": "compile s", "note": "",
}  # fmt: skip


def against(ceilings: Ceilings, seconds: float, flops: float, moved: float | None) -> Row:
    """Columns of a row: rate, utilisation of the product's ceiling, share of the roofline (bound / time)."""
    bound = max(flops / ceilings.flops, (moved or 0) / ceilings.bytes)
    return {
        "gflop": flops / 1e9, "gflop_s": flops / seconds / 1e9, "utilisation": flops / seconds / ceilings.flops,
        "roofline": bound / seconds, "gbyte": None if moved is None else moved / 1e9,
    }  # fmt: skip
