"""Trains a first stage, a latent diffusion model or a classifier.

    python train.py --config=quickstart_first_stage --workdir=runs/first_stage
    python train.py --config=quickstart_ldm --workdir=runs/ldm --config.first_stage.checkpoint=runs/first_stage

Every option of the recipe can be changed: --config.batch_size=32, --config.data.source=folder ... The same command
goes on from the newest checkpoint in --workdir. --config=NAME:tiny shrinks any recipe to seconds. In the working
directory: config.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/. Installed, the command is ldm-train.

SIGTERM, SIGUSR1, Ctrl-C and --max-minutes save what is new and end the run, whatever it does. Exit codes:
    0    the run is complete
    75   it was stopped before, or a bucket did not answer: start the same command again
    2    a mistake in the options, the data or the folder; a disk without room; a bucket that refuses
    130  a second Ctrl-C: nothing was saved; other codes are errors
"""

import argparse
import contextlib
import errno
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ldm_jax import files, process
from ldm_jax.cli import options
from ldm_jax.errors import Missing, Outage, UsageError
from ldm_jax.training import heartbeat, stopping

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HOST_TIMEOUT = 40.0  # seconds
# Options of a run; --compile-only runs none.
OF_A_RUN = (
    "workdir", "distributed", "host_timeout", "join_timeout", "max_minutes", "require_accelerator", "accept_changes",
    "profile",
)  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, "ConfigDict"]:
    """(arguments, the configuration). Exits with 2 if either is wrong."""
    from ldm_jax import recipes

    names = textwrap.fill(f"recipes: {', '.join(recipes.names())}", 110)
    parser = options.Parser(__doc__, epilog=names)
    add = parser.add_argument
    add("--config", required=True, metavar="RECIPE", help="its name, or its file; RECIPE:tiny shrinks it")
    add("--workdir", metavar="DIR", help="the run; resumed if it exists (default runs/NAME)")
    add(
        "--distributed",
        action="store_true",
        help="several hosts or processes, the same command and --workdir on each; beyond TPU pods, Slurm and Open MPI "
        "also JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
    )
    add(
        "--host-timeout",
        type=float,
        metavar="S",
        help="of several hosts: name one that is silent for so long, and end with 75 (default 40; 0 = off)",
    )
    add("--join-timeout", type=float, metavar="S", help="the same until all have joined (default 300)")
    add("--max-minutes", type=float, metavar="M", help="stop like a signal does after so long")
    add("--require-accelerator", action="store_true", help="stop when JAX finds only the CPU")
    add(
        "--accept-changes",
        action="store_true",
        help="go on although data, batch size ... changed",
    )
    add("--profile", metavar="FIRST:LAST", help="a profiler's trace of these steps, in DIR/profile")
    add("--compile-only", action="store_true", help="print what a step needs and end; reads no data")
    add("--topology", metavar="NAME", help="--compile-only for v5e:16x16, h100x8 ...")
    args, overrides = parser.parse_with_overrides(argv)
    parser.check_run("--workdir", args.workdir)
    if args.max_minutes is not None and not args.max_minutes > 0:
        parser.error(f"--max-minutes={args.max_minutes:g} must be more than 0")
    if args.topology and not args.compile_only:
        parser.error(f"--topology={args.topology} is for --compile-only; give both")
    for name in OF_A_RUN if args.compile_only else ():
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and value is not False:
            given = option if value is True else f"{option}={value}"
            parser.error(f"{given} is for a run, and --compile-only begins none: leave one of the two out")
    if args.host_timeout is None:
        args.host_timeout = HOST_TIMEOUT
    if args.host_timeout < 0 or 0 < args.host_timeout < heartbeat.LEAST:
        parser.error(f"--host-timeout={args.host_timeout:g} must be at least {heartbeat.LEAST:g} seconds, or 0 (off)")
    if args.join_timeout is None:
        args.join_timeout = process.JOIN
    if not args.join_timeout > 0:
        parser.error(f"--join-timeout={args.join_timeout:g} must be more than 0 seconds")
    return args, parser.recipe(args.config, overrides)


def _say_on_first_host(text: str) -> None:
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)


def _stop(error: UsageError, told: object) -> NoReturn:
    """Ends the command with 2, or with 75 for what may pass by itself."""
    if not isinstance(error, Outage):
        options.stop(told)
    print(f"\n{told}\n", file=sys.stderr)
    raise stopping.Alone


def main(argv: Sequence[str] | None = None) -> None:
    with stopping.Stop() as stop:  # first of all: from here on signals end the run as they should
        process.restart_with_hugepages()
        _train(argv, stop)


def _train(argv: Sequence[str] | None, stop: stopping.Stop) -> None:
    args, config = parse(argv)
    if args.compile_only:
        compile_only(args, config)
        return
    if args.max_minutes is not None:
        stop.after(args.max_minutes)
    with contextlib.ExitStack() as held:
        try:
            run(args, config, stop, held)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            options.stop(f"{error}: make room, then the same command goes on")


def compile_only(args: argparse.Namespace, config: "ConfigDict") -> None:
    """Prints the plan of a run and reads no data."""
    from ldm_jax.training import chips, plan

    try:
        topology = chips.topology(args.topology) if args.topology else None
        plan.run(config, topology, args.config)
    except UsageError as error:
        options.stop(f"{args.config}: {error}")


def run(args: argparse.Namespace, config: "ConfigDict", stop: stopping.Stop, held: contextlib.ExitStack) -> None:
    """Trains. held: gets the lock of the run directory, which its owner gives back."""
    from absl import logging

    from ldm_jax import checkpoint
    from ldm_jax.data import folder
    from ldm_jax.training import finetune, lock, loop, profile, setup

    logging.set_verbosity(logging.WARNING)
    workdir = files.at(args.workdir or Path("runs") / Path(args.config.split(":")[0]).stem, "--workdir")
    try:
        wanted = profile.steps(args.profile) if args.profile else None
        if args.distributed:
            process.join_hosts(args.host_timeout, args.join_timeout, partial(stop.leave, code=stopping.AGAIN))
            joined = stopping.Hosts.joined()
            stop.share(joined)
            held.enter_context(heartbeat.between(joined, args.host_timeout, stop.leave))
        process.setup(args.require_accelerator, config.matmul_precision)
        mesh = setup.mesh(config)
        held.enter_context(lock.held(workdir, partial(stop.leave, code=stopping.UNUSABLE)))
        stop.at_exit(held.close)
        checkpoint.compare_ahead(workdir)
        task, loaders, frozen = setup.training_run(config, workdir, args.accept_changes)
        begin, measure = finetune.beginning(config, workdir), None
        if config.every.metrics:
            from ldm_jax.training_metrics import TrainingMetrics

            measure = TrainingMetrics(config, workdir, mesh, _say_on_first_host)
    except Missing as error:
        options.stop(f"{args.config} cannot start. What is missing:\n\n{error}")
    except UsageError as error:
        _stop(error, f"{args.config} cannot start: {error}")
    try:
        folder.forget()  # many names of files
        loop.run(task, loaders, frozen, config, mesh, workdir, stop, measure, begin, wanted)
    except stopping.Stopped:
        sys.exit(stopping.AGAIN)
    except UsageError as error:
        _stop(error, error)
    except loop.NonFinite as error:
        sys.exit(f"\n{error}\n")
