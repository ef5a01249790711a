import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import classifier_free_guidance
from ldm_jax.diffusion.samplers import SAMPLERS, ddim, ddpm, get_sampler, plms, start_noise
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import SPACINGS, Timetable, make_timetable, pad
from tests.golden import weights
from tests.golden_tools import load, rel

TRAJECTORIES = [
    "traj_ddim_S10_eta0",
    "traj_ddim_S10_eta0.5",
    "traj_ddim_S20_eta1_cfg5",
    "traj_ddim_S20_eta0_mask",
    "traj_ddim_S20_eta1_temp0.8",
    "traj_plms_S4",
    "traj_plms_S10",
    "traj_plms_S20_cfg5",
    "traj_ddpm_100_mask",
    "traj_ddpm_100_v0.5",
    "traj_ddpm_100_x0param",
    "traj_ddpm_1000_clip",
]
MEAN, STD = 0.5, 0.7  # the data of the exact tests
DETERMINISTIC = [name for name, record in SAMPLERS.items() if record.takes_eta or not record.draws_noise]


def nhwc(x):
    return jnp.moveaxis(x, 1, -1)


def first(timetable, count):
    return Timetable(*(x[:count] for x in timetable))


def golden_run(case, timetable):
    """z after the timetable's steps, with the case's closed-form denoiser and its noise."""
    name, inputs = case.meta["name"], case.inputs
    schedule = make_schedule(prediction="x0" if "x0param" in name else "eps")
    shape = inputs["x_T"].shape

    def noise_fn(what):
        draws = [nhwc(weights.normal(f"input/{name}/{what}/{k}", shape)) for k in range(len(timetable.t))]
        table = jnp.stack(draws)
        return lambda k: table[k]

    def denoise_with(z, t, c):
        output = 0.3 * jnp.sin(z + c[:, None, None, None]) + 0.001 * t[:, None, None, None]
        return schedule.to_eps(output, z, t)

    zero = jnp.zeros(shape[0])
    denoise = classifier_free_guidance(
        denoise_with, inputs.get("cond", zero), inputs.get("uncond", zero), case.meta.get("cfg")
    )
    options = {}
    if "mask" in inputs:
        options = {"mask": nhwc(inputs["mask"]), "z_known": nhwc(inputs["x0"])}
        options["known_noise_fn"] = noise_fn("qnoise")
    sampler = SAMPLERS[name.split("_")[1]]
    if sampler is not plms:
        options["noise_fn"] = noise_fn("noise")
    if sampler is ddim:
        options["eta"] = jnp.float32(case.meta.get("eta", 0))
        options["temperature"] = case.meta.get("temperature", 1.0)
    if sampler is ddpm:
        options["clip_x0"] = "clip" in name
        options["v_posterior"] = 0.5 if "v0.5" in name else 0.0
    run = jax.jit(lambda z, timetable: sampler(denoise, z, timetable, None, **options))
    return jnp.moveaxis(run(nhwc(inputs["x_T"]), timetable), -1, 1)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_of_the_original(name):
    case = load(name)
    schedule = make_schedule(start=case.meta["linear_start"], end=case.meta["linear_end"])
    if "S" in case.meta:
        timetable = make_timetable(schedule, case.meta["S"], "original")
        half = len(timetable.t) // 2
        halfway = golden_run(case, first(timetable, half))
        assert rel(halfway, case.outputs["x_traj"][half - 1]) < 1e-5
    else:  # the original's "timesteps" argument: the last that many of the 1000
        count = int(name.split("_")[2])
        timetable = Timetable(*(x[-count:] for x in make_timetable(schedule, 1000)))
    # The original's own answer to a relative change of 1e-6 in z_T is about 1e-5 of the standard deviation.
    # Our step sizes come from float32 alpha_bar, which 100 and more small steps show most: 3e-5.
    assert rel(golden_run(case, timetable), case.outputs["x_final"]) < 1e-4


def gaussian_eps(schedule):
    """The exact noise prediction for data ~ N(MEAN, STD^2) in every coordinate."""

    def denoise(z, t):
        a = jnp.asarray(schedule.alpha_bar, jnp.float32)[t].reshape(-1, *(1,) * (z.ndim - 1))
        return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)

    return denoise


def gaussian_flow(schedule, z):
    """Where the probability flow takes z from t = T-1, in closed form."""
    return gaussian_flow_between(z, schedule.alpha_bar[-1], 1.0)


def gaussian_flow_between(z, a, a_end):
    """Where the probability flow takes z from alpha_bar a to alpha_bar a_end, in closed form."""
    spread = np.sqrt((a_end * STD**2 + 1 - a_end) / (a * STD**2 + 1 - a))
    return np.sqrt(a_end) * MEAN + (z - np.sqrt(a) * MEAN) * spread


@pytest.mark.parametrize(
    "name, steps, spacing, bound",  # bounds: twice the error found, a few per cent of STD or less
    [
        ("ddim", 250, "even", 0.035),
        ("plms", 50, "even", 0.005),
        ("heun", 50, "even", 0.006),
        ("dpm_solver_pp_2m", 20, "log_snr", 0.025),
        ("dpm_solver_pp_2m", 40, "log_snr", 0.004),
        ("euler", 250, "karras", 0.035),
        ("heun", 50, "karras", 0.007),
        ("unipc_2", 20, "log_snr", 0.01),
        ("unipc_3", 20, "log_snr", 0.005),
    ],
)
def test_deterministic_samplers_solve_the_probability_flow(name, steps, spacing, bound):
    schedule = make_schedule()
    z = jnp.linspace(-2, 2, 9)[:, None]
    found = SAMPLERS[name](gaussian_eps(schedule), z, make_timetable(schedule, steps, spacing), None)
    np.testing.assert_allclose(found, gaussian_flow(schedule, z), atol=bound)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_spacing_goes_with_every_sampler(name):
    """Also "original_quad", which repeats its cleanest step, from about 30 steps on. The random samplers are
    deterministic without their noise; of ddpm, which has always noise, the mean and the spread are looked at."""
    schedule, record = make_schedule(), SAMPLERS[name]
    keys = jax.random.split(jax.random.key(0), 512)
    z_T = start_noise(keys, (4,)) if name == "ddpm" else jnp.linspace(-2, 2, 9)[:, None]
    options = {"eta": 0.0} if record.draws_noise and name != "ddpm" else {}
    run = jax.jit(lambda timetable: record(gaussian_eps(schedule), z_T, timetable, keys, **options))
    for spacing in SPACINGS:
        for steps, bound in ((10, 0.5), (50, 0.15), (100, 0.1), (250, 0.04)):
            timetable = make_timetable(schedule, steps, spacing)
            found = np.asarray(run(pad(timetable, 250)))
            if name == "ddpm":
                assert abs(found.mean() - MEAN) < 0.1 and abs(found.std() / STD - 1) < bound + 0.1, (spacing, steps)
                continue
            end = gaussian_flow_between(z_T, timetable.alpha_bar[0], timetable.alpha_bar_prev[-1])
            np.testing.assert_allclose(found, end, atol=bound, err_msg=f"{spacing}, {steps} steps")


@pytest.mark.parametrize("name", ["dpm_solver_pp_2m", "dpm_solver_pp_2m_sde", "unipc_2", "unipc_3"])
@pytest.mark.parametrize("repeated", [[0, 0], [3, 3, 3], [0, 2, 5, 5]])
def test_multistep_samplers_leave_out_a_repeated_step(name, repeated):
    """Wherever it is, the result is that of the same timetable without it; no evaluation is spent on it."""
    schedule, record = make_schedule(), SAMPLERS[name]
    z_T, options = jnp.linspace(-2, 2, 9)[:, None], {"eta": 0.0} if record.draws_noise else {}
    plain = make_timetable(schedule, 6, "log_snr")
    doubled = np.sort(np.append(np.arange(6), repeated))
    levels = plain.alpha_bar[doubled]
    table = Timetable(plain.t[doubled], levels, np.append(levels[1:], 1.0))
    found = record(gaussian_eps(schedule), z_T, pad(table, 12), None, **options)
    np.testing.assert_allclose(found, record(gaussian_eps(schedule), z_T, plain, None, **options), rtol=1e-5)
    entries = record.loop(gaussian_eps(schedule), z_T, pad(table, 12), None, **options).entries[0]
    assert [int(t) for t in entries.t if t >= 0] == plain.t.tolist()
    assert int(entries.k[5]) == len(doubled) - 1  # progress ends at all steps that were asked for


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_and_two_steps_are_finite(name):
    schedule = make_schedule()
    run = jax.jit(lambda timetable: SAMPLERS[name](gaussian_eps(schedule), jnp.ones((1, 2)), timetable, None))
    for spacing in ("even", "trailing", "log_snr", "karras"):
        for steps in (1, 2):
            assert jnp.isfinite(run(make_timetable(schedule, steps, spacing))).all()


def test_random_samplers_give_the_data_distribution():
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 4096)
    z_T = start_noise(keys, (2,))
    denoise, timetable = gaussian_eps(schedule), make_timetable(schedule, 1000)
    ancestral = jax.jit(lambda: ddpm(denoise, z_T, timetable, keys))()
    # 8192 numbers: standard error 0.008 of the mean and 0.8% of the standard deviation
    assert abs(ancestral.mean() - MEAN) < 0.03
    assert abs(ancestral.std() / STD - 1) < 0.03
    # On any timetable eta = 1 is the same algorithm written otherwise.
    timetable = make_timetable(schedule, 100)
    ours = [ddpm(denoise, z_T, timetable, keys), ddim(denoise, z_T, timetable, keys, eta=1.0)]
    np.testing.assert_allclose(*ours, atol=2e-4)
    assert abs(ddim(denoise, z_T, timetable, keys, eta=0.5).std() / STD - 1) < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
def test_padding_changes_no_bit(name):
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 3)
    z_T = start_noise(keys, (4, 4, 2))
    timetable = make_timetable(schedule, 7)
    denoise = gaussian_eps(schedule)
    options = {"eta": 1.0} if name == "ddim" else {}
    run = jax.jit(lambda timetable: SAMPLERS[name](denoise, z_T, timetable, keys, **options))
    np.testing.assert_array_equal(run(timetable), run(pad(timetable, 12)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 8)
    timetable = make_timetable(schedule, 5)

    @jax.jit
    def run(keys):
        z_T = start_noise(keys, (4, 4, 2))
        kept = {"mask": jnp.ones((len(keys), 4, 4, 1)).at[:, 2:].set(0), "z_known": jnp.ones_like(z_T)}
        options = {"eta": 1.0} if name == "ddim" else {}
        return SAMPLERS[name](gaussian_eps(schedule), z_T, timetable, keys, **kept, **options)

    together = run(keys)
    assert len(np.unique(together)) == together.size
    for i in (0, 5):
        np.testing.assert_allclose(run(keys[i : i + 1])[0], together[i], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_bfloat16_network_leaves_the_latents_float32(name):
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 1)

    def denoise(z, t):
        return gaussian_eps(schedule)(z, t).astype(jnp.bfloat16)

    z = SAMPLERS[name](denoise, start_noise(keys, (2,)), make_timetable(schedule, 4), keys)
    assert z.dtype == jnp.float32


def test_settings_do_not_compile_anew():
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 2)
    z_T = start_noise(keys, (3,))
    traces = []

    def denoise_with(z, t, cond):
        traces.append(z.shape)
        return gaussian_eps(schedule)(z, t) + cond

    @jax.jit
    def run(timetable, eta, temperature, scale):
        denoise = classifier_free_guidance(denoise_with, jnp.ones((2, 1)), jnp.zeros((2, 1)), scale)
        return ddim(denoise, z_T, timetable, keys, eta=eta, temperature=temperature)

    results = [
        run(pad(make_timetable(schedule, steps), 8), eta, temperature, scale)
        for steps, eta, temperature, scale in [(8, 0.0, 1.0, 1.0), (5, 0.5, 1.0, 1.5), (3, 1.0, 0.9, 4.0)]
    ]
    assert traces == [(4, 3)]
    assert not np.allclose(results[0], results[1])


@pytest.mark.parametrize("name, count", [(name, {"plms": 7, "heun": 11}.get(name, 6)) for name in DETERMINISTIC])
def test_evaluations_per_run_and_network_copies(name, count):
    """As many evaluations as the docstring says, padding not evaluated, and one copy of the network."""
    schedule = make_schedule()
    seen, traces = [], []

    def denoise(z, t):
        traces.append(1)
        jax.debug.callback(lambda t: seen.append(int(t)), t[0])
        return jnp.zeros_like(z)

    SAMPLERS[name](denoise, jnp.ones((1, 2)), pad(make_timetable(schedule, 6), 9), None)
    jax.effects_barrier()
    assert len(seen) == count and min(seen) == 0 and max(seen) == 999
    assert len(traces) == 1


def test_the_mask_holds_the_known_region():
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 2)
    mask = jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1)
    z_known = jnp.full((2, 4, 4, 3), 7.0)
    timetable = make_timetable(schedule, 1000)
    z = ddpm(gaussian_eps(schedule), start_noise(keys, (4, 4, 3)), timetable, keys, mask=mask, z_known=z_known)
    # after the last step too, at the level of t = 0: noise of standard deviation 0.04
    np.testing.assert_allclose(z[:, :2], 7.0, atol=0.2)
    assert abs(z[:, 2:].mean() - MEAN) < 0.4


def test_bad_arguments_are_named():
    timetable, z_T = make_timetable(make_schedule(), 2), jnp.ones((2, 3))
    denoise = gaussian_eps(make_schedule())
    with pytest.raises(ValueError, match="'dpm' is not one of ddim, ddpm, plms, euler, euler_ancestral, heun,"):
        get_sampler("dpm")
    with pytest.raises(ValueError, match=r"keys must have shape \(2,\), one per sample, got None"):
        ddpm(denoise, z_T, timetable, None)
    with pytest.raises(ValueError, match=r"keys must have shape \(2,\), one per sample, got \(\)"):
        ddim(denoise, z_T, timetable, jax.random.key(0), eta=1.0)
    with pytest.raises(ValueError, match="belong together, only mask was given"):
        ddim(denoise, z_T, timetable, None, mask=jnp.ones((2, 1)))
