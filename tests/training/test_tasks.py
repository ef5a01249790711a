"""Train steps: accumulation equals the whole batch, and generator, discriminator and codebook move when they should."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.keys import sample_keys, stream
from ldm_jax.ldm import POSTERIOR_STREAM
from ldm_jax.models.autoencoder import AutoencoderKL, VQModel
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.training import sharding, tasks
from ldm_jax.training.optim import learning_rate, make_optimizer
from ldm_jax.training.state import TrainState

SMALL = dict(ch=32, ch_mult=(1,), num_res_blocks=1, resolution=16)


def test_accumulation_is_the_mean_over_all_samples():
    batch = {"image": jnp.arange(12.0).reshape(6, 2)}
    keys = jax.random.split(jax.random.key(0), 6)

    def fn(batch, keys, carry):
        noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys)
        return {"value": jnp.mean(batch["image"] + noise)}, carry + 1

    whole, once = tasks.accumulate(fn, batch, keys, jnp.int32(0), 1)
    parts, thrice = tasks.accumulate(fn, batch, keys, jnp.int32(0), 3)
    np.testing.assert_allclose(whole["value"], parts["value"], rtol=1e-6)
    assert (int(once), int(thrice)) == (1, 3)


def test_parts_on_a_cpu_follow_each_other_in_the_memory_of_one():
    """No loop, in which XLA for CPUs is slow; and what the parts keep for their gradients is not there at once."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 64), np.float32) / 8 for _ in range(6)]
    batch = {"image": rng.standard_normal((4096, 64), np.float32)}
    keys = jax.random.split(jax.random.key(0), 4096)

    def compiled(steps):
        def gradients(weights, batch, keys):
            def loss(weights, x):
                for w in weights:
                    x = jnp.tanh(x @ w)
                return jnp.mean(x**2)

            fn = lambda batch, keys, carry: (jax.grad(loss)(weights, batch["image"]), carry)  # noqa: E731
            return tasks.accumulate(fn, batch, keys, (), steps)[0]

        return jax.jit(gradients).lower(weights, batch, keys).compile()

    once, parts = compiled(1), compiled(8)
    assert " while(" not in parts.as_text()
    assert parts.memory_analysis().temp_size_in_bytes < 0.3 * once.memory_analysis().temp_size_in_bytes
    for whole, summed in zip(once(weights, batch, keys), parts(weights, batch, keys)):
        np.testing.assert_allclose(summed, whole, rtol=1e-4, atol=1e-7)


class Applied(Exception):
    """Ends a step where its model is applied; holds the model's keys."""


def test_the_first_stage_uses_no_key_twice():
    """Posterior and dropout have streams of their own, as in ldm.py; the samples' own keys are not drawn from."""

    class Model:
        def apply(self, variables, image, keys, train, rngs):
            raise Applied(keys, rngs)

    task = tasks.FirstStageTask(Model(), None, None, tasks.FirstStageSettings("kl"), None, None)
    parts = {"autoencoder": {}, "discriminator": {}}
    state = TrainState(jnp.int32(5), parts, {}, parts, {"batch_stats": {}}, jax.random.key_data(jax.random.key(0)))
    with pytest.raises(Applied) as applied:
        task.step(state, {}, {"image": jnp.zeros((3, 8, 8, 3))})
    posterior, rngs = applied.value.args
    samples = sample_keys(state.step_key(), 3)
    assert (posterior == stream(samples, POSTERIOR_STREAM)).all()
    used = [posterior, rngs["dropout"][None], samples]
    assert len({tuple(row) for keys in used for row in jax.random.key_data(keys).tolist()}) == 7


@pytest.fixture(scope="module", params=["kl", "vq"])
def stepped(request):
    """States after 0..4 steps; the discriminator learns from step 1 on and is heard from step 3 on."""
    kind = request.param
    model = AutoencoderKL(**SMALL) if kind == "kl" else VQModel(**SMALL, n_embed=16)
    settings = tasks.FirstStageSettings(
        family=kind, n_embed=16 if kind == "vq" else 0, perceptual_weight=0.0, disc_start=3, disc_learns_from=1
    )
    rate = learning_rate("constant", 1e-3)
    task = tasks.FirstStageTask(
        model=model,
        discriminator=NLayerDiscriminator(8, 1),
        lpips=None,
        settings=settings,
        optimizer=make_optimizer("adam", rate, b1=0.5, b2=0.9),
        learning_rate=rate,
    )
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    batch = {"image": image}
    state = jax.jit(task.init)(jax.random.key_data(jax.random.key(0)), {}, batch)
    step = jax.jit(task.step)
    states, told = [state], []
    for _ in range(4):
        state, metrics = step(state, {}, batch)
        states.append(state)
        told.append(metrics)
    return kind, states, told


def test_without_its_weight_there_is_no_discriminator():
    rate = learning_rate("constant", 1e-3)
    settings = tasks.FirstStageSettings("kl", perceptual_weight=0.0, disc_start=0, disc_learns_from=0, disc_weight=0.0)
    task = tasks.FirstStageTask(
        AutoencoderKL(**SMALL), NLayerDiscriminator(8, 1), None, settings, make_optimizer("adam", rate), rate
    )
    batch = {"image": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)}
    state = jax.jit(task.init)(jax.random.key_data(jax.random.key(0)), {}, batch)
    after, metrics = jax.jit(task.step)(state, {}, batch)
    assert all(moved(state.params["autoencoder"]["decoder"], after.params["autoencoder"]["decoder"]))
    for name in ("params", "opt_state"):
        assert not any(moved(getattr(state, name)["discriminator"], getattr(after, name)["discriminator"]))
    assert "logits_real" not in metrics and float(metrics["loss"]) > 0


def moved(before, after):
    return [bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))]


def test_the_discriminator_learns_from_its_step_on(stepped):
    _, states, told = stepped
    pairs = [(a.params["discriminator"], b.params["discriminator"]) for a, b in itertools.pairwise(states)]
    assert not any(moved(*pairs[0]))
    assert all(any(moved(*pair)) for pair in pairs[1:])
    assert float(told[0]["disc_loss"]) == 0.0 and float(told[1]["disc_loss"]) > 0.0


def test_the_autoencoder_and_its_codebook_move_in_every_step(stepped):
    kind, states, _ = stepped
    for before, after in itertools.pairwise(states):
        assert any(moved(before.params["autoencoder"]["encoder"], after.params["autoencoder"]["encoder"]))
        assert any(moved(before.params["autoencoder"]["decoder"], after.params["autoencoder"]["decoder"]))
        if kind == "vq":
            assert any(moved(before.params["autoencoder"]["quantize"], after.params["autoencoder"]["quantize"]))


def test_running_statistics_and_norms_are_told(stepped):
    _, states, told = stepped
    assert jax.tree.leaves(states[0].variables["batch_stats"]) == [] or any(
        moved(states[0].variables, states[1].variables)
    )
    np.testing.assert_allclose(told[-1]["param_norm"], optax.global_norm(states[-1].params), rtol=1e-5)


def test_pictures_of_a_first_stage_are_pairs():
    """Of the first images of the batch; on several devices the batch is filled up, and what fills it is not shown."""

    class Half:
        def apply(self, variables, image):
            return image * variables["params"]["by"], None

    settings = tasks.FirstStageSettings("kl", pictures=3)
    task = tasks.FirstStageTask(Half(), None, None, settings, None, None)
    params = {"autoencoder": {"by": jnp.float32(0.5)}, "discriminator": {}}
    state = TrainState(jnp.int32(0), params, {}, {}, {}, jax.random.key_data(jax.random.key(0)))
    image = np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, 3)).astype(np.float32)
    made = task.pictures(state, {}, {"image": jnp.asarray(image)}, sharding.make_mesh())["reconstructions"]
    assert made.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(made[0::2], image[:3])
    np.testing.assert_allclose(made[1::2], image[:3] / 2)
