"""The command of a checkout; see ldm_jax/cli/web.py."""

from ldm_jax.cli.web import main

if __name__ == "__main__":
    main()
