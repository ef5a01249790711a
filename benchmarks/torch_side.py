"""The same model in PyTorch, as its users would run it: diffusers' networks with our weights.

The networks come through ldm_jax.convert, so a wrong name or layout shows in the comparison of outputs. Images and
latents are [B,C,H,W] there; numpy arrays at this file's borders are [B,H,W,C].
"""

import gc
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch

from benchmarks import work
from ldm_jax import build, tree
from ldm_jax.convert import compvis, names
from ldm_jax.convert import diffusers as folders
from ldm_jax.diffusion.timetable import make_timetable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # the fastest convolution for these sizes, as XLA's autotuning
torch._dynamo.config.fail_on_recompile_limit_hit = True  # not silently eager
COMPILE_ERRORS = (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit)


class NotComparable(Exception):
    """What this side has no counterpart for."""


@dataclass(frozen=True)
class Mode:
    """compile: None or torch.compile's mode."""

    compile: str | None = None
    channels_last: bool = False


MODES = {
    "eager": Mode(),
    "eager-nhwc": Mode(channels_last=True),
    "compile": Mode("default"),
    "compile-nhwc": Mode("default", channels_last=True),
    # CUDA graphs and tuned kernels; on a CPU they change nothing.
    "graphs-nhwc": Mode("reduce-overhead", channels_last=True),
    "tuned-nhwc": Mode("max-autotune", channels_last=True),
}
USUAL = {"cpu": ("eager", "eager-nhwc", "compile", "compile-nhwc"),
         "cuda": ("eager", "eager-nhwc", "compile", "compile-nhwc", "graphs-nhwc", "tuned-nhwc")}  # fmt: skip


def set_exact(exact: bool) -> None:
    """float32 products in full float32, or in TF32 where the GPU has it (JAX's default there)."""
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact


def forget() -> None:
    """Gives back what earlier modes compiled and kept in memory. Their objects must be gone."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def write_folder(model: work.Model, path: Path, unet: bool) -> None:
    """vqvae/ and, if asked for, unet/ of diffusers in `path`. Raises ValueError for what its classes cannot express."""
    if model.is_ldm and model.config.network.kind != "unet":
        raise ValueError(f"config.network.kind={model.config.network.kind!r}: only UNets are compared")
    if model.is_ldm and build.has_channel_scale(model.config):
        raise ValueError("config.latent_scale_kind='channels': diffusers has one latent scale")
    weights = {"first_stage": model.first_stage.get("params", {})} if model.first_stage else {}
    if model.is_ldm:
        weights = dict(model.state.params) | weights
    leaves = tree.flatten(weights)
    keys = compvis.original_keys(weights)
    shapes = {key: names.torch_shape(name, leaves[name].shape) for name, key in keys.items()}
    parts = []
    if model.first_stage:
        scale = float(model.frozen.get("latent_scale", 1.0))
        parts.append(folders.autoencoder(model.config.first_stage, shapes, compvis.FIRST_STAGE, scale))
    if unet:
        spatial = model.config.unet.use_spatial_transformer
        context = model.config.conditioner.dim if spatial else None
        parts.append(folders.unet(model.config.unet, shapes, context, model.latent[0]))
    tensors = {
        key: ((np.dtype(np.float32), shapes[key]), partial(names.to_torch_array, name, leaves[name], shapes[key]))
        for name, key in keys.items()
    }
    for part in parts:
        folders.write_component(path / part.folder, part, tensors)


class Side:
    """One mode of PyTorch on one model: forward, ddim, decode. `folder` is from `write_folder`.

    bfloat16: for training autocast; else UNet and decoder have bfloat16 weights, the codebook stays float32.
    """

    def __init__(self, model: work.Model, folder: Path, mode: Mode, bfloat16: bool, training: bool = False):
        self.model, self.mode, self.half = model, mode, bfloat16 and not training
        self.cast = partial(torch.autocast, DEVICE, torch.bfloat16, enabled=bfloat16)
        self.layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        self.unet = self._load(folder / "unet")
        self.vae = self._load(folder / "vqvae")
        if self.half and self.unet is not None:
            self.unet.to(torch.bfloat16)
        if self.vae is not None:
            self.vae.requires_grad_(False)
            if self.half:
                self.vae.decoder.to(torch.bfloat16)
                self.vae.post_quant_conv.to(torch.bfloat16)
            self.decoder, self.encoder = self._compiled(self._decode), self._compiled(self._latents)
        self.run_unet = self._compiled(self._unet) if self.unet is not None else None

    def _load(self, path: Path):
        if not path.exists():
            return None
        kind = getattr(diffusers, folders.settings.load(path / "config.json")["_class_name"])
        return kind.from_pretrained(path, low_cpu_mem_usage=False).to(DEVICE).to(memory_format=self.layout)

    def _compiled(self, fn):
        return torch.compile(fn, mode=self.mode.compile, dynamic=False) if self.mode.compile else fn

    def _unet(self, z, t, context):
        kind = self.unet.dtype
        return self.unet(z.to(kind), t, *([] if context is None else [context.to(kind)]), return_dict=False)[0]

    def _decode(self, z):
        z = self.vae.quantize(z)[0] if hasattr(self.vae, "quantize") else z
        conv = self.vae.post_quant_conv
        return self.vae.decoder(conv(z.to(conv.weight.dtype)))

    def _latents(self, image, noise):
        """noise: for the sample of a KL posterior."""
        out = self.vae.encode(image)
        if hasattr(out, "latents"):
            return out.latents
        return out.latent_dist.mean + out.latent_dist.std * noise

    def tensor(self, array) -> torch.Tensor:
        """numpy or jax [B,H,W,C] -> [B,C,H,W] on the device in this mode's layout; others as they are."""
        x = torch.from_numpy(np.array(array)).to(DEVICE)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if x.ndim == 4 else x

    def array(self, x: torch.Tensor) -> np.ndarray:
        return x.detach().float().permute(0, 2, 3, 1).cpu().numpy()

    def cond(self, size: int):
        """(context or None, concat or None), made by our conditioner beforehand."""
        cond = work.condition(self.model, size)
        return [None if x is None else self.tensor(x) for x in (cond.context, cond.concat)]

    def forward(self, size: int):
        z, t = (self.tensor(x) for x in work.forward(self.model, size).args[1:3])
        context, concat = self.cond(size)
        z = z if concat is None else torch.cat([z, concat], 1)

        def run():
            with torch.inference_mode():
                return wait(self.run_unet(z, t.long(), context))

        return run

    def ddim(self, size: int, steps: int, z_T):
        """eta 0 on our timetable; four products a step beside the network, as in the original."""
        table = make_timetable(self.model.task.ldm.schedule, steps)
        rows = [(int(t), float(a), float(p)) for t, a, p in zip(table.t, table.alpha_bar, table.alpha_bar_prev)]
        predicts_v = self.model.config.diffusion.prediction == "v"
        start, (context, concat) = self.tensor(z_T), self.cond(size)

        def run():
            z = start
            with torch.inference_mode():
                for t, a, prev in rows:
                    x = z if concat is None else torch.cat([z, concat], 1)
                    eps = self.run_unet(x, torch.full((size,), t, device=DEVICE), context).float()
                    eps = a**0.5 * eps + (1 - a) ** 0.5 * z if predicts_v else eps
                    z = prev**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - prev) ** 0.5 * eps
            return wait(z)

        return run

    def decode(self, size: int):
        z = self.tensor(self.model.latents(size))

        def run():
            with torch.inference_mode():
                return wait(self.decoder(z))

        return run


def wait(x: torch.Tensor) -> torch.Tensor:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return x


def temporary_folder(model: work.Model, unet: bool) -> tempfile.TemporaryDirectory:
    """The folder of `write_folder`, removed when it is closed."""
    folder = tempfile.TemporaryDirectory(prefix="ldm_jax_torch_")
    write_folder(model, Path(folder.name), unet)
    return folder
