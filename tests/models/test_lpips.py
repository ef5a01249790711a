"""LPIPS against plain numpy with made-up weights and against recorded values, and its gradients at awkward points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_jax.models.lpips import LPIPS, load_lpips
from tests.eval_goldens import kinds

# The networks written out once more: (out, in[, size, stride, padding]), "P" = pool, "T" = compared here.
LAYERS = {
    "vgg16": [(64, 3), (64, 64), "T", "P", (128, 64), (128, 128), "T", "P", (256, 128), (256, 256),
              (256, 256), "T", "P", (512, 256), (512, 512), (512, 512), "T", "P", (512, 512), (512, 512),
              (512, 512), "T"],
    "alex": [(64, 3, 11, 4, 2), "T", "P", (192, 64, 5, 1, 2), "T", "P", (384, 192), "T", (256, 384), "T",
             (256, 256), "T"],
}  # fmt: skip
POOL = {"vgg16": 2, "alex": 3}


def made_up(net):
    """Tensors as in the file. Their size keeps activations near 1 through all layers."""
    rng, tensors, taps, width = np.random.default_rng(0), {}, 0, 3
    convolutions = 0
    for layer in LAYERS[net]:
        if layer == "T":
            tensors[f"lin{taps}.weight"] = rng.uniform(0, 1, width).astype(np.float32)
            taps += 1
        elif layer != "P":
            out, into, size, _, _ = (*layer, 3, 1, 1)[:5] if len(layer) == 2 else layer
            kernel = rng.standard_normal((out, into, size, size)) * np.sqrt(2 / (into * size**2))
            tensors[f"net.{convolutions}.weight"] = kernel.astype(np.float32)
            tensors[f"net.{convolutions}.bias"] = rng.normal(0, 0.1, out).astype(np.float32)
            convolutions, width = convolutions + 1, out
    return tensors


def convolve(x, kernel, bias, stride, padding):
    """[C,H,W] with kernel [out,in,k,k]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, kernel, optimize=True) + bias[:, None, None]


def pool(x, size):
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::2, ::2].max((3, 4))


def features(net, tensors, image):
    x = image.astype(np.float64).transpose(2, 0, 1)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = (x - shift[:, None, None]) / scale[:, None, None]
    convolutions, taps = 0, []
    for layer in LAYERS[net]:
        if layer == "T":
            taps.append(x / (np.sqrt((x**2).sum(0)) + 1e-10))
        elif layer == "P":
            x = pool(x, POOL[net])
        else:
            stride, padding = layer[3:] if len(layer) == 5 else (1, 1)
            kernel, bias = tensors[f"net.{convolutions}.weight"], tensors[f"net.{convolutions}.bias"]
            x = np.maximum(convolve(x, kernel, bias, stride, padding), 0)
            convolutions += 1
    return taps


def plain_distance(net, tensors, a, b):
    pairs = zip(features(net, tensors, a), features(net, tensors, b))
    terms = (
        ((fa - fb) ** 2 * tensors[f"lin{i}.weight"][:, None, None]).sum(0).mean() for i, (fa, fb) in enumerate(pairs)
    )
    return sum(terms)


@pytest.fixture(scope="module", params=["vgg16", "alex"])
def made(request, tmp_path_factory):
    """(net, tensors, parameters loaded from a file)"""
    net = request.param
    path, tensors = tmp_path_factory.mktemp("weights") / f"lpips_{net}.safetensors", made_up(net)
    save_file(tensors, path)
    return net, tensors, {"params": load_lpips(path, net)}


def images(channels=3):
    """Two pairs; one size, so that what is compiled for one test serves the next."""
    return jax.random.uniform(jax.random.key(0), (2, 2, 35, 40, channels), minval=-1, maxval=1)


def test_distance_equals_plain_numpy(made):
    net, tensors, params = made
    a, b = images()
    ours = LPIPS(net).apply(params, a, b)
    expected = [plain_distance(net, tensors, np.asarray(x), np.asarray(y)) for x, y in zip(a, b)]
    # float32 against float64
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert ours.dtype == jnp.float32 and not LPIPS(net).apply(params, a, a).any()


@pytest.mark.parametrize("name", kinds.names("lpips"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_layers_and_map_add_up(made):
    net, _, params = made
    a, b = images()
    distance, layers, maps = (LPIPS(net).apply(params, a, b, result) for result in ("distance", "layers", "map"))
    np.testing.assert_allclose(layers.sum(-1), distance, rtol=1e-6)
    assert maps.shape == (2, 35, 40) and not LPIPS(net).apply(params, a, a, "map").any()
    if net == "vgg16":  # whose maps are enlarged by nearly whole factors, which keeps their means nearly
        np.testing.assert_allclose(maps.mean((1, 2)), distance, rtol=0.05)
    with pytest.raises(ValueError, match="'sum' is not one of distance, layers, map"):
        LPIPS(net).apply(params, a, b, "sum")


def test_one_channel_counts_as_three_equal_ones(made):
    net, _, params = made
    a, b = images(channels=1)
    three = LPIPS(net).apply(params, jnp.repeat(a, 3, -1), jnp.repeat(b, 3, -1))
    np.testing.assert_allclose(LPIPS(net).apply(params, a, b), three, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_gradients_are_finite_where_features_vanish(dtype):
    net = LPIPS("alex", dtype)
    a = images()[0][:1]
    black = jnp.full_like(a, -1.0)
    params = jax.jit(net.init)(jax.random.key(1), a, a)
    dead = jax.tree.map(jnp.zeros_like, params)  # without biases every feature is 0
    gradient = jax.jit(jax.grad(lambda y, p, x: net.apply(p, x, y).sum()))
    half_dead = {"params": params["params"] | {"net_2": dead["params"]["net_2"]}}
    for p in (params, dead, half_dead):
        for x, y in ((a, a), (black, black), (a, black), (black, a)):
            assert bool(jnp.isfinite(gradient(y, p, x)).all())
    assert gradient(black, params, a).any()


def test_shapes_and_parameter_counts_at_full_size():
    image = jax.ShapeDtypeStruct((4, 256, 256, 3), jnp.float32)
    # backbones without their classifiers, plus 1472, 1152 and 2240 head weights
    for net, count in (("vgg16", 14_714_688 + 1472), ("alex", 2_469_696 + 1152), ("squeeze", 722_496 + 2240)):
        out, shapes = jax.eval_shape(LPIPS(net).init_with_output, jax.random.key(0), image, image)
        assert out.shape == (4,)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_lpips(tmp_path / "lpips_vgg16.safetensors", "vgg16")
    assert "python scripts/make_lpips_weights.py" in str(error.value)


def test_file_of_another_net_is_refused(tmp_path):
    tensors = made_up("alex")
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not hold vgg16: missing \['net.10.bias'"):
        load_lpips(tmp_path / "w.safetensors", "vgg16")
    save_file(tensors | {"lin0.weight": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"lin0 has shape \(3,\), alex needs \(64,\)"):
        load_lpips(tmp_path / "w.safetensors", "alex")


def test_bad_inputs_are_named():
    x = jnp.zeros((1, 64, 64, 3))
    for net, a, b, message in (
        ("vgg", x, x, "'vgg' is not one of vgg16, alex"),
        ("alex", x, x[:, :32], r"\(1, 64, 64, 3\) and \(1, 32, 64, 3\)"),
        ("alex", x[..., :2], x[..., :2], "or"),
        ("alex", x[:, :30], x[:, :30], "at least 31x31 pixels, not 30x64"),
        ("vgg16", x[:, :15], x[:, :15], "at least 16x16 pixels, not 15x64"),
        ("squeeze", x[:, :, :16], x[:, :, :16], "at least 17x17 pixels, not 64x16"),
    ):
        with pytest.raises(ValueError, match=message):
            LPIPS(net).init(jax.random.key(0), a, b)
    jax.eval_shape(LPIPS("squeeze").init, jax.random.key(0), x[:, :17, :17], x[:, :17, :17])
