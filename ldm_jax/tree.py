"""Names of leaves: flatten to "a/b/c", select by regular expression, count, compare. Pure functions."""

import hashlib
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

Tree = Any


def flatten(tree: Tree) -> dict[str, Any]:
    """{"a/b/c": leaf} of any pytree, in jax's leaf order. None counts as an empty subtree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(named: dict[str, Any]) -> dict:
    """The nested dict of {"a/b/c": leaf}; the inverse of `flatten` for nested dicts with string keys.

    Raises ValueError when a name is both a leaf and a branch.
    """
    tree: dict = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r}: {parent!r} is already a leaf; rename one of the two")
        if last in node:
            raise ValueError(f"{name!r} is given twice, or is also a branch; rename one of the two")
        node[last] = leaf
    return tree


def select(tree: Tree, pattern: str) -> dict[str, Any]:
    """The leaves {"a/b/c": leaf} whose name contains the regular expression (`re.search`)."""
    return {name: leaf for name, leaf in flatten(tree).items() if re.search(pattern, name)}


def count(tree: Tree) -> int:
    """Number of scalars in all leaves (arrays or ShapeDtypeStructs)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree_util.tree_leaves(tree))


class Difference(NamedTuple):
    """How a tree departs from a reference. Empty lists: same names and shapes."""

    missing: list[str]  # in the reference only
    unexpected: list[str]  # in the tree only
    shapes: list[str]  # "name: (tree's shape), expected (reference's shape)"

    def __bool__(self) -> bool:
        return any(self)

    def __str__(self) -> str:
        lines = []
        for title, names in zip(("missing", "unexpected", "other shape"), self):
            lines += [f"{title} ({len(names)}):", *(f"  {name}" for name in names)] if names else []
        return "\n".join(lines) or "no difference"


def compare(tree: Tree, reference: Tree) -> Difference:
    """Names and shapes of `tree` against those of `reference` (arrays or ShapeDtypeStructs)."""
    ours, wanted = flatten(tree), flatten(reference)
    return Difference(
        missing=sorted(wanted.keys() - ours.keys()),
        unexpected=sorted(ours.keys() - wanted.keys()),
        shapes=[
            f"{name}: {tuple(ours[name].shape)}, expected {tuple(wanted[name].shape)}"
            for name in sorted(ours.keys() & wanted.keys())
            if tuple(ours[name].shape) != tuple(wanted[name].shape)
        ],
    )


def digest(values: Tree) -> str:
    """A short hash of the numbers of all leaves."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(values):
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()[:16]
