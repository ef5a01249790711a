"""Makes dit.npz beside it; needs torch, unlike the tests.

    python tests/models/make_dit_golden.py

The forward pass of a diffusion transformer (arXiv 2212.09748, section 3.2), written from the paper's formulas in
torch with the parameter names and shapes of facebookresearch/DiT, for made-up weights of a tiny one: 2 blocks of width
16, 2 heads, patches of 2x2, 10 classes and the null class, 4 channels and their variances. The file holds the state
dict ("weights." and its key), x [2,4,8,8], t [2], y [2] and out [2,8,8,8].
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH, CHANNELS, SIDE, CLASSES = 16, 2, 2, 2, 4, 8, 10
TOKENS = (SIDE // PATCH) ** 2


def shapes() -> dict[str, tuple[int, ...]]:
    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    found = {
        "x_embedder.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": (WIDTH,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH),
    }
    found |= linear("t_embedder.mlp.0", 256, WIDTH) | linear("t_embedder.mlp.2", WIDTH, WIDTH)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        found |= linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        found |= linear(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH) | linear(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
        found |= linear(f"{block}.adaLN_modulation.1", WIDTH, 6 * WIDTH)
    found |= linear("final_layer.linear", WIDTH, PATCH * PATCH * 2 * CHANNELS)
    return found | linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH)


def pos_embed() -> torch.Tensor:
    """[1,N,width]: for each token the sines and cosines of its column, then of its row, one number after the other."""
    side, quarter = SIDE // PATCH, WIDTH // 4
    table = torch.zeros(side, side, WIDTH, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for k in range(quarter):
                    angle = torch.tensor(place / 10000 ** (k / quarter), dtype=torch.float64)
                    table[row, column, half * 2 * quarter + k] = torch.sin(angle)
                    table[row, column, half * 2 * quarter + quarter + k] = torch.cos(angle)
    return table.reshape(1, TOKENS, WIDTH).float()


def forward(w: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def linear(name: str, a: torch.Tensor) -> torch.Tensor:
        return F.linear(a, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulated(a: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(a, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def attention(name: str, a: torch.Tensor) -> torch.Tensor:
        q, k, v = linear(f"{name}.qkv", a).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in (q, k, v))
        return linear(f"{name}.proj", F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    tokens = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    tokens = tokens.flatten(2).transpose(1, 2) + w["pos_embed"]
    angles = t[:, None].float() * 10000 ** (-torch.arange(128).float() / 128)
    time = torch.cat([angles.cos(), angles.sin()], dim=1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time))) + w["y_embedder.embedding_table.weight"][y]
    c = F.silu(c)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shift, scale, gate, shift_2, scale_2, gate_2 = linear(f"{block}.adaLN_modulation.1", c).chunk(6, dim=1)
        tokens = tokens + gate[:, None] * attention(f"{block}.attn", modulated(tokens, shift, scale))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", modulated(tokens, shift_2, scale_2)), approximate="tanh")
        tokens = tokens + gate_2[:, None] * linear(f"{block}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    patches = linear("final_layer.linear", modulated(tokens, shift, scale))  # [B,N,p*p*8]
    out = torch.zeros(len(x), 2 * CHANNELS, SIDE, SIDE)
    for token in range(TOKENS):
        row, column = divmod(token, SIDE // PATCH)
        patch = patches[:, token].reshape(-1, PATCH, PATCH, 2 * CHANNELS).permute(0, 3, 1, 2)
        out[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = patch
    return out


def main() -> None:
    torch.manual_seed(0)
    weights = {
        key: torch.randn(shape) / (max(1, int(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 5)
        for key, shape in shapes().items()
    }
    weights["pos_embed"] = pos_embed()
    x, t, y = torch.randn(2, CHANNELS, SIDE, SIDE), torch.tensor([3, 700]), torch.tensor([1, CLASSES])
    arrays = {f"weights.{key}": array.numpy() for key, array in weights.items()}
    arrays |= {"x": x.numpy(), "t": t.int().numpy(), "y": y.int().numpy(), "out": forward(weights, x, t, y).numpy()}
    np.savez(Path(__file__).parent / "dit.npz", **arrays)


if __name__ == "__main__":
    main()
