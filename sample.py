"""Samples images from a trained model: `python sample.py --help`. The body is ldm_jax/cli/sample.py."""

from ldm_jax.process import restart_with_hugepages

if __name__ == "__main__":
    restart_with_hugepages()
    from ldm_jax.cli.sample import main

    main()
