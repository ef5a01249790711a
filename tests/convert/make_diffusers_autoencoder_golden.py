"""Makes diffusers_autoencoder.npz beside it; needs torch and diffusers, unlike the tests.

    python tests/convert/make_diffusers_autoencoder_golden.py

Autoencoders of diffusers.json with weights made by tests/golden/weights.py from "<name>/<key>": what they encode of an
image and decode of a latent; arrays are [B,C,H,W]. And the steps that DDIMScheduler visits, "<spacing>/t", with
the noise level after each, "<spacing>/alpha_bar_prev": the noise schedule is that of celeba_ldm4.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, VQModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.golden import weights  # noqa: E402

SCHEDULE = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
SPACINGS = {
    "original": dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False),
    "trailing": dict(timestep_spacing="trailing", steps_offset=1, set_alpha_to_one=True),
}


def main():
    recorded = json.loads((HERE / "diffusers.json").read_text())
    out = {}
    for name, cls in (("text/vqvae", AutoencoderKL), ("vq_f8", VQModel)):
        config = {k: v for k, v in recorded[name]["config"].items() if not k.startswith("_")}
        model, shapes = cls(**config).eval(), recorded[name]["keys"]
        model.load_state_dict({k: torch.from_numpy(weights.make_weight(f"{name}/{k}", shapes[k])) for k in shapes})
        image, z = weights.normal(f"{name}/image", (2, 3, 32, 32)), weights.normal(f"{name}/z", (2, 4, 4, 4))
        with torch.no_grad():
            encoded = model.encode(torch.from_numpy(image))
            moments = encoded.latent_dist.parameters if cls is AutoencoderKL else encoded.latents
            decoded = model.decode(torch.from_numpy(z)).sample
        out |= {f"{name}/image": image, f"{name}/z": z, f"{name}/moments": moments.numpy(),
                f"{name}/decoded": decoded.numpy()}  # fmt: skip
    for name, how in SPACINGS.items():
        scheduler = DDIMScheduler(**SCHEDULE, **how)
        scheduler.set_timesteps(50)
        steps = scheduler.timesteps.numpy()
        before = steps - scheduler.config.num_train_timesteps // 50
        levels = [scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod for t in before]
        out |= {f"{name}/t": steps, f"{name}/alpha_bar_prev": np.asarray([float(level) for level in levels])}
    np.savez_compressed(HERE / "diffusers_autoencoder.npz", **out)


if __name__ == "__main__":
    main()
