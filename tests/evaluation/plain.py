"""Layers written out in numpy, float64, to compare networks with. Images are [C,H,W], weights PyTorch's."""

import numpy as np


def convolve(x, weight, bias=None, stride=1, padding=((0, 0), (0, 0))):
    """weight [out,in,k,k], or [C,1,k,k] for each channel by itself."""
    x = np.pad(x, ((0, 0), *padding))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2))[:, ::stride, ::stride]
    if weight.shape[1] == 1 and len(x) > 1:
        out = np.einsum("chwij,cij->chw", windows, weight[:, 0], optimize=True)
    else:
        out = np.einsum("chwij,ocij->ohw", windows, weight, optimize=True)
    return out if bias is None else out + bias[:, None, None]


def same(side, size, stride):
    """TensorFlow's padding: the output has ceil(side / stride), the odd zero stands at the end."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def norm(x, state, name, eps=1e-3):
    mean, var, weight, bias = (
        state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def made_up_norm(random, name, width):
    """Its four arrays, none trivial."""
    return {
        f"{name}.running_mean": random.normal(0, 0.3, width).astype(np.float32),
        f"{name}.running_var": random.uniform(0.3, 2, width).astype(np.float32),
        f"{name}.weight": random.uniform(0.5, 1.5, width).astype(np.float32),
        f"{name}.bias": random.normal(0, 0.3, width).astype(np.float32),
        f"{name}.num_batches_tracked": np.array(3, np.int64),
    }


def made_up_filter(random, *shape):
    return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
