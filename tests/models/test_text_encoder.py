"""The text encoder against the original's outputs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.text_encoder import TextEncoder
from tests.golden_tools import load, rel, to_flax, torch_state

# Float32 round-off over a few layers: two correct implementations differ by 5e-6.
TOLERANCE = 1e-4


def small(name):
    case = load(name)
    case = replace(case, inputs=jax.tree.map(jnp.asarray, case.inputs))
    state = torch_state(case)
    vocab, dim = state["token_emb.weight"].shape
    depth = len({k.split(".")[2] for k in state if k.startswith("attn_layers.layers")}) // 2
    model = TextEncoder(vocab, state["pos_emb.emb.weight"].shape[0], dim, depth)
    shapes = jax.eval_shape(lambda t: model.init(jax.random.key(0), t, logits=True), case.inputs["tokens"])
    return case, state, model, shapes["params"]


@pytest.mark.parametrize("output", ["emb", "emb_masked", "logits"])
def test_original(output):
    case, state, model, shapes = small("mod_x_transformer_small")
    mask = case.inputs["mask"] if output == "emb_masked" else None
    params = to_flax(shapes, state)
    ours = model.apply({"params": params}, case.inputs["tokens"], mask, logits=output == "logits")
    assert rel(ours, case.outputs[output]) < TOLERANCE


def test_epsilon_of_the_norms():
    """With embeddings this small a wrong epsilon of a LayerNorm shows."""
    case, state, model, shapes = small("mod_x_transformer_lowvar")
    state = {k: v * np.float32(0.005) if "emb" in k else v for k, v in state.items()}
    ours = model.apply({"params": to_flax(shapes, state)}, case.inputs["tokens"])
    assert rel(ours, case.outputs["emb"]) < TOLERANCE


def test_too_many_tokens():
    with pytest.raises(ValueError, match=r"9 tokens.*8 positions"):
        jax.eval_shape(TextEncoder(5, 8, 16, 1).init, jax.random.key(0), np.zeros((1, 9), np.int32))


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_spread_of_new_embeddings(std):
    model = TextEncoder(500, 200, 32, 1, embedding_std=std)
    params = model.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32))["params"]
    for table in (params["token_emb"]["embedding"], params["pos_emb"]["emb"]["embedding"]):
        assert np.std(table) == pytest.approx(std, rel=0.03)
