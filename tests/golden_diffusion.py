"""Goldens of the diffusion arithmetic: tables, timetables, whole sampler runs, the training loss."""

import ast
import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.guidance import classifier_free_guidance
from ldm_jax.diffusion.samplers import SAMPLERS, ddim, ddpm, plms
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.diffusion.timetable import Timetable, make_timetable
from ldm_jax.ldm import LDM
from ldm_jax.models.autoencoder import IdentityFirstStage
from tests.golden import weights
from tests.golden_modules import first_that_fits, number_in
from tests.golden_tools import (
    TOLERANCE,
    Case,
    MismatchError,
    Ours,
    UnsupportedError,
    difference,
    log_prefix,
    nchw,
    nhwc,
)

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
        found = re.fullmatch(r"S(\d+)_(uniform|quad)_eta([\d.]+)/(\w+)", key)
        if found is None:
            raise UnsupportedError(f"output {key!r}")
        t, a, a_prev = (x[::-1] for x in make_timetable(schedule, int(found[1]), spacings[found[2]]))
        eta = float(found[3])
        tables = {
            "timesteps": t,
            "alphas": a,
            "alphas_prev": a_prev,
            "sqrt_one_minus_alphas": np.sqrt(1 - a),
            "sigmas": _sigmas(a, a_prev, eta),
            "sigmas_orig": _sigmas(schedule.alpha_bar, schedule.alpha_bar_prev, eta),
        }
        if found[4] in tables:
            ours[key] = Ours(tables[found[4]])
    for key in case.meta.get("extra", {}).get("errors", {}):
        found = re.match(r"S(\d+)_(uniform|quad)", key)
        try:
            make_timetable(schedule, int(found[1]), spacings[found[2]])
        except ValueError:
            continue
        raise MismatchError(f"{key} is an error in the original, and none here")
    return ours


def run_forward_process(case: Case) -> dict[str, Ours]:
    """q_sample, q_mean_variance, q_posterior, p_mean and the like."""
    z, noise = (jnp.asarray(nhwc(case.inputs[k])) for k in ("x0", "noise"))
    t = jnp.asarray(case.inputs["t"], jnp.int32)
    schedule, eps, x0 = schedule_of(case), *(schedule_of(case, parameterization=p) for p in ("eps", "x0"))
    z_t = schedule.add_noise(z, noise, t)
    clean = schedule.to_x0(denoiser(case, schedule)(z_t, t, 0.0), z_t, t)
    ours = dict(zip(("q_mean", "q_var", "q_logvar"), schedule.marginal(z, t)))
    ours |= dict(zip(("post_mean", "post_var", "post_logvar"), schedule.posterior(z, z_t, t)))
    ours |= dict(zip(("p_mean", "p_var", "p_logvar"), schedule.posterior(clean, z_t, t)))
    ours |= {
        "x_t": z_t,
        "x0_from_eps": eps.to_x0(noise, z_t, t),
        "eps_from_x0": x0.to_eps(z, z_t, t),
        "p_mean_clipped": schedule.posterior(jnp.clip(clean, -1, 1), z_t, t)[0],
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
    sampler = ddpm if kind.startswith("p_sample_loop") else SAMPLERS[re.match(r"\w+", kind)[0].lower()]
    # The original's DDIM and PLMS take the network's output for eps, whatever it was trained to predict.
    told = "x0" if "parameterization x0" in kind else case.meta.get("parameterization", "eps")
    v_posterior = number_in(r"v_posterior=([\d.]+)", kind) or case.meta.get("v_posterior", 0.0)
    schedule = schedule_of(case, parameterization=told if sampler is ddpm else "eps", v_posterior=v_posterior)
    timetable, after = _steps_of(case, schedule)
    run = _runner(case, sampler, schedule, len(timetable.t))
    prefixes = _prefixes(timetable, after)
    ours = {"x_final": run(_prefixes(timetable, np.array([len(timetable.t)])))[0], "x_traj": run(prefixes)}
    if "pred_x0_traj" in case.outputs:
        if sampler is ddpm and "mask" in case.inputs:
            raise UnsupportedError("the clean estimates of a masked ancestral run")
        # Ended at alpha_bar 1 a step gives its estimate of the clean latent.
        last = np.arange(len(timetable.t))[None] == after[:, None] - 1
        ours["pred_x0_traj"] = run(prefixes._replace(alpha_bar_prev=np.where(last, 1.0, prefixes.alpha_bar_prev)))
    if sampler is plms and len(timetable.t) > 1 and 1 in after:
        state, clean = _first_of_plms(case, schedule, timetable)
        for key, value in (("x_traj", state), ("pred_x0_traj", clean)):
            if key in ours:
                first = (after == 1).reshape(-1, *(1,) * value.ndim)
                ours[key] = np.where(first, value, ours[key])
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def _steps_of(case: Case, schedule: NoiseSchedule) -> tuple[Timetable, np.ndarray]:
    """The timetable of a run, and after how many of its steps each recorded state was taken.

    extra.kept_i: how many steps were still to come after a recorded one; by default all are recorded.
    """
    kind, kept = case.meta["kind"], case.meta.get("extra", {}).get("kept_i")
    if "S" in case.meta:
        quad = "quad" in f"{kind} {case.meta.get('ddim_discretize', '')} {case.meta.get('discretize', '')}"
        timetable = make_timetable(schedule, int(case.meta["S"]), "original_quad" if quad else "original")
    else:  # the original's "timesteps" argument: the last that many of all
        count = int(number_in(r"\b(?:timesteps|start_T)=(\d+)", kind) or (kept[0] + 1 if kept else schedule.timesteps))
        timetable = Timetable(*(x[-count:] for x in make_timetable(schedule, schedule.timesteps)))
    steps = len(timetable.t)
    return timetable, steps - np.asarray(range(steps - 1, -1, -1) if kept is None else kept)


def _prefixes(timetable: Timetable, lengths: np.ndarray) -> Timetable:
    """Timetables [N,S]: the first lengths[i] steps, the rest padding."""
    t, a, a_prev = (np.broadcast_to(x, (len(lengths), len(x))) for x in timetable)
    kept = np.arange(t.shape[1])[None] < lengths[:, None]
    return Timetable(np.where(kept, t, -1), np.where(kept, a, 1.0), np.where(kept, a_prev, 1.0))


def _first_of_plms(case: Case, schedule: NoiseSchedule, timetable: Timetable) -> tuple[np.ndarray, np.ndarray]:
    """The state after the first step of PLMS, and its clean estimate; both [B,C,H,W].

    That step looks at the second step's t, so it is run with a second step that stays put. A mask would act on the
    second step's start too: what it does to z_T is done beforehand, and the run has none.
    """
    inputs = dict(case.inputs)
    mask = inputs.pop("mask", None)
    if mask is not None:
        noise = weights.normal(noise_name(case, "qnoise", 0), inputs["x_T"].shape)
        t = jnp.full(len(noise), timetable.t[0])
        known = schedule.add_noise(jnp.asarray(inputs["x0"]), jnp.asarray(noise), t)
        inputs["x_T"] = mask * np.asarray(known) + (1 - mask) * inputs["x_T"]
    two = Timetable(*(np.array(x) for x in _prefixes(timetable, np.array([2]))))
    two.alpha_bar_prev[0, 1] = two.alpha_bar[0, 1]
    run = _runner(replace(case, inputs=inputs), plms, schedule, len(timetable.t))
    z = np.asarray(run(two), np.float64)[0]
    # z_T = sqrt(a) x0 + sqrt(1-a) eps and z = sqrt(b) x0 + sqrt(1-b) eps
    a, b = timetable.alpha_bar[0], timetable.alpha_bar_prev[0]
    z_T = inputs["x_T"].astype(np.float64)
    return z, (z_T * np.sqrt(1 - b) - z * np.sqrt(1 - a)) / (np.sqrt(a * (1 - b)) - np.sqrt(b * (1 - a)))


def noise_name(case: Case, what: str, k: int) -> str:
    """Name of the k-th draw of a run's own noise ("noise") or of that of its mask ("qnoise")."""
    return f"input/{case.stream}/{what}/{k}"


def _runner(case: Case, sampler: Callable, schedule: NoiseSchedule, steps: int) -> Callable:
    """Timetables [N,S] -> states [N,B,C,H,W] of the case's run, with its denoiser and its recorded noise."""
    inputs, kind = case.inputs, case.meta["kind"]
    shape = inputs["x_T"].shape
    output = denoiser(case, schedule)

    def noise_fn(what: str) -> Callable:
        draws = [nhwc(weights.normal(noise_name(case, what, k), shape)) for k in range(steps)]
        table = jnp.asarray(np.stack(draws))
        return lambda k: table[k]

    def denoise_with(z, t, c):
        return schedule.to_eps(output(z, t, c), z, t)

    zero = jnp.zeros(shape[0])
    cond, null = (jnp.asarray(inputs.get(k, zero)) for k in ("cond", "uncond"))
    # Without an unconditional input the original leaves guidance out.
    denoise = classifier_free_guidance(denoise_with, cond, null, case.meta.get("cfg") if "uncond" in inputs else None)
    options = {}
    if "mask" in inputs:
        options = {"mask": jnp.asarray(nhwc(inputs["mask"])), "z_known": jnp.asarray(nhwc(inputs["x0"]))}
        options["known_noise_fn"] = noise_fn("qnoise")
    eta = case.meta.get("eta", 0)
    if sampler is ddpm or (sampler is ddim and eta):
        options |= {"noise_fn": noise_fn("noise"), "temperature": case.meta.get("temperature", 1.0)}
    if sampler is ddim and eta:
        options["eta"] = jnp.float32(eta)
    if sampler is ddpm:
        clip = "clip_denoised=True" in kind or bool(case.meta.get("clip_denoised"))
        options |= {"clip_x0": clip, "v_posterior": schedule.v_posterior}
    z_T = jnp.asarray(nhwc(inputs["x_T"]))

    @jax.jit
    def run(timetables: Timetable) -> jax.Array:
        states = jax.lax.map(lambda timetable: sampler(denoise, z_T, timetable, None, **options), timetables)
        return jnp.moveaxis(states, -1, 2)

    return lambda timetables: np.asarray(run(jax.tree.map(jnp.asarray, timetables)))


def run_training_loss(case: Case) -> dict[str, Ours]:
    """LatentDiffusion.p_losses: the loss, its parts and its gradients. What no field says, the name or a trial does."""
    known = {"parameterization": ("eps", "x0"), "loss_type": ("l2", "l1")}
    words = case.name.split("_")
    choices = [
        [case.meta[key]] if key in case.meta else [value for value in values if value in words] or values
        for key, values in known.items()
    ]
    candidates = list(itertools.product(*choices))
    return first_that_fits(case, candidates, lambda options: _training_loss(case, *options), "prediction and loss type")


def _training_loss(case: Case, prediction: str, loss_type: str) -> dict[str, Ours]:
    """The outputs for one prediction ("eps" or "x0") and loss type ("l2" or "l1")."""
    inputs = case.inputs
    schedule = schedule_of(case, parameterization=prediction)
    ldm = LDM(IdentityFirstStage(), IdentityFirstStage(), schedule, loss_type=loss_type, elbo_weight=1.0,
              learn_logvar="logvar" in inputs)  # fmt: skip
    z, noise = (jnp.asarray(nhwc(inputs[k])) for k in ("x0", "noise"))
    t = jnp.asarray(inputs["t"], jnp.int32)
    logvar = jnp.asarray(inputs.get("logvar", np.zeros(schedule.timesteps, np.float32)))
    output = denoiser(case, schedule)
    c = jnp.asarray(inputs.get("cond", np.zeros(len(z), np.float32)))

    def parts(z, logvar):
        """The simple loss with logvar ("gamma"), the bound, and the simple loss as it is logged."""
        z_t = schedule.add_noise(z, noise, t)
        terms = ldm.weigh({"logvar": logvar}, output(z_t, t, c), schedule.target(z, noise, t), t)
        terms = {key: jnp.mean(value) for key, value in terms.items()}
        return jnp.stack([terms["loss"] - terms["loss_vlb"], terms["loss_vlb"], terms["loss_simple"]])

    gamma, bound, simple = parts(z, logvar)
    grad_z, grad_logvar = jax.jacrev(parts, (0, 1))(z, logvar)
    grad_z = np.moveaxis(grad_z[:2], -1, 2)
    columns = {"loss": jnp.stack([gamma, bound]), "grad_x0": grad_z, "grad_logvar": grad_logvar[:2]}
    share, elbo, reason = _loss_weights(case, columns)
    total = {key: np.asarray(share * value[0] + elbo * value[1]) for key, value in columns.items()}
    log = log_prefix(case)
    ours = total | {f"{log}.loss": total["loss"], f"{log}.loss_gamma": gamma, f"{log}.loss_vlb": bound,
                    f"{log}.loss_simple": simple, "log_logvar": jnp.mean(logvar)}  # fmt: skip
    return {key: Ours(np.asarray(value), reason=reason) for key, value in ours.items()}


def _loss_weights(case: Case, columns: dict) -> tuple[float, float, str]:
    """Weights of the simple loss (the original's l_simple_weight) and of the bound, and a remark where not told.

    No case records the first: it is what the recorded loss says, or where neither is told, the two numbers that
    the recorded loss and gradients, hundreds of values, fit best.
    """
    gamma, bound = (float(value) for value in columns["loss"])
    elbo = case.meta.get("original_elbo_weight", number_in(r"elbo(\d[\d.]*(?:e-?\d+)?)", case.name))
    share = case.meta.get("l_simple_weight")
    if elbo is None:
        used = [key for key in columns if case.meta["outputs"].get(key, {}).get("stored", "") == "full"]
        used = [key for key in used if case.outputs[key].std() > 0 or key == "loss"]
        sides = [np.concatenate([np.ravel(np.asarray(columns[key][i], np.float64)) for key in used]) for i in (0, 1)]
        golden = np.concatenate([np.ravel(case.outputs[key]).astype(np.float64) for key in used])
        share, elbo = (round(float(w), 5) for w in np.linalg.lstsq(np.stack(sides, 1), golden, rcond=None)[0])
        return share, elbo, f"weights not recorded, {share} and {elbo} fit"
    if share is None:
        share = round((float(case.outputs["loss"]) - elbo * bound) / gamma, 3)
    return share, elbo, "" if share == 1 else f"the recorded loss has {share} times the simple loss"
