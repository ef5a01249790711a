"""Configuration -> networks: the only place where a name of a recipe becomes a class.

`config` is the ConfigDict of a recipe, or the same read back from a run's config.json.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import conditions
from ldm_jax.conditions.base import ConditionNetwork, Frame
from ldm_jax.diffusion.schedule import NoiseSchedule, make_flow_schedule, make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.ldm import LDM, LatentSpace
from ldm_jax.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModel
from ldm_jax.models.classifier import EncoderUNet
from ldm_jax.models.conditional_mean import ConditionalMean
from ldm_jax.models.dit import DiT
from ldm_jax.models.unet import UNet

Tree = Any
# Fields of config.first_stage that are not the network's shape.
NOT_ARCHITECTURE = ("kind", "checkpoint", "recipe")
VQ_ONLY = ("n_embed", "beta", "legacy_beta")
# Fields of config.diffusion that are the LDM's of the same name.
TRAINING = ("min_snr_gamma", "offset_noise", "t_distribution", "t_mean", "t_std")


def once_a_config(function: Callable[[ConfigDict], Any]) -> Callable[[ConfigDict], Any]:
    """Keeps what the function gave for each configuration: to trace a network at full size takes seconds."""
    found: dict[str, Any] = {}

    @wraps(function)
    def call(config: ConfigDict) -> Any:
        key = config.to_json()
        if key not in found:
            found[key] = function(config)
        return found[key]

    return call


def choose(what: str, value: str, options: dict):
    """options[value]. ConfigError that lists them."""
    if value not in options:
        raise ConfigError(f"{what}={value!r} is not one of {', '.join(options)}")
    return options[value]


def dtype(config: ConfigDict) -> jnp.dtype:
    names = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    return choose("config.dtype", config.dtype, names)


def first_stage(config: ConfigDict) -> nn.Module:
    section = config.first_stage
    model = choose(
        "config.first_stage.kind",
        section.kind,
        {"kl": AutoencoderKL, "vq": VQModel, "identity": IdentityFirstStage},
    )
    if section.kind == "identity":
        return model()
    without = [name for name in ("use_quant_conv", "use_post_quant_conv") if not section.get(name, True)]
    if without and section.embed_dim != section.z_channels:
        raise ConfigError(
            f"config.first_stage.{without[0]}=False needs embed_dim={section.embed_dim} to be "
            f"z_channels={section.z_channels}"
        )
    skip = NOT_ARCHITECTURE + (() if section.kind == "vq" else VQ_ONLY)
    return model(**keywords(section, skip), dtype=dtype(config))


def unet(config: ConfigDict) -> UNet:
    context = conditions.condition_of(config).context_dim()
    embedded = config.unet.get("context", "cross_attention") != "cross_attention"
    width = context if config.unet.use_spatial_transformer or embedded else None
    return UNet(**keywords(config.unet), context_dim=width, dtype=dtype(config))


def dit(config: ConfigDict) -> DiT:
    context, channels = conditions.condition_of(config).context_dim(), latent_shape(config)[2]
    return DiT(**keywords(config.dit), out_channels=channels, context_dim=context, dtype=dtype(config))


def conditional_mean(config: ConfigDict) -> ConditionalMean:
    if conditions.condition_of(config).context_dim() is None or config.diffusion.get("prediction") != "x0":
        raise ConfigError(
            "config.network.kind='mean' learns the mean latent of each condition: it needs a condition with a context "
            f"(not {config.conditioner.kind!r}) and config.diffusion.prediction='x0' (not "
            f"{config.diffusion.get('prediction', 'eps')!r})"
        )
    return ConditionalMean(dtype=dtype(config))


def denoiser(config: ConfigDict) -> nn.Module:
    """The network that config.network.kind names."""
    kinds = {"unet": unet, "dit": dit, "mean": conditional_mean}
    return choose("config.network.kind", config.network.kind, kinds)(config)


def conditioner(config: ConfigDict) -> ConditionNetwork:
    return conditions.condition_of(config).network(dtype(config))


def frame(config: ConfigDict, size: tuple[int, int] | None = None) -> Frame:
    """Sizes of an image of `size` (H, W), by default config.data.image_size."""
    size = size or (config.data.image_size,) * 2
    transformer = config.network.kind == "dit"
    divisor = config.dit.patch_size if transformer else 2 ** (len(config.unet.channel_mult) - 1)
    return Frame(size, latent_shape(config, size)[:2], divisor)


def batch_shapes(config: ConfigDict, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a training batch, as the networks read them."""
    size, channels = config.data.image_size, config.data.channels
    shapes = {"image": ((size, size, channels), jnp.float32)}
    if config.task == "ldm":
        shapes |= conditions.condition_of(config).shapes(frame(config))
    if config.task == "classifier":
        shapes["label"] = ((), jnp.int32)
    return {name: jax.ShapeDtypeStruct((batch_size, *shape), kind) for name, (shape, kind) in shapes.items()}


def schedule(config: ConfigDict) -> NoiseSchedule:
    d, prediction = config.diffusion, config.diffusion.get("prediction", "eps")
    zero = d.get("zero_terminal_snr", False)
    if choose("config.diffusion.kind", d.get("kind", "diffusion"), {"diffusion": False, "flow": True}):
        if prediction != "v" or zero:
            raise ConfigError(
                "config.diffusion.kind='flow' predicts a velocity and begins in pure noise: it needs "
                f"config.diffusion.prediction='v' (not {prediction!r}) and config.diffusion.zero_terminal_snr=False"
            )
        return make_flow_schedule(d.timesteps)
    return make_schedule(d.schedule, d.timesteps, d.start, d.end, prediction=prediction, zero_terminal_snr=zero)


def ldm(config: ConfigDict) -> LDM:
    d = config.diffusion
    return LDM(
        first_stage=first_stage(config),
        unet=denoiser(config),
        schedule=schedule(config),
        conditioner=conditioner(config),
        cond_drop_prob=config.conditioner.drop_prob,
        cond_drop_each=config.conditioner.get("drop_each", 0.0),
        loss_type=d.loss,
        elbo_weight=d.elbo_weight,
        learn_logvar=d.learn_logvar,
        weighting=d.weighting,
        **{name: d[name] for name in TRAINING if name in d},
    )


def classifier(config: ConfigDict) -> LatentClassifier:
    c = config.classifier
    network = EncoderUNet(out_channels=c.n_classes, **keywords(c, ("n_classes",)), dtype=dtype(config))
    return LatentClassifier(LatentSpace(first_stage(config)), network, schedule(config))


def reduction(first_stage: ConfigDict) -> int:
    """f: pixels of an image's side for one of its latent's."""
    return 1 if first_stage.kind == "identity" else first_stage.get("patch", 1) * 2 ** (len(first_stage.ch_mult) - 1)


def latent_shape(config: ConfigDict, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(h, w, c) of the latents of images of `size` (H, W), by default config.data.image_size."""
    s = config.first_stage
    f = reduction(s)
    height, width = size or (config.data.image_size,) * 2
    if height % f or width % f:
        raise ConfigError(f"images of {height}x{width} pixels do not divide by the first stage's f={f}")
    return height // f, width // f, s.in_channels if s.kind == "identity" else s.embed_dim


def channel_scale(config: ConfigDict) -> tuple[np.ndarray, np.ndarray] | None:
    """(shift [c], scale [c]) of the latents, float32, as given for config.latent_scale_kind="channels"; None where they
    are measured. ConfigError for numbers that do not fit."""
    given = {name: np.asarray(config.get(f"latent_channel_{name}", ()), np.float32) for name in ("shift", "scale")}
    if all(x.size == 0 for x in given.values()):
        return None
    if not has_channel_scale(config):
        raise ConfigError("config.latent_channel_shift and _scale belong to config.latent_scale_kind='channels'")
    channels = latent_shape(config)[-1]
    for name, x in given.items():
        if x.shape not in ((1,), (channels,)) or not np.isfinite(x).all() or (name == "scale" and not (x > 0).all()):
            above = ", above 0" if name == "scale" else ""
            raise ConfigError(
                f"config.latent_channel_{name}={config[f'latent_channel_{name}']} must be {channels} finite numbers"
                f"{above}, or one for all channels; give both shift and scale, or neither"
            )
    return tuple(np.broadcast_to(x, channels).copy() for x in given.values())


def has_channel_scale(config: ConfigDict) -> bool:
    """Whether each channel of the latents has its own shift and scale (config.latent_scale_kind)."""
    kinds = {"scalar": False, "channels": True}
    return choose("config.latent_scale_kind", config.get("latent_scale_kind", "scalar"), kinds)


def keywords(section: ConfigDict, skip: tuple[str, ...] = ()) -> dict:
    """A config section as keyword arguments; JSON turned tuples into lists, this turns them back."""
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in section.items() if k not in skip}


@lru_cache(maxsize=16)
def first_stage_variables(model: nn.Module, image_size: int, channels: int) -> Tree:
    """Shapes of the first stage's variables (for the identity: none)."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
