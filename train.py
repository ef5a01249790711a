"""Trains a first stage or a latent diffusion model.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/first_stage
    python train.py --config=configs/quickstart_ldm.py --workdir=runs/ldm \\
        --config.first_stage.checkpoint=runs/first_stage

Every option of the recipe can be changed: --config.batch_size=32, --config.data.source=folder ... The same
command goes on from the newest checkpoint in --workdir. `--config=configs/X.py:tiny` shrinks any recipe to
seconds. In the working directory: config.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ldm_jax.training.hugepages import restart_with_hugepages

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: configs/NAME.py[:tiny].")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives (default runs/NAME); resumed if it exists.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False,
    "Several hosts or processes, the same command on each: TPU pods, Slurm and Open MPI are recognised; elsewhere set "
    "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID. --workdir is a folder that all share.",
)  # fmt: skip
REQUIRE_ACCELERATOR = flags.DEFINE_bool("require_accelerator", False, "Stop when JAX finds only the CPU.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]} (options are written --name=value)")
    logging.set_verbosity(logging.WARNING)
    from ldm_jax import build, runs
    from ldm_jax.training import loop, runtime

    recipe = flags.FLAGS["config"].config_filename
    workdir = Path(WORKDIR.value or Path("runs") / Path(recipe.split(":")[0]).stem)
    config = CONFIG.value
    try:
        if DISTRIBUTED.value:
            runtime.join_hosts()
        runtime.setup(REQUIRE_ACCELERATOR.value)
        mesh = build.mesh(config)
        task, loaders, frozen = runs.training_run(config, workdir)
    except build.Missing as error:
        sys.exit(f"\n{recipe} cannot start. What is missing:\n\n{error}\n")
    except ValueError as error:
        sys.exit(f"\n{recipe} cannot start: {error}\n")
    try:
        loop.run(task, loaders, frozen, config, mesh, workdir)
    except loop.NonFinite as error:
        sys.exit(f"\n{error}\n")


if __name__ == "__main__":
    restart_with_hugepages()
    flags.mark_flags_as_required(["config"])
    app.run(main)
