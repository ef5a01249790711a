"""May this run go on? What a run directory was begun with, against the options that are given now."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ldm_jax import checkpoint, config_file, files, rundir
from ldm_jax.errors import ConfigError, Damaged, Missing

Tree = Any
# What a run's checkpoints depend on; of the last two only whether they are 0.
STATE_OPTIONS = ("task", "first_stage.", "conditioner.", "network.", "unet.", "dit.", "classifier.", "diffusion.",
                 "guides", "latent_scale", "latent_channel", "loss.disc_layers", "loss.disc_ndf", "optim.name",
                 "ema.kind", "ema.sigma_rel")  # fmt: skip
# Of config.diffusion, what only the loss reads.
_OF_LOSS = "loss weighting min_snr_gamma elbo_weight offset_noise t_distribution t_mean t_std"
LOSS_OPTIONS = tuple(f"diffusion.{name}" for name in _OF_LOSS.split())
NOT_STATE = (
    "drop_prob",
    "drop_each",
    "tokenizer",
    "conditioner.checkpoint",
    ".embedding_std",
    ".remat",
    *LOSS_OPTIONS,
)  # ends
# What may change without being asked for: when something happens, where things are, how they are computed, and what
# frozen/ or tokenizer/ has kept. A name that ends in "." is a section.
HARMLESS = ("steps", "init_from", "every.", "keep", "keep_every", "mesh.", "sample.", "metrics.", "data.workers",
            "data.cache_latents", "data.validation_images", "loss.lpips_weights", "on_nonfinite", "nonfinite_limit",
            "noise_seed", "watchdog_minutes", "ema.snapshot_every", "ema.snapshot_dtype")  # fmt: skip
HARMLESS_ENDS = (".remat", ".tokenizer", "conditioner.checkpoint")
ON_OFF_OPTIONS = ("ema.decay", "optim.clip_norm")


def check_same_run(config: ConfigDict, workdir: str | Path, accept_changes: bool = False) -> None:
    """ConfigError when the run in `workdir` was begun with other options than `config`: with those that
    its checkpoints cannot follow, and without `accept_changes` also with those that change what the model learns."""
    changed = config_file.changes(workdir, config.to_dict())
    if config.get("ema", {}).get("kind") != "power":  # nothing reads the widths
        changed.pop("ema.sigma_rel", None)
    if jax.process_index():  # each host has its own; that of the first one is in config.json
        changed.pop("data.path", None)
    wrong = _lines(
        (name, before, now)
        for name, (before, now) in changed.items()
        if (name.startswith(STATE_OPTIONS) and not name.endswith(NOT_STATE))
        or (name in ON_OFF_OPTIONS and bool(before) != bool(now))
    )
    if wrong:
        raise ConfigError(
            f"{workdir} holds a run with other options:\n{wrong}\nUse another --workdir, or the "
            "options of that run (in its config.json)."
        )
    # None: an option that the version which began the run did not have.
    to_accept = _lines((n, *values) for n, values in changed.items() if not _is_harmless(n) and None not in values)
    if to_accept and not accept_changes:
        raise ConfigError(
            f"{workdir} holds a run that was trained with other options:\n{to_accept}\nGive the options of that run "
            "(in its config.json), or --accept-changes to go on with these: its checkpoints fit them."
        )


def _is_harmless(name: str) -> bool:
    sections = tuple(option for option in HARMLESS if option.endswith("."))
    return name in HARMLESS or name.startswith(sections) or name.endswith(HARMLESS_ENDS)


def _lines(changes: Iterable[tuple[str, Any, Any]]) -> str:
    return "\n".join(f"    {name}: {before!r} there, {now!r} here" for name, before, now in changes)


def check_frozen(config: ConfigDict, workdir: str | Path, source: Callable[[ConfigDict], Tree]) -> None:
    """ConfigError when frozen/ of a run without checkpoints was made from something else than `config` names.

    source: config -> what frozen/ would be made from. One that is no longer there is no error: the copy counts.
    """
    kept = files.at(workdir) / "frozen"
    made = checkpoint.made_from(kept)
    if made is None:  # there is none, or an older version made it
        check_same_run(config, workdir, accept_changes=True)
        return
    here = rundir.frozen_options(config)
    younger = {f"first_stage.{name}": value for name, value in config_file.YOUNGER["first_stage"].items()}
    there = {n: value for n, value in younger.items() if n in here} | made["options"]
    wrong = _lines((n, there.get(n), here.get(n)) for n in sorted({*there, *here}) if there.get(n) != here.get(n))
    if not wrong:
        try:
            found = rundir.digests(config, jax.device_get(source(config)))
        except (Missing, Damaged):
            return
        there = made["digests"]
        wrong = _lines((f"parameters of {n}", there.get(n), found[n]) for n in found if there.get(n) != found[n])
    if wrong:
        raise ConfigError(
            f"{kept} was made from something else when this run was started before:\n{wrong}\nThere is no checkpoint "
            f"yet: remove {kept} to make it anew, or give what it was made from."
        )
