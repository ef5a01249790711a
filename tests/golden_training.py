"""Goldens of training arithmetic and of small formulas: first-stage losses, EMA, learning rates, patches."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import losses
from ldm_jax.diffusion import patches
from ldm_jax.models.discriminator import BatchNorm, NLayerDiscriminator
from ldm_jax.models.layers import timestep_embedding
from ldm_jax.models.quantizer import DiagonalGaussian
from ldm_jax.training.optim import Schedule, ema_update, learning_rate
from tests.discriminator_tools import variables
from tests.golden import weights
from tests.golden_modules import number_in
from tests.golden_tools import TOLERANCE, Case, Ours, UnsupportedError, difference, log_prefix, nchw, nhwc

KINK = 4e-6  # a LeakyReLU input this near 0, after norms and convolutions, has a sign that float32 does not settle
AT_KINK = "with the sign of {} LeakyReLU inputs within 4e-6 of 0 taken the other way"


def distance_to(image: jax.Array):
    """The perceptual distance that the goldens were made with: mean squared difference per sample."""
    return lambda reconstruction: ((image - reconstruction) ** 2).mean((1, 2, 3))


def last_layer(features: int, channels: int) -> tuple[jax.Array, jax.Array]:
    """Kernel [3,3,features,channels] and bias [channels] of the goldens' last convolution."""
    kernel = weights.make_weight("mod_last/conv.weight", (channels, features, 3, 3))
    bias = weights.make_weight("mod_last/conv.bias", (channels,))
    return jnp.asarray(kernel.transpose(2, 3, 1, 0)), jnp.asarray(bias)


def convolve(kernel: jax.Array, bias: jax.Array, features: jax.Array) -> jax.Array:
    out = jax.lax.conv_general_dilated(features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return out + bias


def kl_of(moments: np.ndarray) -> np.ndarray:
    """[B,2c,h,w] -> [B], in float64."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    logvar = logvar.clip(-30, 20)
    return 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum((1, 2, 3))


class LossRun:
    """Both objectives of one golden, in the order of the original: generator, then discriminator."""

    def __init__(self, case: Case, perceptual: bool):
        self.case = case
        ctor, inputs = case.meta["ctor"], case.inputs
        self.train, self.kind, self.kl = ctor["training"], ctor["disc_loss"], ctor["fam"] == "kl"
        self.factor = ctor.get("disc_factor", 1.0) * losses.adopt_weight(ctor["step"], ctor["disc_start"])
        # The goldens' logvar: unlike the default of 0 it tests where logvar enters.
        self.logvar = ctor.get("logvar_init", 0.3) if self.kl else 0.0
        self.pixel_loss = ctor.get("pixel_loss", "l2" if ctor["fam"] == "vq_ldm" else "l1")
        self.disc_weight = ctor.get("disc_weight", 0.5 if self.kl else 0.75)
        self.perceptual_weight = ctor.get("perceptual_weight", 1.0)
        self.image, self.features = (jnp.asarray(nhwc(inputs[k])) for k in ("x", "feat"))
        self.distance = distance_to(self.image) if perceptual and self.perceptual_weight > 0 else None
        self.weights = jnp.asarray(inputs["weights"].ravel()) if "weights" in inputs else None
        if self.weights is not None and len(self.weights) != len(self.image):
            raise UnsupportedError(f"weights {inputs['weights'].shape}, not one per sample")
        self.kl_mean = kl_of(inputs["moments"]).mean() if self.kl else None
        self.codebook = None if self.kl else inputs["codebook_loss"].mean()
        kl_weight, codebook_weight = ctor.get("kl_weight", 1e-6), ctor.get("codebook_weight", 1.0)
        self.penalty = jnp.float32(kl_weight * self.kl_mean if self.kl else codebook_weight * self.codebook)
        shapes = case.meta["weight_manifest"]
        if any(key.endswith(".loc") for key in shapes):
            raise UnsupportedError("a loss whose discriminator has ActNorm")
        self.v = variables(shapes, "mod_lossdisc/")
        layers = sum(len(shape) == 4 for shape in shapes.values()) - 2
        self.disc = NLayerDiscriminator(shapes["main.0.weight"][0], layers)

    def discriminate(self, v: dict, image: jax.Array, train: bool | None = None):
        """Logits and the variables after: in training the running statistics move."""
        if not (self.train if train is None else train):
            return self.disc.apply(v, image, False), v
        logits, new = self.disc.apply(v, image, True, mutable=["batch_stats"])
        return logits, {**v, **new}

    def generator(self) -> dict[str, Ours]:
        kernel, bias = last_layer(self.features.shape[-1], self.image.shape[-1])
        self.reconstruction, pull_back = jax.vjp(convolve, kernel, bias, self.features)
        loss, grad, metrics, self.after = losses.generator_objective(
            self.image, self.reconstruction, self.features, kernel, family="kl" if self.kl else "vq",
            penalty=self.penalty, distance=self.distance, logits=lambda x: self.discriminate(self.v, x),
            disc_factor=self.factor, disc_weight=self.disc_weight, logvar=self.logvar, pixel_loss=self.pixel_loss,
            perceptual_weight=self.perceptual_weight,
        )  # fmt: skip
        if self.weights is not None:  # our objective has none: the original's are passed to nll_kl alone

            def more(reconstruction):
                return self.nll(self.logvar, reconstruction, self.weights) - self.nll(self.logvar, reconstruction)

            value, extra = jax.value_and_grad(more)(self.reconstruction)
            loss, grad = loss + value, grad + extra
        perceptual = jnp.zeros(()) if self.distance is None else self.distance(self.reconstruction).mean()
        pixels = losses.reconstruction_error(self.image, self.reconstruction, pixel_loss=self.pixel_loss).mean()
        log = {
            "total_loss": loss, "nll_loss": metrics["nll"], "rec_loss": pixels + self.perceptual_weight * perceptual,
            "p_loss": perceptual, "g_loss": metrics["g_loss"], "d_weight": metrics["d_weight"],
            "disc_factor": self.factor,
        }  # fmt: skip
        log |= {"logvar": self.logvar, "kl_loss": self.kl_mean} if self.kl else {"quant_loss": self.codebook}
        to_kernel, to_bias, to_features = pull_back(grad)
        ours = {"gen_loss": loss, "grad_last": to_kernel.transpose(3, 2, 0, 1), "grad_last_bias": to_bias,
                "grad_feat": nchw(to_features), "grad_rec": nchw(grad)}  # fmt: skip
        if "grad_logvar" in self.case.outputs:
            ours["grad_logvar"] = jax.grad(self.nll)(self.logvar, self.reconstruction, self.weights)
        return self.named(ours, log)

    def discriminator(self) -> dict[str, Ours]:
        """To be called after `generator`. grad_disc<n>: the gradient to main.<n>.weight."""

        def loss(params):
            real, after = self.discriminate({**self.after, "params": params}, self.image)
            fake, _ = self.discriminate(after, self.reconstruction)
            return losses.discriminator_objective(real, fake, self.factor, self.kind)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(self.after["params"])
        kernels = {name: layer["kernel"] for name, layer in grads.items() if "kernel" in layer}
        ours = {f"grad_disc{name.removeprefix('main_')}": k.transpose(3, 2, 0, 1) for name, k in kernels.items()}
        return self.named({"disc_loss": value} | ours, metrics)

    def nll(self, logvar, reconstruction, weights=None):
        perceptual = None if self.distance is None else self.distance(reconstruction)
        error = losses.reconstruction_error(
            self.image, reconstruction, perceptual, self.perceptual_weight, self.pixel_loss
        )
        return losses.nll_kl(error, logvar, weights)

    def named(self, values: dict, log: dict) -> dict[str, Ours]:
        """Values and logged numbers under the case's names of them."""
        values = values | {f"{log_prefix(self.case)}.{key}": value for key, value in log.items()}
        return {key: Ours(np.asarray(value)) for key, value in values.items()}

    def outputs(self) -> dict[str, Ours]:
        return settled(self.case, self.generator) | settled(self.case, self.discriminator)


def settled(case: Case, run: Callable[[], dict[str, Ours]]) -> dict[str, Ours]:
    """run(); where a gradient disagrees, with one or two LeakyReLU inputs at the kink moved across it.

    The gradient jumps there, so that round-off decides between its two values. Nothing but the sign of inputs
    nearer to 0 than KINK is changed, and then every output has to agree.
    """

    def off(ours: dict[str, Ours]) -> list[str]:
        return [k for k, v in ours.items() if k in case.outputs and difference(case, k, v) > v.tolerance]

    inputs: list[np.ndarray] = []
    with nn.intercept_methods(record(inputs)):
        ours = run()
    if not off(ours):
        return ours
    near = [(call, tuple(place)) for call, x in enumerate(inputs) for place in np.argwhere(abs(x) < KINK)]
    for count in (1, 2):
        for chosen in itertools.combinations(near, count):
            with nn.intercept_methods(move(chosen, inputs)):
                moved = run()
            if not off(moved):
                reason = AT_KINK.format(f"{count} of {len(near)}")
                return moved | {key: replace(moved[key], reason=reason) for key in off(ours)}
    return ours


def _before_leaky(module: nn.Module, method: str) -> bool:
    return method == "__call__" and (isinstance(module, BatchNorm) or module.name == "main_0")


def record(found: list):
    """Flax interceptor: appends every LeakyReLU's input, call after call."""

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if _before_leaky(context.module, context.method_name):
            found.append(np.asarray(jax.lax.stop_gradient(y)))
        return y

    return intercept


def move(chosen, inputs: list):
    """Flax interceptor: takes the chosen (call, place) LeakyReLU inputs to the other side of 0."""
    calls = itertools.count()

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if _before_leaky(context.module, context.method_name):
            number = next(calls)
            for which, place in chosen:
                if which == number:
                    y = y.at[place].add(-2 * inputs[which][place])
        return y

    return intercept


def run_first_stage_loss(case: Case) -> dict[str, Ours]:
    """KL and VQ losses with the discriminator.

    Only the name tells whether there was a perceptual distance; without its word the logged reconstruction loss does.
    """
    words = {"const": True, "zero": False}
    told = [value for word, value in words.items() if word in case.name.split("_") or f"_{word}_" in case.about]
    if len(told) != 1:
        key = f"{log_prefix(case)}.rec_loss"
        found = {value: LossRun(case, value).generator()[key] for value in (True, False)}
        told = [value for value, ours in found.items() if difference(case, key, ours) <= TOLERANCE] or [True]
    return LossRun(case, told[0]).outputs()


def run_d_losses(case: Case) -> dict[str, Ours]:
    real, fake = (jnp.asarray(nhwc(case.inputs[f"logits_{k}"])) for k in ("real", "fake"))
    ours = {"hinge": losses.hinge_d_loss(real, fake), "vanilla": losses.vanilla_d_loss(real, fake)}
    if "weights" in case.inputs:
        ours["hinge_exemplar"] = losses.hinge_d_loss(real, fake, jnp.asarray(case.inputs["weights"]))
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def run_perplexity(case: Case) -> dict[str, Ours]:
    indices = case.inputs["indices"]
    codes = case.meta["inputs"]["indices"].get("hi", int(indices.max()) + 1)  # codes that do not occur do not count
    use = losses.codebook_use(jnp.asarray(indices), codes)
    used = np.rint(np.asarray(use["codebook_usage"]) * codes).astype(np.int64)
    return {"perplexity": Ours(np.asarray(use["perplexity"])), "cluster_use": Ours(used)}


def run_gaussian(case: Case) -> dict[str, Ours]:
    """The posterior. kl_other and nll, which nothing in the original or here uses, from its mean and variance."""

    def posterior(moments: np.ndarray) -> DiagonalGaussian:
        return DiagonalGaussian(jnp.asarray(nhwc(moments)))

    clamped = np.array(case.inputs["params"])
    for place, value in re.findall(r"params\[([\d,]+)\]=(-?[\d.]+)", case.about):
        clamped[tuple(int(i) for i in place.split(","))] = float(value)
    p, q, r = posterior(clamped), posterior(case.inputs["params2"]), posterior(case.inputs["params3"])
    sample = nhwc(case.inputs["sample"])
    ratio = jnp.exp(q.logvar - r.logvar)
    other = 0.5 * ((q.mean - r.mean) ** 2 / jnp.exp(r.logvar) + ratio - 1 - q.logvar + r.logvar).sum((1, 2, 3))
    nll = 0.5 * (np.log(2 * np.pi) + q.logvar + (sample - q.mean) ** 2 / jnp.exp(q.logvar)).sum((1, 2, 3))
    ours = {"mean": nchw(p.mean), "logvar": nchw(p.logvar), "std": nchw(p.std), "kl": q.kl(),
            "kl_clamped": p.kl(), "kl_other": other, "nll": nll}  # fmt: skip
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def run_timestep_embedding(case: Case) -> dict[str, Ours]:
    t = jnp.asarray(case.inputs["t"])
    reason = "the argument reaches 999 radians, of which one float32 step is 6e-5"
    ours = {}
    for key in case.outputs:
        found = re.fullmatch(r"(?:vae_style_)?dim(\d+)", key)
        if found is None:
            raise UnsupportedError(f"output {key!r}")
        dim = int(found[1])
        if key.startswith("vae"):  # sines first, and frequencies up to and including 1/10000
            half = dim // 2
            found = np.asarray(timestep_embedding(t, dim, 1e4 ** (half / (half - 1))))
            value = np.concatenate([found[:, half : 2 * half], found[:, :half], found[:, 2 * half :]], axis=1)
        else:
            value = np.asarray(timestep_embedding(t, dim))
        ours[key] = Ours(value, tolerance=2e-4, reason=reason)
    return ours


def run_ema(case: Case) -> dict[str, Ours]:
    """outputs num<warm-up>_step<k>_<short name>, parameters named by extra.name_map."""
    names = case.meta["extra"]["name_map"]
    decay = case.meta.get("decay") or number_in(r"min\(([\d.]+),", case.about) or 0.9999
    source = re.search(r"normal\(([^{)]+)\{k\}", case.about)
    source = source[1] if source else "input/ema/p"
    found = [re.fullmatch(r"num(\d)_step(\d+)_(.+)", key) for key in case.outputs]
    if None in found:
        raise UnsupportedError("outputs other than num<warm-up>_step<k>_<name>")
    steps = max(int(m[2]) for m in found)
    shapes = {m[3]: tuple(case.meta["outputs"][m[0]]["shape"]) for m in found}
    names = {name: short for name, short in names.items() if short in shapes}

    def parameters(k: int) -> dict:
        return {n: jnp.asarray(weights.normal(f"{source}{k}.{n}", shapes[short])) for n, short in names.items()}

    ours = {}
    for warmup in sorted({m[1] for m in found}):
        ema = parameters(0)
        for step in range(1, steps + 1):
            ema = ema_update(ema, parameters(step), step, decay, bool(int(warmup)))
            ours |= {f"num{warmup}_step{step}_{short}": Ours(np.asarray(ema[n])) for n, short in names.items()}
    return ours


def restarted(first: Schedule, second: Schedule, length: int) -> Schedule:
    """`first` up to and with step `length`, then `second` from its own step 1 on: the original's cycles."""
    return lambda step: jnp.where(step > length, second(step - length), first(step))


def run_learning_rates(case: Case) -> dict[str, Ours]:
    """Multipliers at extra.n. Their settings are recorded nowhere: those of the two recipes, and read off."""
    steps = np.array(case.meta["extra"]["n"])
    rise = dict(warmup_fraction=1e-4, final_fraction=0.1)

    def twice(kind: str):
        first = learning_rate(kind, 1.0, warmup_steps=100, total_steps=5000, **rise)
        second = learning_rate(kind, 0.5, warmup_steps=200, total_steps=10**8, **rise)
        return restarted(first, second, 5000)

    rates = {
        "linear_churches": learning_rate("linear_warmup", 1.0, warmup_steps=10_000, warmup_fraction=1e-6),
        "cosine_inpainting": learning_rate(
            "cosine", 0.1, warmup_steps=1000, total_steps=50_000, warmup_fraction=0.01, final_fraction=0.001
        ),
        "cosine2": twice("cosine"),
        "linear2": twice("linear"),
    }
    return {key: Ours(np.asarray(rate(steps))) for key, rate in rates.items()}


def run_patches(case: Case) -> dict[str, Ours]:
    """Weights w, their overlapping sums norm, cut patches. Keys <w|norm>_tb<tie breaker>[_uf<n>|_df<n>]."""
    split = case.meta["extra"]["split_input_params"]
    x = jnp.asarray(nhwc(case.inputs["x"]))
    kernel, stride = tuple(split["ks"]), tuple(split["stride"])
    # The original leaves a rest uncovered that the stride does not reach; ours has patches there as well.
    grid = tuple((n - k) // s for n, k, s in zip(x.shape[1:3], kernel, stride))

    def reached(kernel, stride) -> tuple[int, ...]:
        return tuple(n * s + k for n, k, s in zip(grid, kernel, stride))

    rows, columns = reached(kernel, stride)
    cut = np.asarray(patches.unfold(x[:, :rows, :columns], kernel, stride))  # [P,B,kh,kw,C]
    ours = {"unfolded": Ours(cut.transpose(1, 4, 2, 3, 0).reshape(cut.shape[1], -1, len(cut)))}
    for key in case.outputs:
        if key == "unfolded":
            continue
        found = re.fullmatch(r"(w|norm)_tb([01])(?:_(uf|df)(\d+))?", key)
        if found is None:
            raise UnsupportedError(f"output {key!r}")
        what, tie, direction, factor = found.groups()
        factor = int(factor or 1)

        def scaled(numbers, up=direction == "uf", factor=factor) -> tuple[int, ...]:
            return tuple(n * factor if up else n // factor for n in numbers)

        where = patches.corners(reached(scaled(kernel), scaled(stride)), scaled(kernel), scaled(stride))
        clip = split["clip_min_weight"], split["clip_max_weight"]
        tie_clip = (split["clip_min_tie_weight"], split["clip_max_tie_weight"]) if tie == "1" else None
        w = patches.weights(scaled(kernel), where.shape[:2], clip, tie_clip)
        if what == "w":
            ours[key] = Ours(w.transpose(1, 2, 0)[None, None])
        else:
            total = patches.overlap_add(jnp.asarray(w)[:, None, :, :, None], where, scaled(x.shape[1:3]))
            ours[key] = Ours(nchw(total))
    return ours
