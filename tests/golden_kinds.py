"""Which function runs a golden, told from what the case holds; and how its outputs are judged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests import golden_diffusion, golden_models, golden_modules, golden_training
from tests.golden_tools import Case, Ours, UnsupportedError, difference

Run = Callable[[Case], dict[str, Ours]]

# Words of a case's `kind`; the first that it contains counts.
BY_KIND: tuple[tuple[str, Run], ...] = (
    ("ddim make_schedule", golden_diffusion.run_timetables),
    ("register_schedule", golden_diffusion.run_tables),
    ("p_losses", golden_diffusion.run_training_loss),
    ("q_sample, q_mean", golden_diffusion.run_forward_process),
    ("p_sample_loop", golden_diffusion.run_trajectory),
    ("hinge_d_loss", golden_training.run_d_losses),
    ("DiagonalGaussian", golden_training.run_gaussian),
    ("LitEma", golden_training.run_ema),
    ("get_weighting", golden_training.run_patches),
    ("lr multipliers", golden_training.run_learning_rates),
    ("measure_perplexity", golden_training.run_perplexity),
    ("sinusoidal", golden_training.run_timestep_embedding),
    ("ddim", golden_diffusion.run_trajectory),
    ("plms", golden_diffusion.run_trajectory),
)


def runner_of(case: Case) -> Run:
    """The function that makes our outputs for a case. Raises UnsupportedError where there is none."""
    kind = case.meta.get("kind", "")
    for words, run in BY_KIND:
        if words in kind:
            return run
    shapes = case.meta.get("weight_manifest", {})
    structure = (
        ("ctor" in case.meta and "feat" in case.inputs, golden_training.run_first_stage_loss),
        ("manifest" in case.meta, golden_models.manifest_kind(case)),
        ("z_q" in case.outputs or "VectorQuantizer" in case.about, golden_modules.run_quantizer),
        ("main.0.weight" in shapes, golden_modules.run_discriminator),
        ("input_blocks.0.0.weight" in shapes, golden_models.run_small_unet),
        ("token_emb.weight" in shapes, golden_modules.run_text_transformer),
        ("weight_manifest" in case.meta and "x" in "".join(case.inputs), golden_modules.run_module),
    )
    for holds, run in structure:
        if holds and run is not None:
            return run
    raise UnsupportedError(f"no runner for a case of kind {kind!r} with outputs {sorted(case.outputs)[:4]}")


@dataclass(frozen=True)
class Judged:
    """One output: `difference` as in golden_tools.difference, and what was asked of it."""

    output: str
    difference: float
    tolerance: float
    reason: str

    @property
    def passed(self) -> bool:
        return bool(np.isfinite(self.difference)) and self.difference <= self.tolerance


def judge(case: Case) -> list[Judged]:
    """Runs a case and compares every output that it records.

    Raises UnsupportedError when there is no runner for it or one of its outputs.
    """
    ours = runner_of(case)(case)
    missing = sorted(set(case.outputs) - set(ours))
    if missing:
        raise UnsupportedError(f"nothing of ours to compare with {', '.join(missing)}")
    return [
        Judged(key, difference(case, key, ours[key]), ours[key].tolerance, ours[key].reason) for key in case.outputs
    ]
