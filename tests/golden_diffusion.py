"""Goldens of the diffusion arithmetic: tables, timetables, whole sampler runs, the training loss."""

import ast
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.guidance import guided
from ldm_jax.diffusion.samplers import SAMPLERS, ddim, ddpm, plms
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.diffusion.timetable import Timetable, make_timetable
from ldm_jax.ldm import LDM
from ldm_jax.models.autoencoder import IdentityFirstStage
from tests.golden import weights
from tests.golden_modules import number_in
from tests.golden_tools import TOLERANCE, Case, Ours, UnsupportedError, difference, nchw, nhwc

# the original's names -> ours
KINDS = {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}
CANCELS = "ours are float64; in float32, where 1 - alpha_bar cancels, the same formula gives the golden"


def schedule_of(case: Case, **changes) -> NoiseSchedule:
    """The noise schedule that a case records; what it leaves out has the original's defaults."""
    meta = case.meta | changes
    return make_schedule(
        KINDS[meta.get("beta_schedule", "linear")],
        meta.get("timesteps", 1000),
        meta.get("linear_start", 0.0015),
        meta.get("linear_end", 0.0195),
        meta.get("parameterization", "eps"),
        meta.get("v_posterior", 0.0),
        **({"cosine_s": meta["cosine_s"]} if "cosine_s" in meta else {}),
    )


def run_tables(case: Case) -> dict[str, Ours]:
    """register_schedule: every table, most of them read off our schedule's methods."""
    schedule, eps = schedule_of(case), schedule_of(case, parameterization="eps")
    t = jnp.arange(schedule.timesteps)
    one, zero = jnp.ones((schedule.timesteps, 1)), jnp.zeros((schedule.timesteps, 1))
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "posterior_variance": schedule.posterior_variance,
        "posterior_mean_coef1": schedule.posterior(one, zero, t)[0][:, 0],
        "posterior_mean_coef2": schedule.posterior(zero, one, t)[0][:, 0],
        "posterior_log_variance_clipped": schedule.posterior(one, one, t)[2][:, 0],
        "sqrt_alphas_cumprod": schedule.add_noise(one, zero, t)[:, 0],
        "sqrt_one_minus_alphas_cumprod": schedule.add_noise(zero, one, t)[:, 0],
        "log_one_minus_alphas_cumprod": schedule.marginal(one, t)[2][:, 0],
        "sqrt_recip_alphas_cumprod": eps.to_x0(zero, one, t)[:, 0],
        "sqrt_recipm1_alphas_cumprod": -eps.to_x0(one, zero, t)[:, 0],
    }
    ours = {key: Ours(np.asarray(table)) for key, table in tables.items()}
    return ours | {"lvlb_weights": _lvlb_weights(case, schedule)}


def _lvlb_weights(case: Case, schedule: NoiseSchedule) -> Ours:
    """Ours, with the tolerance that float32 round-off of the original explains.

    The original computes them from float32 copies of the tables. Done so with our tables they must agree; then ours
    may be as far from the golden as from these.
    """
    exact = Ours(schedule.lvlb_weights)
    if schedule.prediction != "eps":
        return exact
    betas, alphas, alpha_bar, variance = (
        np.float32(x) for x in (schedule.betas, 1 - schedule.betas, schedule.alpha_bar, schedule.posterior_variance)
    )
    with np.errstate(divide="ignore"):
        rounded = betas**2 / (2 * variance * alphas * (1 - alpha_bar))
    rounded[0] = rounded[1]
    off = difference(case, "lvlb_weights", exact)
    if off <= TOLERANCE or difference(case, "lvlb_weights", Ours(rounded)) > TOLERANCE:
        return exact
    explained = np.abs(rounded - schedule.lvlb_weights).max() / case.outputs["lvlb_weights"].std()
    return Ours(schedule.lvlb_weights, tolerance=explained + TOLERANCE, reason=CANCELS)


def _sigmas(a: np.ndarray, a_prev: np.ndarray, eta: float) -> np.ndarray:
    return eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))


def run_timetables(case: Case) -> dict[str, Ours]:
    """The DDIM sampler's make_schedule: keys S<steps>_<uniform|quad>_eta<eta>/<table>, in ascending order."""
    schedule = schedule_of(case)
    spacings = {"uniform": "original", "quad": "original_quad"}
    ours = {}
    for key in case.outputs:
        steps, spacing, eta, table = re.fullmatch(r"S(\d+)_(\w+)_eta([\d.]+)/(\w+)", key).groups()
        t, a, a_prev = (x[::-1] for x in make_timetable(schedule, int(steps), spacings[spacing]))
        ours[key] = {
            "timesteps": lambda t=t: Ours(t),
            "alphas": lambda a=a: Ours(a),
            "alphas_prev": lambda a=a_prev: Ours(a),
            "sqrt_one_minus_alphas": lambda a=a: Ours(np.sqrt(1 - a)),
            "sigmas": lambda a=a, p=a_prev, e=float(eta): Ours(_sigmas(a, p, e)),
            "sigmas_orig": lambda e=float(eta): Ours(_sigmas(schedule.alpha_bar, schedule.alpha_bar_prev, e)),
        }[table]()
    for key in case.meta.get("extra", {}).get("errors", {}):
        steps, spacing = re.fullmatch(r"S(\d+)_(\w+)", key).groups()
        try:
            make_timetable(schedule, int(steps), spacings[spacing])
        except ValueError:
            continue
        raise ValueError(f"{key} is an error in the original, and none here")
    return ours


def run_forward_process(case: Case) -> dict[str, Ours]:
    """q_sample, q_mean_variance, q_posterior, p_mean and the like."""
    z, noise = (jnp.asarray(nhwc(case.inputs[k])) for k in ("x0", "noise"))
    t = jnp.asarray(case.inputs["t"], jnp.int32)
    schedule = schedule_of(case)
    z_t = schedule.add_noise(z, noise, t)
    x0 = schedule.to_x0(denoiser(case, schedule)(z_t, t, 0.0), z_t, t)
    ours = dict(zip(("q_mean", "q_var", "q_logvar"), schedule.marginal(z, t)))
    ours |= dict(zip(("post_mean", "post_var", "post_logvar"), schedule.posterior(z, z_t, t)))
    ours |= {
        "x_t": z_t,
        "x0_from_eps": schedule.to_x0(noise, z_t, t),
        "eps_from_x0": schedule_of(case, parameterization="x0").to_eps(z, z_t, t),
        "p_mean": schedule.posterior(x0, z_t, t)[0],
        "p_mean_clipped": schedule.posterior(jnp.clip(x0, -1, 1), z_t, t)[0],
    }
    ours = {key: Ours(nchw(value)) for key, value in ours.items()}
    reason = "absolute; the original subtracts numbers near 1 in float32 and keeps about 1e-6"
    prior = Ours(np.asarray(schedule.prior_bpd(z)), tolerance=1e-6, scale=1.0, reason=reason)
    return ours | {"prior_bpd": prior}


NAMES = {"x", "t", "c", "sin", "cos", "sqrt_one_minus_alphas_cumprod", "sqrt_alphas_cumprod"}


def denoiser(case: Case, schedule: NoiseSchedule) -> Callable:
    """(z, t [B], c [B] or 0) -> output: the closed form that the case writes down, 0.3 sin(x) + 0.001 t without."""
    text = case.meta.get("denoiser", "eps(x,t,c) = 0.3*sin(x + c) + 0.001*t,")
    formula = re.search(r"=\s*(.+?)(?:,|$)", text)[1]
    tree = ast.parse(formula, mode="eval")
    allowed = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Constant, ast.Subscript, ast.operator,
               ast.unaryop, ast.Load)  # fmt: skip
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if not all(isinstance(node, allowed) for node in ast.walk(tree)) or not names <= NAMES:
        raise UnsupportedError(f"denoiser {formula!r}")
    code = compile(tree, "denoiser", "eval")

    class Table:
        """Values of a table [T] at t, to broadcast against images."""

        def __init__(self, values: np.ndarray):
            self.values = jnp.asarray(values, jnp.float32)

        def __getitem__(self, t: jax.Array) -> jax.Array:
            return self.values[t.astype(jnp.int32)]

    known = {
        "sin": jnp.sin,
        "cos": jnp.cos,
        "sqrt_one_minus_alphas_cumprod": Table(np.sqrt(1 - schedule.alpha_bar)),
        "sqrt_alphas_cumprod": Table(np.sqrt(schedule.alpha_bar)),
    }

    def output(z: jax.Array, t: jax.Array, c: jax.Array | float) -> jax.Array:
        def broadcast(a):
            return jnp.reshape(a, (-1, *(1,) * (z.ndim - 1)))

        return eval(code, {"__builtins__": {}}, known | {"x": z, "t": broadcast(t), "c": broadcast(c)})

    return output


def run_trajectory(case: Case) -> dict[str, Ours]:
    """A sampler's states after its steps. Each is the result of our sampler on the timetable's first steps."""
    kind = case.meta["kind"]
    sampler = ddpm if kind.startswith("p_sample_loop") else SAMPLERS[re.match(r"\w+", kind)[0]]
    changes = {"parameterization": "x0"} if "parameterization x0" in kind else {}
    changes["v_posterior"] = number_in(r"v_posterior=([\d.]+)", kind) or case.meta.get("v_posterior", 0.0)
    schedule = schedule_of(case, **changes)
    extra = case.meta["extra"]
    if "S" in case.meta:
        quad = "quad" in f"{kind} {case.meta.get('ddim_discretize', '')}"
        timetable = make_timetable(schedule, case.meta["S"], "original_quad" if quad else "original")
        after = np.arange(1, len(timetable.t) + 1)
    else:  # the original's "timesteps" argument: the last that many of all; states are told by their t
        timetable = Timetable(*(x[-(extra["kept_i"][0] + 1) :] for x in make_timetable(schedule, schedule.timesteps)))
        after = np.array([len(timetable.t) - i for i in extra["kept_i"]])
    run = _runner(case, sampler, schedule, len(timetable.t))
    prefixes = _prefixes(timetable, after)
    states = run(prefixes)
    whole = run(_prefixes(timetable, np.array([len(timetable.t)])))[0]
    # Ended at alpha_bar 1 a step gives its estimate of the clean latent.
    last = np.arange(len(timetable.t))[None] == after[:, None] - 1
    cleaned = prefixes._replace(alpha_bar_prev=np.where(last, 1.0, prefixes.alpha_bar_prev))
    ours = {"x_final": whole, "x_traj": states}
    if "pred_x0_traj" in case.outputs:
        ours["pred_x0_traj"] = run(cleaned)
    if sampler is plms:
        _first_of_plms(case, timetable, run, ours)
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def _prefixes(timetable: Timetable, lengths: np.ndarray) -> Timetable:
    """Timetables [N,S]: the first lengths[i] steps, the rest padding."""
    t, a, a_prev = (np.broadcast_to(x, (len(lengths), len(x))) for x in timetable)
    kept = np.arange(t.shape[1])[None] < lengths[:, None]
    return Timetable(np.where(kept, t, -1), np.where(kept, a, 1.0), np.where(kept, a_prev, 1.0))


def _first_of_plms(case: Case, timetable: Timetable, run: Callable, ours: dict) -> None:
    """The state after the first step of PLMS, which looks at the second step's t: a second step that stays put."""
    if "mask" in case.inputs:
        raise UnsupportedError("the first state of a masked PLMS run")
    two = Timetable(*(np.array(x) for x in _prefixes(timetable, np.array([2]))))
    two.alpha_bar_prev[0, 1] = two.alpha_bar[0, 1]
    z = np.asarray(run(two), np.float64)[0]
    ours["x_traj"] = np.concatenate([z[None], ours["x_traj"][1:]])
    if "pred_x0_traj" in ours:
        # z_T = sqrt(a) x0 + sqrt(1-a) eps and z = sqrt(b) x0 + sqrt(1-b) eps
        a, b = timetable.alpha_bar[0], timetable.alpha_bar_prev[0]
        z_T = case.inputs["x_T"].astype(np.float64)
        x0 = (z_T * np.sqrt(1 - b) - z * np.sqrt(1 - a)) / (np.sqrt(a * (1 - b)) - np.sqrt(b * (1 - a)))
        ours["pred_x0_traj"] = np.concatenate([x0[None], ours["pred_x0_traj"][1:]])


def _runner(case: Case, sampler: Callable, schedule: NoiseSchedule, steps: int) -> Callable:
    """Timetables [N,S] -> states [N,B,C,H,W] of the case's run, with its denoiser and its recorded noise."""
    inputs, kind = case.inputs, case.meta["kind"]
    shape = inputs["x_T"].shape
    output = denoiser(case, schedule)

    def noise_fn(what: str) -> Callable:
        draws = [nhwc(weights.normal(f"input/{case.name}/{what}/{k}", shape)) for k in range(steps)]
        table = jnp.asarray(np.stack(draws))
        return lambda k: table[k]

    def denoise_with(z, t, c):
        return schedule.to_eps(output(z, t, c), z, t)

    zero = jnp.zeros(shape[0])
    cond, null = (jnp.asarray(inputs.get(k, zero)) for k in ("cond", "uncond"))
    denoise = guided(denoise_with, cond, null, case.meta.get("cfg"))
    options = {}
    if "mask" in inputs:
        options = {"mask": jnp.asarray(nhwc(inputs["mask"])), "z_known": jnp.asarray(nhwc(inputs["x0"]))}
        options["known_noise_fn"] = noise_fn("qnoise")
    if sampler is not plms:
        options["noise_fn"] = noise_fn("noise")
        options["temperature"] = case.meta.get("temperature", 1.0)
    if sampler is ddim:
        options["eta"] = jnp.float32(case.meta.get("eta", 0))
    if sampler is ddpm:
        options |= {"clip_x0": "clip_denoised=True" in kind, "v_posterior": schedule.v_posterior}
    z_T = jnp.asarray(nhwc(inputs["x_T"]))

    @jax.jit
    def run(timetables: Timetable) -> jax.Array:
        states = jax.lax.map(lambda timetable: sampler(denoise, z_T, timetable, None, **options), timetables)
        return jnp.moveaxis(states, -1, 2)

    return lambda timetables: np.asarray(run(jax.tree.map(jnp.asarray, timetables)))


def run_training_loss(case: Case) -> dict[str, Ours]:
    """LatentDiffusion.p_losses: the loss, its parts and its gradients. Options stand in the name alone.

    The weight of the simple loss stands nowhere: it is what the recorded loss and its recorded parts say.
    Ours has no such weight; it is a factor of the loss, and of the bound's weight its inverse.
    """
    name, inputs, golden = case.name, case.inputs, case.outputs
    prediction = case.meta.get("parameterization") or ("x0" if "_x0_" in name else "eps")
    schedule = schedule_of(case, parameterization=prediction)
    loss_type = case.meta.get("loss_type") or ("l1" if "_l1_" in name else "l2")
    elbo = case.meta.get("original_elbo_weight", number_in(r"elbo(\d[\d.]*(?:e-?\d+)?)", name) or 0.0)
    simple = golden.get("log_train.loss_gamma", golden["log_train.loss_simple"])
    factor = round(float((golden["loss"] - elbo * golden["log_train.loss_vlb"]) / simple), 3)
    reason = "" if factor == 1 else f"the recorded loss has {factor} times the simple loss"
    ldm = LDM(IdentityFirstStage(), None, schedule, loss_type=loss_type, elbo_weight=elbo / factor,
              learn_logvar="logvar" in inputs)  # fmt: skip
    z, noise = (jnp.asarray(nhwc(inputs[k])) for k in ("x0", "noise"))
    t = jnp.asarray(inputs["t"], jnp.int32)
    logvar = jnp.asarray(inputs.get("logvar", np.zeros(schedule.timesteps, np.float32)))
    output = denoiser(case, schedule)

    def loss(z, logvar):
        z_t = schedule.add_noise(z, noise, t)
        terms = ldm.weigh({"logvar": logvar}, output(z_t, t, 0.0), schedule.target(z, noise, t), t)
        terms = {key: jnp.mean(value) for key, value in terms.items()}
        return factor * terms["loss"], terms

    (value, terms), (grad_z, grad_logvar) = jax.value_and_grad(loss, (0, 1), has_aux=True)(z, logvar)
    gamma = terms["loss"] - elbo / factor * terms["loss_vlb"]
    ours = {"loss": value, "log_train.loss": value, "log_train.loss_gamma": gamma, "log_logvar": jnp.mean(logvar),
            "log_train.loss_simple": terms["loss_simple"], "log_train.loss_vlb": terms["loss_vlb"],
            "grad_logvar": grad_logvar, "grad_x0": nchw(grad_z)}  # fmt: skip
    return {key: Ours(np.asarray(value), reason=reason) for key, value in ours.items()}
