"""How near a program comes to what the machine can do: its work, and the machine's measured ceilings.

    utilisation = floating point operations / time / fastest matrix product measured in the same run
    bound       = max(operations / that product's rate, bytes / fastest copy)

Operations are those of the networks as written (work.formula), whatever formulation a backend has for them. Bytes, and
a second count of operations, are what the compiler says of its program; of a loop's body it counts one turn, of the
calls of libraries (on CPUs and GPUs most products) perhaps nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import work
from benchmarks.common import Row, alternate, out_of_memory, peak_gib, spread, timed
from ldm_jax.training.flops import count_flops


def compiled_cost(executable: Any) -> tuple[float | None, float | None]:
    """(operations, bytes moved) as the compiler counts them; None where it does not."""
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


def measure_ceilings(dtype: str) -> Ceilings:
    """The best of several calls, six seconds in all. Float32 products as JAX makes them (on a GPU: TF32)."""
    accelerator = jax.default_backend() != "cpu"
    n, count = (8192, 2**28) if accelerator else (2048, 2**26)
    a, b = jax.random.normal(jax.random.key(0), (2, n, n), dtype)
    # On an accelerator a call is shorter than what starting it by itself costs.
    once = 50 if accelerator else 1
    product = _fastest(lambda a, b: (a @ b) / n**0.5, (a, b), once)  # neither grows nor vanishes
    copy = _fastest(lambda x: x + 1, (jnp.zeros(count),), once)
    return Ceilings(2 * n**3 / product, 2 * 4 * count / copy, dtype)


def _fastest(fn: Callable, args: tuple, once: int, seconds: float = 3.0) -> float:
    """Seconds of a call, the best of groups of `once` calls that are waited for together. For so many seconds: clocks
    rise with work, and machines are shared. Each call's result, in the same memory, is the next one's first argument.
    """
    run, spent = jax.jit(fn, donate_argnums=0).lower(*args).compile(), []
    x, *rest = args

    def group(x):
        for _ in range(once):
            x = run(x, *rest)
        return jax.block_until_ready(x)

    x = group(x)
    while sum(spent) < seconds:
        taken, x = timed(lambda x=x: group(x))
        spent.append(taken)
    return min(spent) / once


def measure(make: Callable[..., work.Program], model: work.Model, size: int, *args, repeats: int,
            ceilings: Ceilings) -> Row:  # fmt: skip
    """Compiles and times make(model, size, *args), a program that handles `size` images a call."""
    row: Row = {"batch": size}
    try:
        compiled = make(model, size, *args).compile()
        times = alternate({"": compiled}, repeats)[""]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return row | {"note": "out of memory"}
    row |= spread(times)
    seconds = row["ms"] / 1e3
    row |= {"images_s": size / seconds, "trace_s": compiled.trace_s, "compile_s": compiled.compile_s}
    row |= {"memory_gib": compiled.memory_gib, "peak_gib": peak_gib(jax.devices()[0])}
    counted, moved = compiled_cost(compiled.executable)
    row["gflop_compiled"] = None if counted is None else counted / 1e9
    return row | against(ceilings, seconds, count_flops(work.formula(make, model, size, *args)), moved)


COLUMNS = {
    "what": "what", "batch": "batch", "ms": "ms", "ms_10": "10 %", "ms_90": "90 %", "images_s": "images/s",
    "gflop": "GFLOP", "gflop_compiled": "compiler's GFLOP", "gflop_s": "GFLOP/s", "utilisation": "of product",
    "roofline": "of roofline", "memory_gib": "GiB planned", "peak_gib": "GiB held so far", "trace_s": "trace s",
    "compile_s": "compile s",
    "note": "",
}  # fmt: skip


def against(ceilings: Ceilings, seconds: float, flops: float, moved: float | None) -> Row:
    """Columns of a row: rate, utilisation of the product's ceiling, share of the roofline (bound / time)."""
    bound = max(flops / ceilings.flops, (moved or 0) / ceilings.bytes)
    return {
        "gflop": flops / 1e9, "gflop_s": flops / seconds / 1e9, "utilisation": flops / seconds / ceilings.flops,
        "roofline": bound / seconds, "gbyte": None if moved is None else moved / 1e9,
    }  # fmt: skip
