"""Counts the multiplications and additions of a traced program, whatever a compiler makes of it."""

import math
from collections import Counter
from typing import Any

import jax

# Kinds of products: "half" (bfloat16, float16), "float32" (as the device makes them: TF32 on a GPU), "exact" (float32
# of the precision "highest", as in first stages).
KINDS = ("half", "float32", "exact")


def count_flops(jaxpr: Any) -> float:
    """2 x the multiplications of all matrix products and convolutions in a (closed) jaxpr, its loops unrolled.

    The formula alone, whatever the compiler makes of it; elementwise work is not counted, nor are the zeros that a
    dilated convolution multiplies. A `while` counts once, of a `cond` the larger branch.
    """
    return sum(count_by_kind(jaxpr).values())


def count_by_kind(jaxpr: Any) -> Counter:
    """The same as {kind: operations} with the kinds of KINDS; those that are not there are missing."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found: Counter = Counter()
    for eqn in jaxpr.eqns:
        found.update(_of(eqn))
    return found


def _of(eqn: Any) -> Counter:
    name, p = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = p["dimension_numbers"][0][0]
        work = 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        return Counter({_kind(eqn): work})
    if name == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, p["dimension_numbers"].rhs_spec
        each = math.prod(kernel[i] for i in numbers[1:])  # input features of a group x window
        return Counter({_kind(eqn): 2.0 * eqn.outvars[0].aval.size * each / math.prod(p["lhs_dilation"])})
    inner = [count_by_kind(x) for x in jax.tree.leaves(list(p.values()), is_leaf=_is_jaxpr) if _is_jaxpr(x)]
    if name == "cond":
        return max(inner, key=lambda counted: sum(counted.values()))
    times = p["length"] if name == "scan" else 1
    return sum((Counter({kind: times * work for kind, work in counted.items()}) for counted in inner), Counter())


def _kind(eqn: Any) -> str:
    if eqn.invars[0].aval.dtype.itemsize < 4:
        return "half"
    precision = eqn.params.get("precision")
    given = precision if isinstance(precision, tuple) else (precision,)
    return "exact" if jax.lax.Precision.HIGHEST in given else "float32"


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
