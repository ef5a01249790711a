"""The command of a checkout; see ldm_jax/cli/sample.py."""

from ldm_jax.cli.sample import main

if __name__ == "__main__":
    main()
