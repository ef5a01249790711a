"""The packages of a wheel; all else is in pyproject.toml. configs/ and pretrained/ are installed inside ldm_jax/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ldm_jax", "ldm_jax.*"]), "ldm_jax.configs", "ldm_jax.pretrained"],
    package_dir={"ldm_jax.configs": "configs", "ldm_jax.pretrained": "pretrained"},
    package_data={"ldm_jax.web": ["draw.js"], "ldm_jax.pretrained": ["*/*", "*/tokenizer/*"]},
)
