"""Makes diffusers.json and diffusers_unet.npz beside it; needs torch, diffusers and transformers, unlike the tests.

    python tests/convert/make_diffusers_golden.py

diffusers.json: {name: {"config": config.json, "keys": {key: shape}}} of small models, the sizes of the recipes' `tiny`
variants. diffusers_unet.npz: one forward pass of celeba/unet, its weights made by tests/golden/weights.py from
"<name>/<key>"; arrays are [B,C,H,W]. diffusers_groups.npz: the same of models whose normalisation has GROUPS groups;
of the autoencoder the mean of the posterior, and the reconstruction of it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

HERE = Path(__file__).parent
GROUPS = 8
sys.path.insert(0, str(HERE.parents[1]))
from tests.golden import weights  # noqa: E402


def autoencoder(cls, channels, latent, attends=False, **more):
    levels = len(channels)
    down = ["DownEncoderBlock2D"] * (levels - attends) + ["AttnDownEncoderBlock2D"] * attends
    up = ["AttnUpDecoderBlock2D"] * attends + ["UpDecoderBlock2D"] * (levels - attends)
    return cls(block_out_channels=channels, down_block_types=down, up_block_types=up, latent_channels=latent, **more)


def models(**more):
    vq = dict(num_vq_embeddings=64, scaling_factor=1.0)
    vq |= more
    yield "celeba/vqvae", autoencoder(VQModel, (32, 64, 128), 3, vq_embed_dim=3, **vq)
    yield "vq_f8", autoencoder(VQModel, (32, 64, 64, 128), 4, True, vq_embed_dim=4, **vq)
    yield "vq_f4_noattn", autoencoder(VQModel, (32, 64, 128), 3, vq_embed_dim=3, mid_block_add_attention=False, **vq)
    yield "text/vqvae", autoencoder(AutoencoderKL, (32, 64, 128, 128), 4, **more)
    attend, plain = ("AttnDownBlock2D",) * 3, ("AttnUpBlock2D",) * 3
    yield "celeba/unet", UNet2DModel(
        sample_size=16, block_out_channels=(32, 64, 96, 128), layers_per_block=1, attention_head_dim=32,
        down_block_types=("DownBlock2D", *attend), up_block_types=(*plain, "UpBlock2D"), **more,
    )  # fmt: skip
    yield "text/unet", UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 128, 128), layers_per_block=1,
        attention_head_dim=8, cross_attention_dim=32,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), **more,
    )  # fmt: skip
    yield "text/bert", LDMBertModel(LDMBertConfig(encoder_layers=1, encoder_ffn_dim=128, d_model=32))


def main():
    recorded = {}
    for name, model in models():
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
        recorded[name] = {"config": config, "keys": shapes}
        if name == "celeba/unet":
            made_up(name, model)
            z, t = weights.normal("diffusers/z", (2, 3, 16, 16)), np.array([3, 777])
            with torch.no_grad():
                y = model.eval()(torch.from_numpy(z), torch.from_numpy(t)).sample.numpy()
            np.savez_compressed(HERE / "diffusers_unet.npz", z=z, t=t, y=y)
    (HERE / "diffusers.json").write_text(json.dumps(recorded, sort_keys=True, default=str) + "\n")
    other_groups()


def made_up(name, model):
    """The model with weights made from "<name>/<key>"."""
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(weights.make_weight(f"{name}/{k}", shapes[k])) for k in shapes})
    return model.eval()


def other_groups():
    found = dict(models(norm_num_groups=GROUPS))
    celeba, text, vae = (made_up(name, found[name]) for name in ("celeba/unet", "text/unet", "text/vqvae"))
    draw = {"celeba_z": (2, 3, 16, 16), "text_z": (2, 4, 16, 16), "context": (2, 5, 32), "image": (2, 3, 32, 32)}
    inputs = {name: weights.normal(f"diffusers/groups/{name}", shape) for name, shape in draw.items()}
    z, text_z, context, image = (torch.from_numpy(x) for x in inputs.values())
    t = np.array([3, 777])
    with torch.no_grad():
        outputs = {
            "celeba_y": celeba(z, torch.from_numpy(t)).sample,
            "text_y": text(text_z, torch.from_numpy(t), context).sample,
        }
        outputs["mean"] = vae.encode(image).latent_dist.mean
        outputs["reconstruction"] = vae.decode(outputs["mean"]).sample
    outputs = {name: x.numpy() for name, x in outputs.items()}
    np.savez_compressed(HERE / "diffusers_groups.npz", t=t, **inputs, **outputs)


if __name__ == "__main__":
    main()
