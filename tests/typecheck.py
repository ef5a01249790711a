"""The run-time check of tests/conftest.py: beartype, for which an int is a float where annotations say so (PEP 484)."""

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Functions inside functions of networks (initialisers) are left alone: each layer would have its check made anew,
    which took more time than all other checks together."""
    is_inside = "<locals>" in getattr(function, "__qualname__", "")
    return function if is_inside and function.__module__.startswith("ldm_jax.models.") else _check(function)
