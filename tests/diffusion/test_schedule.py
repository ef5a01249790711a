import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.schedule import PURE_NOISE, make_flow_schedule, make_schedule
from tests.golden_diffusion import run_tables, schedule_of
from tests.golden_tools import load, rel

# the original's names -> ours
SCHEDULES = [
    "sched_linear_0.0015_0.0195_1000_eps_v0",
    "sched_linear_0.0015_0.0195_1000_x0_v0",
    "sched_linear_0.0015_0.0195_1000_eps_v0.5",
    "sched_cosine_0.0001_0.02_1000_eps_v0",
    "sched_sqrt_linear_0.0015_0.0195_1000_eps_v0",
    "sched_sqrt_0.0001_0.02_1000_eps_v0",
]


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_match_the_original(name):
    case = load(name)
    golden, schedule = case.outputs, schedule_of(case)
    # The two tables read off to_x0 divide by small numbers; the golden runner compares them.
    ours = {key: table.value for key, table in run_tables(case).items() if not key.startswith(("sqrt_recip", "lvlb"))}
    assert len(ours) == 10
    for key, table in ours.items():
        np.testing.assert_allclose(table, golden[key], rtol=2e-7, atol=1e-12, err_msg=key)
    # The original computes these from float32 tables, where 1 - alpha_bar cancels; ours are float64.
    np.testing.assert_allclose(schedule.lvlb_weights, golden["lvlb_weights"], rtol=3e-4)


def test_q_math_matches_the_original():
    case = load("q_math")
    z, noise = (jnp.moveaxis(case.inputs[k], 1, -1) for k in ("x0", "noise"))
    t = jnp.asarray(case.inputs["t"], jnp.int32)
    schedule = make_schedule()
    z_t = schedule.add_noise(z, noise, t)
    output = 0.3 * jnp.sin(z_t) + 0.001 * t[:, None, None, None]
    x0 = schedule.to_x0(output, z_t, t)
    ours = dict(zip(("q_mean", "q_var", "q_logvar"), schedule.marginal(z, t)))
    ours |= dict(zip(("post_mean", "post_var", "post_logvar"), schedule.posterior(z, z_t, t)))
    ours |= {
        "x_t": z_t,
        "x0_from_eps": schedule.to_x0(noise, z_t, t),
        "eps_from_x0": make_schedule(prediction="x0").to_eps(z, z_t, t),
        "p_mean": schedule.posterior(x0, z_t, t)[0],
        "p_mean_clipped": schedule.posterior(jnp.clip(x0, -1, 1), z_t, t)[0],
    }
    for key, value in ours.items():
        assert rel(jnp.moveaxis(value, -1, 1), case.outputs[key]) < 1e-6, key
    # The original subtracts numbers near 1 in float32: its value of 1e-4 is good to about 1e-6.
    np.testing.assert_allclose(schedule.prior_bpd(z), case.outputs["prior_bpd"], atol=1e-6)


@pytest.mark.parametrize("kind", ["scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_target_leads_back_to_noise_and_latent(prediction, kind):
    schedule = make_schedule(kind, prediction=prediction)
    z, noise = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    t = jnp.asarray([0, 1, 300, 700, 950], jnp.int32)
    z_t = schedule.add_noise(z, noise, t)
    output = schedule.target(z, noise, t)
    # Rounding of z_t is magnified by 1/sqrt(1-abar) for eps, by 1/sqrt(abar) for x0: at most about 150 here.
    np.testing.assert_allclose(schedule.to_eps(output, z_t, t), noise, atol=1e-4)
    np.testing.assert_allclose(schedule.to_x0(output, z_t, t), z, atol=1e-4)


def noise_of(x0, z_t, schedule, t):
    """The noise that explains z_t where the clean latent is x0."""
    return (z_t - schedule.signal(t)[:, None] * x0) / schedule.noise(t)[:, None]


def test_loss_weights_of_a_flow_are_those_of_its_clean_latent():
    flow, t = make_flow_schedule(1000), jnp.asarray([1, 100, 300, 900], jnp.int32)
    z, noise, error = jax.random.normal(jax.random.key(0), (3, 4, 8))
    z_t = flow.add_noise(z, noise, t)
    off_noise = noise_of(z + error, z_t, flow, t)
    squared = jnp.mean((flow.target(z + error, off_noise, t) - flow.target(z, noise, t)) ** 2, axis=1)
    expected = jnp.minimum(flow.snr(t), 5.0) * jnp.mean(error**2, axis=1)
    np.testing.assert_allclose(flow.loss_weight(t, "min_snr") * squared, expected, rtol=3e-3)
    # the variational bound: alpha_bar falls from alpha_bar_prev, 0.5 (snr_prev - snr) times the error of x0
    snr, before = (a[np.asarray(t)] / (1 - a[np.asarray(t)]) for a in (flow.alpha_bar, flow.alpha_bar_prev))
    bound = 0.5 * (before - snr) * np.mean(np.asarray(error) ** 2, axis=1)
    np.testing.assert_allclose(flow.lvlb_weight(t) * squared, bound, rtol=3e-3)


def test_loss_weights_of_the_three_predictions_agree():
    """A given error of x0 costs the same whichever quantity is predicted, for min_snr and for the bound."""
    t = jnp.asarray([1, 10, 300, 999], jnp.int32)
    z, noise, error = jax.random.normal(jax.random.key(0), (3, 4, 8))
    costs, bounds = {}, {}
    for prediction in ("eps", "x0", "v"):
        schedule = make_schedule(prediction=prediction)
        z_t = schedule.add_noise(z, noise, t)
        # the output whose x0 is z + error is the target of the noise that then explains z_t
        off_noise = noise_of(z + error, z_t, schedule, t)
        difference = schedule.target(z + error, off_noise, t) - schedule.target(z, noise, t)
        squared = jnp.mean(difference**2, axis=1)
        costs[prediction] = schedule.loss_weight(t, "min_snr") * squared
        bounds[prediction] = schedule.lvlb_weight(t) * squared
    expected = jnp.minimum(schedule.snr(t), 5.0) * jnp.mean(error**2, axis=1)
    for prediction, cost in costs.items():
        np.testing.assert_allclose(cost, expected, rtol=3e-3, err_msg=prediction)
    np.testing.assert_allclose(bounds["v"], bounds["eps"], rtol=3e-3)
    larger = jnp.minimum(schedule.snr(t), 20.0) / jnp.minimum(schedule.snr(t), 5.0)
    np.testing.assert_allclose(
        schedule.loss_weight(t, "min_snr", 20.0), larger * schedule.loss_weight(t, "min_snr"), rtol=1e-5
    )
    np.testing.assert_array_equal(schedule.loss_weight(t), np.ones(4))


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "cosine"])
def test_zero_terminal_snr_is_that_of_lin_et_al(kind):
    """Algorithm 1 of the paper, but for the last step: 1/32768 stands for a signal of 0."""
    before = np.sqrt(make_schedule(kind, prediction="v").alpha_bar)
    schedule = make_schedule(kind, prediction="v", zero_terminal_snr=True)
    expected = (before - before[-1]) * before[0] / (before[0] - before[-1])
    found = np.sqrt(schedule.alpha_bar)
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-12)
    assert expected[-1] == 0 and found[-1] == 1 / 32768 and (np.diff(found) < 0).all()
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alpha_bar, rtol=1e-9)
    for table in (schedule.betas, schedule.posterior_variance, schedule.lvlb_weights):
        assert np.isfinite(table).all() and (table >= 0).all()


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_of_pure_noise_the_clean_latent_is_what_the_network_says(prediction):
    schedule = make_schedule(prediction=prediction, zero_terminal_snr=True)
    z_t, x0 = jax.random.normal(jax.random.key(0), (2, 5, 8))
    t = jnp.full(5, 999)
    output = x0 if prediction == "x0" else -x0
    np.testing.assert_allclose(schedule.to_x0(output, z_t, t), x0, atol=2e-4)
    eps = schedule.to_eps(output, z_t, t)
    a = schedule.alpha_bar[-1]
    np.testing.assert_allclose((z_t - np.sqrt(1 - a) * eps) / np.sqrt(a), x0, atol=1e-2)  # as samplers do


def test_the_flow_is_the_straight_path():
    flow = make_flow_schedule(1000)
    z, noise = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
    t = jnp.asarray([0, 1, 300, 700, 998], jnp.int32)
    s = ((t + 1) / 1000)[:, None, None, None]
    z_t = flow.add_noise(z, noise, t)
    np.testing.assert_allclose(z_t, (1 - s) * z + s * noise, atol=1e-6)
    np.testing.assert_allclose(flow.signal(t) + flow.noise(t), np.ones(5), rtol=1e-6)
    velocity = flow.target(z, noise, t)
    np.testing.assert_allclose(velocity, noise - z, atol=1e-6)
    np.testing.assert_allclose(flow.to_eps(velocity, z_t, t), noise, atol=1e-5)
    np.testing.assert_allclose(flow.to_x0(velocity, z_t, t), z, atol=1e-5)
    # what samplers hold has its variance preserved, and the network sees the straight path
    a = flow.level(t)[:, None, None, None]
    np.testing.assert_allclose(flow.network_input(jnp.sqrt(a) * z + jnp.sqrt(1 - a) * noise, t), z_t, atol=1e-4)
    np.testing.assert_allclose(flow.sigma(t) ** 2, 1 / flow.alpha_bar[np.asarray(t)] - 1, rtol=1e-4)
    mean, variance, log_variance = flow.marginal(z, t)
    np.testing.assert_allclose(variance, s**2, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_variance), s**2, rtol=1e-5)
    np.testing.assert_allclose(mean, (1 - s) * z, atol=1e-6)


def test_the_flow_ends_in_pure_noise():
    flow = make_flow_schedule(100)
    assert flow is make_flow_schedule(100) and flow.pure_noise and not make_schedule().pure_noise
    assert flow.alpha_bar[-1] == PURE_NOISE and make_schedule(prediction="v", zero_terminal_snr=True).pure_noise
    t = jnp.asarray([99])
    np.testing.assert_allclose(flow.signal(t), 1 / 32768, rtol=1e-4)
    z, noise = jax.random.normal(jax.random.key(0), (2, 1, 8))
    velocity, z_t = noise - z, flow.add_noise(z, noise, t)
    np.testing.assert_allclose(flow.to_x0(velocity, z_t, t), z, atol=1e-5)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make_flow_schedule(1)


def test_equal_arguments_give_one_object_with_read_only_tables():
    assert make_schedule(end=0.02) is make_schedule(end=0.02)
    with pytest.raises(ValueError, match="read-only"):
        make_schedule().betas[0] = 1


def test_a_step_beyond_the_table_is_nan_not_its_neighbour():
    assert jnp.isnan(jax.jit(make_schedule().snr)(jnp.asarray([999, 1000]))).tolist() == [False, True]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"'sqrt_linear' is 'linear' here"):
        make_schedule("sqrt_linear")
    with pytest.raises(ValueError, match=r"prediction 'noise' is not one of eps, x0, v"):
        make_schedule(prediction="noise")
    with pytest.raises(ValueError, match=r"zero_terminal_snr=True with prediction='eps'"):
        make_schedule(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="reaches pure noise long before"):
        make_schedule("sqrt", prediction="v", zero_terminal_snr=True)
    with pytest.raises(ValueError, match=r"start 0.02 and end 0.01"):
        make_schedule(start=0.02, end=0.01)
    with pytest.raises(ValueError, match=r"'snr' is not one of none, min_snr"):
        make_schedule().loss_weight(jnp.zeros(1, jnp.int32), "snr")
