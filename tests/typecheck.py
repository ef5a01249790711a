"""The run-time check of tests/conftest.py: beartype, for which an int is a float where annotations say so (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
