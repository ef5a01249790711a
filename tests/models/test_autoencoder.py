"""First stages against the original's outputs, their sizes, and the interface that all three share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tree
from ldm_jax.models.autoencoder import AutoencoderKL, Decoder, Encoder, IdentityFirstStage, VQModel
from ldm_jax.models.layers import Conv, space_to_depth
from tests.golden_tools import load, nchw, nhwc, rel, to_flax, torch_state

SMALL = dict(ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(16,), resolution=64)
IMAGE = (2, 8, 16, 3)  # one size where any would do: what is compiled for one test serves the next
TINY = dict(ch=32, ch_mult=(1, 2), num_res_blocks=1, resolution=16, z_channels=4, embed_dim=3)

# Millions of parameters: the table of released first stages.
SIZES = {
    "kl-f4": (AutoencoderKL(), 55.31),
    "kl-f8": (AutoencoderKL(ch_mult=(1, 2, 4, 4), z_channels=4, embed_dim=4), 83.65),
    "vq-f4": (VQModel(), 55.32),
    "vq-f8": (
        VQModel(ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), z_channels=4, embed_dim=4, n_embed=16384),
        67.72,
    ),
}


def shapes_of(module, size=64):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def random_variables(module):
    """Drawn in numpy, which is quicker than compiling init: kernels about 0, gains and biases about 1."""
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.08 * rng.normal(size=a.shape) + (a.ndim == 1), a.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes_of(module))


@pytest.mark.parametrize("name", SIZES)
def test_number_of_parameters(name):
    module, millions = SIZES[name]
    assert round(tree.count(shapes_of(module)) / 1e6, 2) == millions


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_parts_equal_the_original(part):
    case = load(f"mod_vae_{part}_small")
    if part == "encoder":
        module = Encoder(**SMALL, attn_type="vanilla", out_channels=8)
    else:
        module = Decoder(**SMALL, attn_type="vanilla", out_channels=3)
    x = jnp.asarray(nhwc(case.inputs["x"]))
    params = to_flax(jax.eval_shape(module.init, jax.random.key(0), x)["params"], torch_state(case))
    for key, output in (("x", "y"), ("x_small", "y_small")):
        y = module.apply({"params": params}, jnp.asarray(nhwc(case.inputs[key])))
        y = y[0] if part == "decoder" else y
        assert rel(nchw(y), case.outputs[output]) < 1e-4, key


def test_vq_f4_equals_the_original():
    case, module = load("first_stage__vq-f4_64x64"), VQModel()
    variables = {"params": to_flax(shapes_of(module)["params"], torch_state(case))}
    apply = jax.jit(module.apply, static_argnames="method")
    image = jnp.asarray(nhwc(case.inputs["x"]))
    reconstruction, aux = apply(variables, image)
    assert rel(nchw(aux["latents"]), case.outputs["prequant"]) < 1e-4
    assert rel(aux["codebook_loss"], case.outputs["qloss"]) < 1e-4
    clear = case.outputs["margin_d2_minus_d1"] > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(np.asarray(aux["indices"])[clear], case.outputs["indices"][clear])
    assert rel(nchw(reconstruction), case.outputs["dec"]) < 1e-4
    indices = jnp.asarray(case.outputs["indices"])
    quantised = module.apply(variables, indices, method=lambda m, i: m.quantize.lookup(i))
    assert rel(nchw(quantised), case.outputs["quant"]) < 1e-4


def test_kl_f8_equals_the_original():
    case, module = load("first_stage__kl-f8_64x64"), SIZES["kl-f8"][0]
    variables = {"params": to_flax(shapes_of(module)["params"], torch_state(case))}
    image = jnp.asarray(nhwc(case.inputs["x"]))
    reconstruction, aux = jax.jit(module.apply)(variables, image)
    assert rel(nchw(aux["latents"]), case.outputs["mode"]) < 1e-4
    assert np.allclose(aux["kl"], case.outputs["kl"], rtol=1e-4)
    assert rel(nchw(reconstruction), case.outputs["dec"]) < 1e-4


def test_decoding_without_the_codebook_equals_the_original():
    case, module = load("first_stage__vq-f4_64x64"), VQModel()
    variables = {"params": to_flax(shapes_of(module)["params"], torch_state(case))}
    z = jnp.asarray(nhwc(case.outputs["prequant"]))
    image = jax.jit(lambda v, z: module.apply(v, z, quantize=False, method="decode"))(variables, z)
    assert rel(nchw(image), case.outputs["dec_noquant"]) < 1e-4


@pytest.mark.parametrize("module", [AutoencoderKL(**TINY), VQModel(**TINY, n_embed=8), IdentityFirstStage()])
def test_one_interface(module):
    image = jax.random.uniform(jax.random.key(1), IMAGE, minval=-1)
    variables = random_variables(module)
    reconstruction, aux = module.apply(variables, image, jax.random.key(2))
    z = module.apply(variables, image, method="latents")
    assert reconstruction.shape == image.shape == module.apply(variables, z, method="decode").shape
    assert z.shape == aux["latents"].shape
    assert reconstruction.dtype == z.dtype == jnp.float32
    if "features" in aux and variables:
        conv = variables["params"]["decoder"]["conv_out"]
        again = Conv(3).apply({"params": conv}, aux["features"])
        assert np.allclose(again, reconstruction, rtol=1e-4, atol=1e-4)


def test_kl_samples_with_a_key_and_takes_the_mode_without():
    module, image = AutoencoderKL(**TINY), jnp.ones(IMAGE)
    variables = random_variables(module)
    z = module.apply(variables, image, method="latents")
    assert np.array_equal(z, module.apply(variables, image)[1]["latents"])
    sampled = module.apply(variables, image, jax.random.key(3), method="latents")
    assert not np.array_equal(z, sampled)
    assert module.apply(variables, image)[1]["kl"].shape == (2,)


def test_indices_decode_to_the_reconstruction():
    module, image = VQModel(**TINY, n_embed=8), jax.random.normal(jax.random.key(1), IMAGE)
    variables = random_variables(module)
    reconstruction, aux = module.apply(variables, image)
    decoded = module.apply(variables, aux["indices"], method="decode_indices")
    assert np.allclose(decoded, reconstruction, rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_near_float32():
    image = jax.random.uniform(jax.random.key(1), IMAGE, minval=-1)
    exact, rough = AutoencoderKL(**TINY), AutoencoderKL(**TINY, dtype=jnp.bfloat16)
    variables = random_variables(exact)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(rough)))
    # Rounding adds up along the network, so the reconstruction may be off by more than the latents.
    (image_a, a), (image_b, b) = exact.apply(variables, image), jax.jit(rough.apply)(variables, image)
    pairs = ((a["latents"], b["latents"], 2e-2), (image_a, image_b, 5e-2))
    for ours, rounded, tolerance in pairs:
        assert rounded.dtype == jnp.float32
        assert jnp.linalg.norm(ours - rounded) / jnp.linalg.norm(ours) < tolerance


def test_pixel_patches_become_channels_before_and_pixels_after_the_networks():
    module, image = AutoencoderKL(**TINY, patch=2), jax.random.uniform(jax.random.key(1), (2, 16, 32, 3), minval=-1)
    variables = random_variables(module)
    reconstruction, aux = module.apply(variables, image)
    assert aux["latents"].shape == (2, 4, 8, 3) and reconstruction.shape == image.shape  # f = 2 * 2
    inside = AutoencoderKL(**TINY, in_channels=12, out_channels=12)
    folded, same = inside.apply(variables, space_to_depth(image, 2))
    assert np.array_equal(aux["latents"], same["latents"])
    assert np.array_equal(space_to_depth(reconstruction, 2), folded)
    with pytest.raises(ValueError, match="multiples of 4"):
        module.apply(variables, image[:, :6])


@pytest.mark.parametrize("attn_type,leaves", [("none", 0), ("linear", 3), ("vanilla", 10)])
def test_middle_attention(attn_type, leaves):
    names = tree.select(shapes_of(AutoencoderKL(**TINY, attn_type=attn_type)), "encoder/mid_attn_1")
    assert len(names) == leaves


def test_without_the_1x1_convolutions():
    """The same as with ones that change nothing."""
    image = jax.random.uniform(jax.random.key(1), IMAGE, minval=-1)
    plain = AutoencoderKL(**TINY | dict(embed_dim=TINY["z_channels"]), use_quant_conv=False, use_post_quant_conv=False)
    params = random_variables(plain)["params"]
    assert not tree.select(params, "quant_conv")
    same = {
        name: {"kernel": jnp.eye(width)[None, None], "bias": jnp.zeros(width)}
        for name, width in (("quant_conv", 2 * TINY["z_channels"]), ("post_quant_conv", TINY["z_channels"]))
    }
    usual = AutoencoderKL(**TINY | dict(embed_dim=TINY["z_channels"]))
    ours, theirs = plain.apply({"params": params}, image)[0], usual.apply({"params": params | same}, image)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    module = AutoencoderKL(**TINY)
    with pytest.raises(ValueError, match=r"9x8x3.*multiples of 2"):
        module.init(jax.random.key(0), jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(ValueError, match="attn_type='full'"):
        AutoencoderKL(**TINY, attn_type="full").init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
