"""The classifier's loss and its accuracies, with a stand-in network that knows t alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.ldm import LatentSpace
from ldm_jax.models.autoencoder import IdentityFirstStage
from ldm_jax.training.classifier_task import ClassifierTask
from ldm_jax.training.optim import make_optimizer
from tests.fast import compiled

FROZEN = {"first_stage": {}, "latent_scale": jnp.float32(0.5)}
KEY = jax.random.key_data(jax.random.key(0))


class Thirds(nn.Module):
    """Sure that the class is the third of the schedule that t lies in; trains one number."""

    @nn.compact
    def __call__(self, z, t, context=None, *, train=False):
        sure = self.param("sure", nn.initializers.constant(5.0), ())
        return sure * jax.nn.one_hot(t * 3 // 1000, 4) + 0 * z.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def task():
    model = LatentClassifier(LatentSpace(IdentityFirstStage()), Thirds(), make_schedule())
    return ClassifierTask(model, make_optimizer("adamw", 1e-2), lambda step: 1e-2, scale_is_given=True)


@pytest.fixture(scope="module")
def state(task):
    return task.init(KEY, FROZEN, batch(0))


def batch(label, size=6):
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (size, 8, 8, 3)), jnp.float32)
    return {"image": image, "label": jnp.full(size, label, jnp.int32)}


@pytest.fixture(scope="module")
def evaluate(task, state):
    return compiled(task.evaluate, state, FROZEN, batch(0), 0)


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_accuracy_by_noise_level(evaluate, state, label):
    """A class that the network names in one third of the schedule (or never) is right there and nowhere else."""
    values = evaluate(state, FROZEN, batch(label), 0)
    thirds = [float(values[f"accuracy_{name}"].mean()) for name in ("low_t", "mid_t", "high_t")]
    assert thirds == [float(label == k) for k in range(3)]
    np.testing.assert_allclose(values["accuracy"], (label < 3) / 3, rtol=1e-6)
    right, wrong = (-jax.nn.log_softmax(jnp.array([5.0, 0, 0, 0])))[:2]
    expected = (right + 2 * wrong) / 3 if label < 3 else wrong
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    assert all(v.shape == (6,) for v in values.values())


def test_log_p_is_a_distribution_and_its_mean_is_the_loss(task, state):
    z, t = jnp.zeros((4, 8, 8, 3)), jnp.array([1, 400, 700, 999])
    log_p = [task.ldm.log_p(state.params, z, t, jnp.full(4, y)) for y in range(4)]
    np.testing.assert_allclose(jnp.exp(jnp.stack(log_p)).sum(0), 1, rtol=1e-5)
    assert np.isnan(task.ldm.log_p(state.params, z, t, jnp.full(4, 4))).all()  # there is no class 4


def test_a_step_and_the_scale_of_the_guided_model(task, state):
    """Every third comes up: sure of three classes of which one is right, the network becomes less sure."""
    after, metrics = compiled(task.step, state, FROZEN, batch(1, 60))(state, FROZEN, batch(1, 60))
    assert 0 < float(metrics["accuracy"]) < 1 and np.isfinite(float(metrics["loss"]))
    assert after.params["classifier"]["sure"] < state.params["classifier"]["sure"]
    np.testing.assert_allclose(metrics["param_norm"], optax.global_norm(after.params), rtol=1e-6)
    assert task.prepare(FROZEN, iter(()), print) is FROZEN
    assert task.pictures(state, FROZEN, batch(0), None) == {}
