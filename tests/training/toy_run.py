"""A run of the training loop with a toy task that waits where it is told.

    python -m tests.training.toy_run WORKDIR [PHASE@STEP] [OPTION=VALUE ...]

At PHASE it prints "at PHASE" and waits for a minute as a compilation or a device would: no signal handler can end that.
With JAX_NUM_PROCESSES it is one of several hosts.
"""

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from ldm_jax.training import heartbeat, stopping

# Of the toy: max_minutes; nan_at: steps whose gradient is infinite; slow: seconds for a batch; eval_batches;
# host_timeout.
DEFAULTS = dict(steps=6, log=1, evaluate=0, picture=0, metrics=0, checkpoint=0, keep_every=0,
                checkpoint_minutes=0.0, on_nonfinite="stop",
                nonfinite_limit=3, noise_seed=0, watchdog_minutes=0.0,
                max_minutes=0.0, nan_at=(), slow=0.0, eval_batches=3, host_timeout=0.0)  # fmt: skip


EVERY = ("log", "evaluate", "picture", "metrics", "checkpoint", "checkpoint_minutes")


@dataclass
class Waits:
    """Where the run waits."""

    phase: str = ""
    step: int = 0

    def at(self, phase: str, step: int = 0) -> None:
        if (phase, step) == (self.phase, self.step):
            print(f"at {phase}", flush=True)
            time.sleep(60)


def train(stop: stopping.Stop, waits: Waits, workdir: str, options: dict, held: ExitStack) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import ConfigDict

    from ldm_jax.training import loop, sharding
    from ldm_jax.training.state import TrainState

    several = "JAX_NUM_PROCESSES" in os.environ
    if several:
        from ldm_jax import process

        process.join_hosts()
        joined = stopping.Hosts.joined()
        stop.share(joined)
        held.enter_context(heartbeat.between(joined, options["host_timeout"], stop.leave))

    class Toy:
        """Minimises (w - x)^2; the gradient of the other parameter is the batch's "bad"."""

        columns, headline, keeps_frozen, draws, fewer_pictures = None, ("loss",), False, True, ""
        traced = 0  # times that the gradients were: 1 for the step, 2 for the modules that are not finite

        def init(self, key, frozen, batch):
            waits.at("init")
            params = {"net": {"w": jnp.zeros(3), "other": jnp.zeros(3)}}
            return TrainState(jnp.int32(0), params, {}, {}, {}, key)

        def gradients(self, state, frozen, batch):
            self.traced += 1
            waits.at("gradients", self.traced)

            def loss(params):
                net = params["net"]
                return jnp.mean((net["w"] - batch["x"]) ** 2) + jnp.mean(net["other"] * batch["bad"])

            value, grads = jax.value_and_grad(loss)(state.params)
            return grads, {"loss": value, "draw": jax.random.uniform(state.step_key())}

        def step(self, state, frozen, batch):
            waits.at("compile")
            grads, metrics = self.gradients(state, frozen, batch)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
            norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
            return state.replace(step=state.step + 1, params=params), metrics | {"grad_norm": norm}

        def evaluate(self, state, frozen, batch, i):
            waits.at("compile evaluation")
            return {"loss": jnp.mean((batch["x"] - state.params["net"]["w"]) ** 2, axis=1)}

        def pictures(self, state, frozen, batch, mesh, check):
            waits.at("pictures")
            check()
            return {"samples": np.zeros((4, 8, 8, 3))}

        def compile_pictures(self, state, frozen, batch, mesh):
            waits.at("compile pictures")
            return []

    class Batches:
        def __init__(self, first, last, phase):
            self.k, self.last, self.phase = first, last, phase

        def __iter__(self):
            return self

        def __next__(self):
            self.k += 1
            if self.k > self.last:
                raise StopIteration
            waits.at(self.phase, self.k)
            time.sleep(options["slow"])
            rows = 4 // jax.process_count()
            bad = np.full((rows, 3), np.inf if self.k in options["nan_at"] and self.phase == "data" else 0, np.float32)
            ones = np.ones((rows, 3), np.float32)
            return {"x": ones, "bad": bad} | ({} if self.phase == "data" else {"weight": ones[:, 0]})

        def close(self):
            pass

    loaders = loop.Loaders(
        lambda start: Batches(start, 10**9, "data"),
        lambda: Batches(0, options["eval_batches"], "evaluate"),
        lambda: Batches(0, 1, ""),
        shapes=dict.fromkeys(("x", "bad"), jax.ShapeDtypeStruct((4, 3), np.float32)),
    )
    every = {name: options[name] for name in EVERY}
    rest = ("steps", "keep_every", "on_nonfinite", "nonfinite_limit", "noise_seed", "watchdog_minutes")
    config = dict(task="toy", every=every, keep=3, seed=0, batch_size=4, optim=dict(learning_rate=0.1))
    config = ConfigDict(config | {name: options[name] for name in rest})
    loop.run(Toy(), loaders, {}, config, sharding.make_mesh(), workdir, stop)


def main(workdir: str, *given: str) -> None:
    options, waits = dict(DEFAULTS), Waits()
    for text in given:
        name, equals, value = text.partition("=")
        if equals:
            kind = type(DEFAULTS[name])
            options[name] = tuple(map(int, value.split(","))) if kind is tuple else kind(value)
        else:
            phase, _, step = text.partition("@")
            waits = Waits(phase, int(step or 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    with stopping.Stop() as stop, ExitStack() as held:
        if options["max_minutes"]:
            stop.after(options["max_minutes"])
        waits.at("imports")
        try:
            train(stop, waits, workdir, options, held)
        except stopping.Stopped:
            sys.exit(stopping.AGAIN)


if __name__ == "__main__":
    main(*sys.argv[1:])
