"""Trains a first stage or a latent diffusion model.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/first_stage
    python train.py --config=configs/quickstart_ldm.py --workdir=runs/ldm \\
        --config.first_stage.checkpoint=runs/first_stage

Every option of the recipe can be changed: --config.batch_size=32, --config.data.source=folder ... The same
command goes on from the newest checkpoint in --workdir. `--config=configs/X.py:tiny` shrinks any recipe to
seconds. In the working directory: config.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.training.hugepages import restart_with_hugepages


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """(arguments, the configuration). Exits with 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", required=True, metavar="RECIPE", help="name of a recipe, or its file; NAME:tiny shrinks it")
    add("--workdir", help="where the run lives (default runs/NAME); resumed if it exists")
    add(
        "--distributed",
        action="store_true",
        help="several hosts or processes, the same command on each: TPU pods, Slurm and Open MPI are recognised; "
        "elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. --workdir is a folder "
        "that all share",
    )
    add("--require-accelerator", "--require_accelerator", action="store_true", help="stop when JAX finds only the CPU")
    args, overrides = parser.parse_known_args(argv)
    from ldm_jax import recipes

    try:
        return args, recipes.load(args.config, overrides)
    except ConfigError as error:
        parser.error(str(error))


def main() -> None:
    args, config = parse()
    from absl import logging

    logging.set_verbosity(logging.WARNING)
    from ldm_jax.errors import Missing
    from ldm_jax.training import loop, runtime, setup

    recipe = args.config
    workdir = Path(args.workdir or Path("runs") / Path(recipe.split(":")[0]).stem)
    try:
        if args.distributed:
            runtime.join_hosts()
        runtime.setup(args.require_accelerator)
        mesh = setup.mesh(config)
        task, loaders, frozen = setup.training_run(config, workdir)
    except Missing as error:
        sys.exit(f"\n{recipe} cannot start. What is missing:\n\n{error}\n")
    except ValueError as error:
        sys.exit(f"\n{recipe} cannot start: {error}\n")
    try:
        loop.run(task, loaders, frozen, config, mesh, workdir)
    except loop.NonFinite as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    restart_with_hugepages()
    main()
