"""Autoencoders of diffusers beside ours: the library makes and saves a random one, convert.py reads and writes it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, rundir
from ldm_jax.cli import convert
from ldm_jax.ldm import LatentSpace

KL, VQ = "AutoencoderKL", "VQModel"
MODELS = {
    "stable_diffusion": (KL, dict(latent_channels=4, block_out_channels=(32, 64, 64))),
    "sixteen_channels": (
        KL,
        dict(
            latent_channels=16,
            block_out_channels=(32, 64),
            layers_per_block=2,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    ),
    "each_channel": (
        KL,
        dict(
            latent_channels=4,
            block_out_channels=(32, 96),
            mid_block_add_attention=False,
            scaling_factor=0.5,
            latents_mean=[0.5, -1.0, 0.25, 2.0],
            latents_std=[1.0, 2.0, 0.5, 4.0],
        ),
    ),
    "other_groups": (KL, dict(latent_channels=4, block_out_channels=(48, 96), norm_num_groups=16, attends=True)),
    "vq": (VQ, dict(latent_channels=3, block_out_channels=(32, 64), num_vq_embeddings=24)),
    "vq_other_width": (
        VQ,
        dict(
            latent_channels=8,
            vq_embed_dim=4,
            block_out_channels=(32, 32, 64),
            num_vq_embeddings=24,
            scaling_factor=0.3,
            attends=True,
        ),
    ),
}


def made(folder, kind, attends=False, **settings):
    """The library's model with random weights, saved in `folder`. Norms and biases are moved from 1 and 0."""
    import diffusers
    import torch

    torch.manual_seed(0)
    levels = len(settings["block_out_channels"])
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    if attends:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    model = getattr(diffusers, kind)(down_block_types=down, up_block_types=up, **settings).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith("quantize"):
                value.normal_()
            elif value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(folder)
    return model


def theirs(model, kind, image):
    """(latent, reconstruction of it), NumPy [B,h,w,c] and [B,H,W,C]; of a posterior its mean."""
    import torch

    with torch.no_grad():
        found = model.encode(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))))
        z = found.latent_dist.mean if kind == KL else found.latents
        return [x.numpy().transpose(0, 2, 3, 1) for x in (z, model.decode(z).sample)]


def near(ours, wanted):
    """The largest difference as a part of the standard deviation of what is wanted."""
    return float(np.abs(np.asarray(ours) - wanted).max() / wanted.std())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_latents_and_reconstructions_are_the_librarys(name, tmp_path):
    pytest.importorskip("diffusers", reason="pip install -r requirements-bench.txt")
    kind, settings = MODELS[name]
    model = made(tmp_path / "vae", kind, **settings)
    image = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3)))
    wanted_z, wanted = theirs(model, kind, image)

    convert.main(["--from", str(tmp_path / "vae"), "--to", str(tmp_path / "run"), "--config.loss.disc_ndf=8"])
    config = rundir.config_of(tmp_path / "run")
    _, frozen, _ = rundir.model_of(config, tmp_path / "run")
    space = LatentSpace(build.first_stage(config))
    z, made_again = jax.jit(space.encode)(frozen, image), jax.jit(space.decode)(frozen, jnp.asarray(wanted_z))
    assert near(z, wanted_z) < 1e-4 and near(made_again, wanted) < 1e-4

    if config.get("latent_scale_kind") == "channels":
        shift, scale = build.channel_scale(config)
        mean, std = (
            np.asarray(settings.get(f"latents_{n}", other), np.float32) for n, other in (("mean", 0), ("std", 1))
        )
        expected = (wanted_z - settings.get("shift_factor", 0.0) - mean) / std * settings["scaling_factor"]
        of_diffusion = space.encode(frozen | {"latent_shift": shift, "latent_scale": scale}, image)
        assert near(of_diffusion, expected) < 1e-4

    convert.main(["--from", str(tmp_path / "run"), "--to", str(tmp_path / "back")])
    again = type(model).from_pretrained(tmp_path / "back")
    assert all((a == b).all() for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    told = json.loads((tmp_path / "back" / "config.json").read_text())
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "use_quant_conv", "use_post_quant_conv")
    assert {n: told.get(n, model.config.get(n)) for n in names} == {n: model.config.get(n) for n in names}
