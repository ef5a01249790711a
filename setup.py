"""The packages of a wheel; all else is in pyproject.toml. configs/ is installed as ldm_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ldm_jax", "ldm_jax.*"]), "ldm_jax.configs"],
    package_dir={"ldm_jax.configs": "configs"},
    package_data={"ldm_jax.web": ["draw.js"]},
)
