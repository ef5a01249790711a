"""Trajectories against those of diffusers' schedulers on the same exact denoiser (make_diffusers_golden.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SAMPLERS
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import Timetable, make_timetable, pad
from tests.diffusion import mixture

GOLDEN = np.load(Path(__file__).parent / "diffusers_samplers.npz")
NAMES = [name for name in GOLDEN.files if name not in ("t", "z", "noise")]


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_of_diffusers(name):
    schedule, steps = make_schedule(), len(GOLDEN["t"])
    whole = make_timetable(schedule, steps)
    np.testing.assert_array_equal(whole.t, GOLDEN["t"])
    table, noise = jnp.asarray(schedule.alpha_bar, jnp.float32), jnp.asarray(GOLDEN["noise"], jnp.float32)
    options = {"noise_fn": lambda k: noise[k]} if SAMPLERS[name].draws_noise else {}

    @jax.jit
    def run(z, timetable):
        return SAMPLERS[name](lambda z, t: mixture.eps_at(z, table[t[0]]), z, timetable, None, **options)

    # diffusers lowers the order in the last steps, of UniPC-3 in the last but one, too; here the last step of Heun's
    # method is one of Euler's, also that of a part of a timetable.
    counts = {"unipc_3": (1, 2, 3, 6, steps - 2), "heun": (steps,)}.get(name, (1, 2, 3, 6, steps - 1, steps))
    for count in counts:
        timetable = pad(Timetable(*(entries[:count] for entries in whole)), steps)
        found = run(jnp.asarray(GOLDEN["z"], jnp.float32), timetable)
        # float32 on both sides; latents are about 1
        np.testing.assert_allclose(found, GOLDEN[name][count - 1], atol=1e-4, err_msg=f"after {count} steps")


def test_all_that_there_are_are_compared():
    assert NAMES == [
        "euler",
        "euler_ancestral",
        "heun",
        "dpm_solver_pp_2m",
        "dpm_solver_pp_2m_sde",
        "unipc_2",
        "unipc_3",
    ]
