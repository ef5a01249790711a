"""The command of a checkout; see ldm_jax/cli/evaluate.py."""

from ldm_jax.cli.evaluate import main

if __name__ == "__main__":
    main()
