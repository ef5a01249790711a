"""The plan of a run: what train.py --compile-only prints, and its arithmetic."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import recipes
from ldm_jax.cli import train
from ldm_jax.training import chips, collectives, plan
from ldm_jax.training.state import TrainState

GIB = 2**30
DEVICES = plan.Devices("8 x NVIDIA H100 80 GB", [], chips.CHIPS["h100"], False)


def made(**changes):
    """Of 8 chips: an all-reduce of 4.5 GB."""
    sent = collectives.Collective("all-reduce", int(4.5e9), tuple(range(8)), times=2)
    fields = dict(
        devices=DEVICES, mesh={"data": 8, "fsdp": 1}, batch=64, accumulate=2, trained=10, frozen=5,
        operations={"half": 989e12, "exact": 67e12}, state=GIB, fixed=GIB, held=3 * GIB, temporary=40 * GIB,
        collectives=[sent], compile_s=1.0,
    )  # fmt: skip
    return plan.Plan(**fields | changes)


def test_times_are_of_published_rates():
    assert made().computing() == pytest.approx((1 + 1) / 8 / 0.4)
    assert made().sending() == pytest.approx(2 * 2 * 7 / 8 * 4.5e9 / 450e9)


def test_memory_is_compared_with_the_chips():
    assert made().fits and not made(temporary=80 * GIB).fits
    assert made(held=None, temporary=None).fits is None


def test_a_plan_of_the_devices_that_are_here(monkeypatch):
    """On one device nothing is sent; bytes are those of the arrays."""
    config = recipes.load("quickstart_ldm:tiny")
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    state = TrainState(step=jax.ShapeDtypeStruct((), jnp.int32), params={"w": shape}, ema={"w": shape}, opt_state={},
                       variables={}, key=())  # fmt: skip

    def step(state, frozen, batch):
        x = batch["image"].reshape(-1, 256) @ state.params["w"] @ frozen["w"]
        return state.replace(params={"w": state.params["w"] + jnp.sum(x)}), {"loss": jnp.sum(x)}

    monkeypatch.setattr(plan, "abstract", lambda config: (SimpleNamespace(step=step), state, {"w": shape}))
    found = plan.plan(config, plan.Devices("this", jax.devices()[:1], None, True))
    rows = config.batch_size * config.data.image_size**2 * 3 // 256
    assert found.collectives == [] and found.fits is None
    assert (found.trained, found.frozen) == (256 * 256, 256 * 256)
    assert (found.state, found.fixed) == (2 * 4 * 256 * 256 + 4, 4 * 256 * 256)
    assert found.held >= found.state + found.fixed
    assert found.operations == {"float32": 2 * 2 * rows * 256 * 256}
    text = plan.table(found)
    assert "sent between devices" in text and "nothing" in text and "estimate" not in text


@pytest.mark.parametrize(
    "options, words",
    [
        (["--topology=v5e:4x4"], "--topology=v5e:4x4 is for --compile-only"),
        (["--compile_only", "--topology=x9"], "--topology=x9 is not known"),
        *(
            (["--compile-only", option], f"{option} is for a run, and --compile-only begins none: leave one of the two")
            for option in (
                "--workdir=x", "--distributed", "--host-timeout=40.0", "--join-timeout=9.0", "--max-minutes=2.0",
                "--require-accelerator", "--accept-changes", "--profile=2:4",
            )
        ),
    ],
)  # fmt: skip
def test_wrong_options_are_told(options, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--config=quickstart_ldm:tiny", *options])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_tpu_without_its_compiler_is_planned_with_pretended_devices(monkeypatch):
    settings = {}
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    config = SimpleNamespace(update=settings.__setitem__)
    monkeypatch.setattr(plan, "jax", SimpleNamespace(config=config, devices=lambda platform: list(range(300))))
    monkeypatch.setattr(plan.process, "faster_cpu", lambda: None)
    found = plan.find(chips.topology("v5e:16x16"))
    assert not found.real and len(found.devices) == 256 and found.chip is chips.CHIPS["v5e"]
    assert settings["jax_num_cpu_devices"] == 256 and settings["jax_platforms"] == "cpu"
