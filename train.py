"""The command of a checkout; see ldm_jax/cli/train.py."""

from ldm_jax.cli.train import main

if __name__ == "__main__":
    main()
