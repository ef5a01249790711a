"""Steps whose loss or gradient is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.training import nonfinite
from ldm_jax.training.optim import make_optimizer
from ldm_jax.training.state import TrainState
from tests.training.test_stopping import lines, run


def test_the_step_of_a_run_that_stops_is_the_task_s_own():
    def step(state, frozen, batch): ...

    assert nonfinite.step_of(step, "stop", 0) is step
    with pytest.raises(ConfigError, match=r"config\.on_nonfinite='ignore'"):
        nonfinite.step_of(step, "ignore", 0)
    with pytest.raises(ConfigError, match=r"config\.nonfinite_limit=0"):
        nonfinite.Collector("run", 0)


def test_a_skipped_step_changes_nothing_but_the_count():
    """Of two networks with an optimiser each, as first stages have them, one has a bad gradient; and the statistics."""
    optimizer = make_optimizer("adam", 1e-3)

    def step(state, frozen, batch):
        grads = {name: batch[name] * state.params[name] for name in state.params}
        pairs = {name: optimizer.update(grads[name], state.opt_state[name]) for name in grads}
        params = {name: state.params[name] + updates for name, (updates, _) in pairs.items()}
        new = state.replace(step=state.step + 1, params=params, opt_state={k: v for k, (_, v) in pairs.items()})
        norms = {f"{name}_norm": jnp.linalg.norm(grad) for name, grad in grads.items()}
        return new.replace(variables={"mean": state.variables["mean"] + 1}), norms | {
            "param_norm": jnp.float32(jnp.nan)
        }

    params = {"autoencoder": jnp.ones(3), "discriminator": jnp.ones(2)}
    key = jax.random.key_data(jax.random.key(0))
    opt_state = {name: optimizer.init(part) for name, part in params.items()}
    state = TrainState(jnp.int32(7), params, {}, opt_state, {"mean": jnp.zeros(2)}, key)
    guarded, good = jax.jit(nonfinite.skipping(step)), {"autoencoder": 1.0, "discriminator": 1.0}
    after, metrics = guarded(state, {}, good)
    expected, _ = jax.jit(step)(state, {}, good)
    assert metrics["skipped"] == 0 and jax.tree.all(jax.tree.map(np.array_equal, after, expected))
    assert not np.array_equal(after.params["discriminator"], state.params["discriminator"])
    skipped, metrics = guarded(after, {}, good | {"discriminator": np.nan})
    assert metrics["skipped"] == 1 and np.isnan(metrics["discriminator_norm"]) and skipped.step == 9
    assert jax.tree.all(jax.tree.map(np.array_equal, skipped, after.replace(step=jnp.int32(9))))


def test_other_noise_is_of_the_step_alone():
    def step(state, frozen, batch):
        return state.replace(step=state.step + 1), {"draw": jax.random.uniform(state.step_key())}

    state = TrainState(jnp.int32(3), {}, {}, {}, {}, jax.random.key_data(jax.random.key(0)))
    draws = [nonfinite.step_of(step, "stop", seed)(state, {}, {}) for seed in (0, 1, 2)]
    assert len({float(metrics["draw"]) for _, metrics in draws}) == 3
    assert all(np.array_equal(new.key, state.key) and new.step == 4 for new, _ in draws)


def test_a_stop_names_the_metrics_and_the_module(tmp_path):
    """And the run goes on past it when it may skip the step."""
    out = run(tmp_path, "nan_at=4", "checkpoint=2", code=1)
    assert "step 4: grad_norm, loss is not finite" in out and "steps 3 to 4 are done again" in out
    assert "Gradients that are not finite, of 1 of 2 modules: net/other" in out
    assert "skipped 1 (not finite)" in run(tmp_path, "nan_at=4", "checkpoint=2", "on_nonfinite=skip")
    assert [(line["step"], line.get("skipped")) for line in lines(tmp_path)] == [
        (1, None), (2, None), (3, 0), (4, 1), (5, 0), (6, 0),
    ]  # fmt: skip
    assert "loss" not in lines(tmp_path)[3]


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    out = run(tmp_path, "nan_at=2,4,5,6", "log=6", "on_nonfinite=skip", code=1)
    assert "step 6: grad_norm, loss is not finite. 3 steps in a row were skipped" in out and "net/other" in out
