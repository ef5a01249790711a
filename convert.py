"""The command of a checkout; see ldm_jax/cli/convert.py."""

from ldm_jax.cli.convert import main

if __name__ == "__main__":
    main()
