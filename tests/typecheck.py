"""The run-time check of tests/conftest.py: beartype, for which an int is a float where annotations say so (PEP 484)."""

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Functions inside functions are left alone: each call would make them, and their check, anew."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else _check(function)
