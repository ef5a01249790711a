"""The forward process: z_t = signal_t z + noise_t eps, eps ~ N(0, I).

Of diffusion signal_t = sqrt(alpha_bar_t) and noise_t = sqrt(1 - alpha_bar_t) (Ho et al. 2020, eq. 4), of flow matching
signal_t = 1 - noise_t (`FlowSchedule`).

A `NoiseSchedule` holds float64 numpy tables [T], made once by `make_schedule`; index 0 is the cleanest step.
Its methods take arrays and are safe inside jit, where a table becomes a float32 constant. Everywhere below
z, noise, z_t and a network's output are [B,...] float32 and t is [B] int32 in 0..T-1.
A t of T or more gives NaN rather than the silently clamped neighbour.

What a network may predict, and the way back (abar = alpha_bar_t):
    eps: the noise
    x0:  the clean latent                            z = (z_t - sqrt(1-abar) eps) / sqrt(abar)
    v:   sqrt(abar) eps - sqrt(1-abar) z             eps = sqrt(abar) v + sqrt(1-abar) z_t
         (Salimans and Ho 2022, appendix D)          z = sqrt(abar) z_t - sqrt(1-abar) v
    v of a flow: eps - z                             eps = z_t + signal v,   z = z_t - noise v
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

from ldm_jax.arrays import Array
from ldm_jax.errors import ConfigError

Table = Float64[np.ndarray, " T"]
Steps = Int[Array, " B"]
Latents = Float[Array, "B *rest"]
Factor = Float[Array, "B *ones"]  # [B,1,...], to be multiplied by latents
PerSample = Float[Array, " B"]

Tables = tuple[Table, Table, Table, Table, Table]

PREDICTIONS = ("eps", "x0", "v")
KINDS = ("scaled_linear", "linear", "sqrt", "cosine")
WEIGHTINGS = ("none", "min_snr")
PURE_NOISE = 2.0**-30  # alpha_bar that stands for 0: its signal, 1/32768, does not matter, and it can be divided by


def _at(table: Table, t: Steps, like: Shaped[Array, " B *rest"]) -> Factor:
    """table [T] at t [B] as float32, shaped [B,1,...] to broadcast against `like` [B,...]."""
    values = jnp.asarray(table, jnp.float32).at[t].get(mode="fill", fill_value=jnp.nan)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables [T] float64 of the forward process and its posterior. Compared and hashed by identity.

    betas: variance added by step t.  alpha_bar: product of (1 - betas) up to and including t.
    alpha_bar_prev: alpha_bar one step earlier, 1 at t = 0.
    posterior_variance: of q(z_{t-1} | z_t, z), mixed with beta by v_posterior; 0 at t = 0 unless v_posterior.
    lvlb_weights: weight of the mean squared error in the variational bound, see `_lvlb_weights`.
    """

    betas: Table
    alpha_bar: Table
    alpha_bar_prev: Table
    posterior_variance: Table
    lvlb_weights: Table
    prediction: str
    v_posterior: float
    spacing: ClassVar[str | None] = None  # of the timetable that suits it; None = the sampler's

    @property
    def timesteps(self) -> int:
        """T, the number of training steps."""
        return len(self.betas)

    @property
    def pure_noise(self) -> bool:
        """Whether the last step has no signal."""
        return bool(self.alpha_bar[-1] == PURE_NOISE)

    @property
    def signals(self) -> Table:
        """signal_t [T], what z is multiplied by."""
        return np.sqrt(self.alpha_bar)

    @property
    def noises(self) -> Table:
        """noise_t [T], the standard deviation of the noise."""
        return np.sqrt(1 - self.alpha_bar)

    def signal(self, t: Steps) -> PerSample:
        """signal_t [B]: z_t = signal_t z + noise_t eps."""
        return _at(self.signals, t, t)

    def noise(self, t: Steps) -> PerSample:
        """noise_t [B]: z_t = signal_t z + noise_t eps."""
        return _at(self.noises, t, t)

    def level(self, t: Steps) -> PerSample:
        """alpha_bar [B], by which samplers know a noise level; also of a flow."""
        return _at(self.alpha_bar, t, t)

    def sigma(self, t: Steps) -> PerSample:
        """noise_t / signal_t [B], from about 0 to infinity: the noise level of Karras et al. 2022."""
        return _at(self.noises / self.signals, t, t)

    def network_input(self, z_t: Latents, t: Steps) -> Latents:
        """What the network sees of a sampler's z_t [B,...], which is sqrt(abar) z + sqrt(1-abar) eps: the same."""
        return z_t

    def add_noise(self, z: Latents, noise: Latents, t: Steps) -> Latents:
        """z_t = signal z + noise_t noise."""
        return self._signal(t, z) * z + self._noise(t, z) * noise

    def marginal(self, z: Latents, t: Steps) -> tuple[Latents, Factor, Factor]:
        """Mean [B,...], variance and log variance [B,1,...] of q(z_t | z)."""
        return (
            self._signal(t, z) * z,
            _at(1 - self.alpha_bar, t, z),
            _at(np.log1p(-self.alpha_bar), t, z),
        )

    def velocity(self, z: Latents, noise: Latents, t: Steps) -> Latents:
        """v = sqrt(abar) noise - sqrt(1-abar) z."""
        return self._signal(t, z) * noise - self._noise(t, z) * z

    def target(self, z: Latents, noise: Latents, t: Steps) -> Latents:
        """What the network is asked to give for z_t = add_noise(z, noise, t)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return z
        return self.velocity(z, noise, t)

    def to_eps(self, output: Latents, z_t: Latents, t: Steps) -> Latents:
        """The noise in z_t according to the network's output, whatever it predicts."""
        if self.prediction == "eps":
            return output
        if self.prediction == "x0":
            factor = _at(np.sqrt(1 / self.alpha_bar), t, z_t)
            return (factor * z_t - output) / _at(np.sqrt(1 / self.alpha_bar - 1), t, z_t)
        return self._signal(t, z_t) * output + self._noise(t, z_t) * z_t

    def to_x0(self, output: Latents, z_t: Latents, t: Steps) -> Latents:
        """The clean latent according to the network's output, whatever it predicts. Not clipped."""
        if self.prediction == "x0":
            return output
        if self.prediction == "eps":
            factor = _at(np.sqrt(1 / self.alpha_bar), t, z_t)
            return factor * z_t - _at(np.sqrt(1 / self.alpha_bar - 1), t, z_t) * output
        return self._signal(t, z_t) * z_t - self._noise(t, z_t) * output

    def posterior(self, z: Latents, z_t: Latents, t: Steps) -> tuple[Latents, Factor, Factor]:
        """Mean [B,...], variance and log variance [B,1,...] of q(z_{t-1} | z_t, z) (Ho et al. 2020, eq. 6-7).

        Of a flow: for z_t of the samplers, see `network_input`.
        The variance is 0 at t = 0; its logarithm is taken at 1e-20 there.
        """
        past, now = self.alpha_bar_prev, self.alpha_bar
        from_z = _at(self.betas * np.sqrt(past) / (1 - now), t, z)
        from_z_t = _at((1 - past) * np.sqrt(1 - self.betas) / (1 - now), t, z)
        log_variance = np.log(np.maximum(self.posterior_variance, 1e-20))
        return from_z * z + from_z_t * z_t, _at(self.posterior_variance, t, z), _at(log_variance, t, z)

    def snr(self, t: Steps) -> PerSample:
        """Signal-to-noise ratio abar / (1 - abar) [B]."""
        return _at(self.alpha_bar / (1 - self.alpha_bar), t, t)

    def lvlb_weight(self, t: Steps) -> PerSample:
        """lvlb_weights at t [B]."""
        return _at(self.lvlb_weights, t, t)

    def loss_weight(self, t: Steps, kind: str = "none", gamma: float = 5.0) -> PerSample:
        """Weight [B] of a sample's training loss on the network's own target.

        "min_snr" (Hang et al. 2023) weights the squared error of x0 by min(snr, gamma). The error of eps is
        snr times that of x0, the error of v is snr + 1 times that of x0 and of a flow 1 / noise_t^2 times, hence the
        divisions. gamma: above 0.
        """
        if kind not in WEIGHTINGS:
            raise ConfigError(f"loss weighting {kind!r} is not one of {', '.join(WEIGHTINGS)}")
        if kind == "none":
            return jnp.ones(t.shape, jnp.float32)
        snr = self.alpha_bar / (1 - self.alpha_bar)
        return _at(np.minimum(snr, gamma) / self._error_of_x0(snr), t, t)

    def _error_of_x0(self, snr: Table) -> Table | float:
        """[T]: the squared error of the network's output where the squared error of x0 is 1."""
        errors: dict[str, Table | float] = {"eps": snr, "x0": 1.0, "v": snr + 1}
        return errors[self.prediction]

    def prior_bpd(self, z: Latents) -> PerSample:
        """KL(q(z_T | z) || N(0, I)) in bits per dimension [B]: how far the last step is from pure noise."""
        last = self.alpha_bar[-1]
        variance_part = -np.log1p(-last) - last  # in float64: the two nearly cancel
        per_dim = 0.5 * (np.float32(variance_part) + np.float32(last) * jnp.square(z))
        return jnp.mean(per_dim, axis=tuple(range(1, z.ndim))) / np.float32(np.log(2.0))

    def _signal(self, t: Steps, like: Latents) -> Factor:
        return _at(self.signals, t, like)

    def _noise(self, t: Steps, like: Latents) -> Factor:
        return _at(self.noises, t, like)


class FlowSchedule(NoiseSchedule):
    """The straight path from data to noise: z_t = (1 - s) z + s eps at s = (t + 1) / T, t = 0 .. T-1.

    Flow matching with the rectified path (Lipman et al. 2023; Liu et al. 2023; Esser et al. 2024, arXiv 2403.03206).
    The network predicts the velocity dz_t / ds = eps - z. At the last step signal / noise is sqrt(PURE_NOISE), not 0.
    Samplers know a step by alpha_bar = signal^2 / (signal^2 + noise^2): their z_t is divided by
    sqrt(signal^2 + noise^2), so that its variance is preserved; noise and clean latents are the same.
    """

    spacing: ClassVar[str | None] = "trailing"  # equal steps from noise to data

    @property
    def signals(self) -> Table:
        return np.sqrt(self.alpha_bar / (1 - self.alpha_bar)) * self.noises

    @property
    def noises(self) -> Table:
        return np.arange(1, self.timesteps + 1) / self.timesteps

    def network_input(self, z_t: Latents, t: Steps) -> Latents:
        """What the network sees of a sampler's z_t [B,...]: sqrt(signal^2 + noise^2) z_t."""
        return _at(np.hypot(self.signals, self.noises), t, z_t) * z_t

    def marginal(self, z: Latents, t: Steps) -> tuple[Latents, Factor, Factor]:
        """Mean [B,...], variance and log variance [B,1,...] of q(z_t | z)."""
        return self._signal(t, z) * z, _at(self.noises**2, t, z), _at(2 * np.log(self.noises), t, z)

    def velocity(self, z: Latents, noise: Latents, t: Steps) -> Latents:
        """noise - z."""
        return noise - z

    def to_eps(self, output: Latents, z_t: Latents, t: Steps) -> Latents:
        """The noise in z_t according to the velocity."""
        return (z_t + self._signal(t, z_t) * output) / _at(self.signals + self.noises, t, z_t)

    def to_x0(self, output: Latents, z_t: Latents, t: Steps) -> Latents:
        """The clean latent according to the velocity. Not clipped."""
        return (z_t - self._noise(t, z_t) * output) / _at(self.signals + self.noises, t, z_t)

    def _error_of_x0(self, snr: Table) -> Table | float:
        return 1 / self.noises**2


@lru_cache
def make_flow_schedule(timesteps: int = 1000) -> FlowSchedule:
    """The flow's schedule of T = `timesteps` steps. Equal arguments give the same object."""
    if timesteps < 2:
        raise ConfigError(f"timesteps must be at least 2, got {timesteps}")
    noise = np.arange(1, timesteps + 1) / timesteps
    alpha_bar = (1 - noise) ** 2 / ((1 - noise) ** 2 + noise**2)
    alpha_bar[-1] = PURE_NOISE
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    tables = _tables(betas, alpha_bar, "eps", 0.0)
    signals = np.sqrt(alpha_bar / (1 - alpha_bar)) * noise
    tables = (*tables[:4], tables[4] * signals**2)  # an error of eps is `signal` times one of the velocity
    return FlowSchedule(*_read_only(tables), prediction="v", v_posterior=0.0)


@lru_cache
def make_schedule(
    kind: str = "scaled_linear",
    timesteps: int = 1000,
    start: float = 0.0015,
    end: float = 0.0195,
    prediction: str = "eps",
    v_posterior: float = 0.0,
    cosine_s: float = 8e-3,
    zero_terminal_snr: bool = False,
) -> NoiseSchedule:
    """A schedule of T = `timesteps` steps. Equal arguments give the same object.

    kind: "scaled_linear"  square roots of beta evenly spaced from sqrt(start) to sqrt(end). All published
                           latent diffusion models use it; the original code calls it "linear".
          "linear"         beta evenly spaced (Ho et al. 2020); the original code calls it "sqrt_linear".
          "sqrt"           square root of the evenly spaced values.
          "cosine"         Nichol and Dhariwal 2021, eq. 17, with offset cosine_s and beta at most 0.999;
                           start and end are not used.
    prediction: "eps", "x0" or "v".  v_posterior: 0 = the true posterior variance, 1 = beta.
    zero_terminal_snr: the last step is pure noise: sqrt(alpha_bar) is shifted and scaled so that the first stays and
    the last becomes 0 (Lin et al. 2023, arXiv 2305.08891, algorithm 1), here sqrt(PURE_NOISE). Not for "eps", which
    says nothing of the latent there.
    """
    if kind not in KINDS:
        hint = " (the original's 'sqrt_linear' is 'linear' here)" if kind == "sqrt_linear" else ""
        raise ConfigError(f"noise schedule {kind!r} is not one of {', '.join(KINDS)}{hint}")
    if prediction not in PREDICTIONS:
        raise ConfigError(f"prediction {prediction!r} is not one of {', '.join(PREDICTIONS)}")
    if timesteps < 2:
        raise ConfigError(f"timesteps must be at least 2, got {timesteps}")
    if kind != "cosine" and not 0 < start <= end < 1:
        raise ConfigError(f"beta must rise within (0, 1), got start {start} and end {end}")
    if zero_terminal_snr and prediction == "eps":
        raise ConfigError("zero_terminal_snr=True with prediction='eps': of pure noise, eps is known; predict v or x0")
    betas = _betas(kind, timesteps, start, end, cosine_s)
    alpha_bar = np.cumprod(1 - betas)
    if zero_terminal_snr:
        alpha_bar = _zero_terminal_snr(alpha_bar)
        betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    tables = _tables(betas, alpha_bar, prediction, v_posterior)
    return NoiseSchedule(*_read_only(tables), prediction=prediction, v_posterior=v_posterior)


def _tables(betas: Table, alpha_bar: Table, prediction: str, v_posterior: float) -> Tables:
    """The tables of a NoiseSchedule."""
    alpha_bar_prev = np.append(1.0, alpha_bar[:-1])
    posterior = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
    variance = (1 - v_posterior) * posterior + v_posterior * betas
    lvlb_weights = _lvlb_weights(prediction, betas, alpha_bar, variance)
    return betas, alpha_bar, alpha_bar_prev, variance, lvlb_weights


def _read_only(tables: Tables) -> Tables:
    for table in tables:
        table.flags.writeable = False  # the cache hands the same arrays to everyone
    return tables


def _betas(kind: str, timesteps: int, start: float, end: float, cosine_s: float) -> Table:
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, timesteps) ** 2
    if kind == "linear":
        return np.linspace(start, end, timesteps)
    if kind == "sqrt":
        return np.linspace(start, end, timesteps) ** 0.5
    phase = (np.arange(timesteps + 1) / timesteps + cosine_s) / (1 + cosine_s)
    alpha_bar = np.cos(phase * np.pi / 2) ** 2
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)


def _zero_terminal_snr(alpha_bar: Table) -> Table:
    signal = np.sqrt(alpha_bar)
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    if signal[-2] ** 2 <= PURE_NOISE:
        raise ConfigError("zero_terminal_snr=True: this noise schedule reaches pure noise long before its last step")
    return np.append(signal[:-1] ** 2, PURE_NOISE)


def _lvlb_weights(prediction: str, betas: Table, alpha_bar: Table, variance: Table) -> Table:
    """Weights [T] of the mean squared error in the variational bound (Ho et al. 2020, eq. 12).

    x0 matches the original, whose denominator reads 2 - abar where 2 (1 - abar) was probably meant.
    v is not in the original: eps differs by sqrt(abar) times what v differs by, so its weight is that of eps
    times abar.
    The first entry, infinite where the posterior variance is 0, is copied from the second.
    """
    if prediction == "x0":
        weights = 0.5 * np.sqrt(alpha_bar) / (2 - alpha_bar)
    else:
        with np.errstate(divide="ignore"):
            weights = betas**2 / (2 * variance * (1 - betas) * (1 - alpha_bar))
        if prediction == "v":
            weights = weights * alpha_bar
    weights[0] = weights[1]
    return weights
