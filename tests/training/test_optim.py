"""Schedules and EMA against the original's (goldens), optimisers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.training.optim import ema_decay, ema_update, learning_rate, make_optimizer
from tests.golden.weights import normal
from tests.golden_tools import load
from tests.golden_training import restarted


def test_schedules_are_the_originals():
    case = load("lr_schedules")
    steps = np.array(case.meta["extra"]["n"])
    churches = learning_rate("linear_warmup", 5e-5, warmup_steps=10_000, warmup_fraction=1e-6)
    np.testing.assert_allclose(churches(steps), 5e-5 * case.outputs["linear_churches"], rtol=1e-6)
    # The original's multiplier goes 0.001 -> 0.1 -> 0.0001; our peak is the final rate at the top.
    inpainting = learning_rate(
        "cosine", 0.1, warmup_steps=1000, total_steps=50_000, warmup_fraction=0.01, final_fraction=0.001
    )
    # float32 cosines: 1e-7 of the peak
    np.testing.assert_allclose(inpainting(steps), case.outputs["cosine_inpainting"], rtol=1e-5, atol=2e-8)


def test_restarts_are_the_originals():
    case = load("lr_schedules")
    steps = np.array(case.meta["extra"]["n"])
    for kind, output in (("cosine", "cosine2"), ("linear", "linear2")):
        cycles = (
            learning_rate(kind, 1.0, warmup_steps=100, total_steps=5000, warmup_fraction=1e-4, final_fraction=0.1),
            learning_rate(kind, 0.5, warmup_steps=200, total_steps=10**8, warmup_fraction=1e-4, final_fraction=0.1),
        )
        np.testing.assert_allclose(restarted(*cycles, 5000)(steps), case.outputs[output], rtol=2e-6)


def test_constant_and_default_warm_up():
    np.testing.assert_array_equal(learning_rate("constant", 3e-4)(jnp.arange(3)), np.float32([3e-4] * 3))
    warm = learning_rate("linear_warmup", 1.0, warmup_steps=4)(np.array([0, 1, 2, 3, 4, 9]))
    np.testing.assert_allclose(warm, [0, 0.25, 0.5, 0.75, 1, 1])
    no_warm = learning_rate("cosine", 1.0, total_steps=10)(np.array([0, 5, 10, 11]))
    np.testing.assert_allclose(no_warm, [1, 0.5, 0, 0], atol=1e-6)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="'step' is not one of constant, linear_warmup, linear, cosine"):
        learning_rate("step", 1e-3)
    with pytest.raises(ValueError, match="'sgd' is not one of adam, adamw"):
        make_optimizer("sgd", 1e-3)
    with pytest.raises(ValueError, match="warmup_steps=10 is not less than total_steps=10"):
        learning_rate("cosine", 1e-3, warmup_steps=10, total_steps=10)
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 has no effect with adam"):
        make_optimizer("adam", 1e-3, weight_decay=0.1)


def test_first_updates_follow_adam_with_decoupled_decay_and_the_rate_of_the_step():
    rate = learning_rate("linear_warmup", 0.1, warmup_steps=2)
    optimizer = make_optimizer("adamw", rate, b1=0.5, b2=0.9, eps=1e-8, weight_decay=0.01)
    params = {"w": jnp.array([1.0, -2.0])}
    state, m, v, w = optimizer.init(params), np.zeros(2), np.zeros(2), np.array([1.0, -2.0])
    for step, g in enumerate([np.array([0.3, -4.0]), np.array([0.1, 2.0]), np.array([-1.0, 0.5])]):
        updates, state = optimizer.update({"w": jnp.array(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g**2
        direction = m / (1 - 0.5 ** (step + 1)) / (np.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-8)
        w = w - 0.1 * min(step / 2, 1) * (direction + 0.01 * w)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_clipping_acts_on_the_global_norm():
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for clip, factor in ((1.0, 0.2), (10.0, 1.0), (0.0, 1.0)):
        optimizer = make_optimizer("adam", 1.0, b1=0.0, b2=0.0, eps=1e6, clip_norm=clip)
        updates, _ = optimizer.update(gradients, optimizer.init(gradients))
        # With such an eps adam's step is gradient / eps.
        np.testing.assert_allclose(updates["b"], [-4.0 * factor / 1e6], rtol=1e-4)


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_originals(warmup):
    case = load("ema")
    names = case.meta["extra"]["name_map"]
    shapes = {n: case.outputs[f"num1_step1_{short}"].shape for n, short in names.items()}
    params = [{n: jnp.asarray(normal(f"input/ema/p{k}.{n}", s)) for n, s in shapes.items()} for k in range(6)]
    ema, update = params[0], jax.jit(ema_update, static_argnums=(3, 4))
    for step in range(1, 6):
        ema = update(ema, params[step], jnp.int32(step), 0.9999, warmup)
        for name, short in names.items():
            np.testing.assert_allclose(ema[name], case.outputs[f"num{int(warmup)}_step{step}_{short}"], atol=1e-6)


def test_ema_decay_warms_up():
    steps = np.array([1, 10, 10**6])
    np.testing.assert_allclose(ema_decay(steps, 0.9999), [2 / 11, 11 / 20, 0.9999], rtol=1e-6)
    np.testing.assert_allclose(ema_decay(steps, 0.9, warmup=False), [0.9] * 3, rtol=1e-6)
