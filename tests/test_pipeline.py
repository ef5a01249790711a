"""`ldm_jax.load(...)`: one door to a model. A tiny class model on pixels, so that programs compile in seconds."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import ldm_jax
from ldm_jax import checkpoint, config_file, recipes
from ldm_jax.cli import sample
from ldm_jax.conditions import class_label, hybrid, semantic
from ldm_jax.diffusion import samplers
from ldm_jax.errors import ConfigError, Missing, RequestError
from ldm_jax.images import to_float, to_uint8
from ldm_jax.training import setup
from tests import fast

ROOT = Path(__file__).resolve().parents[1]


def filled(shapes, seed=0):
    """Random parameters that keep activations of size 1, so that outputs depend on all of them."""
    rng = np.random.default_rng(seed)

    def one(path, s):
        noise = rng.standard_normal(s.shape)
        if path[-1].key == "scale":
            noise = 1 + 0.1 * noise
        elif path[-1].key != "embedding":
            noise *= np.prod(s.shape[:-1]) ** -0.5 if len(s.shape) > 1 else 0.1
        return np.asarray(noise if np.issubdtype(s.dtype, np.floating) else np.zeros(s.shape), s.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def keep(workdir, config):
    """A run directory with a checkpoint of random parameters."""
    config_file.save(workdir, config.to_dict())
    state, frozen = setup.abstract_run(config)
    made = {name: filled(getattr(state, name)) for name in ("params", "ema", "variables")}
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state)
    checkpoint.save_from_numpy(workdir, 3, zeros.replace(**made))
    if config.task != "first_stage":
        checkpoint.save_tree(workdir / "frozen", filled(frozen, 1) | {"latent_scale": np.float32(1.0)})
    return workdir


def classes():
    """Classes, on 16x16 pixels: a UNet of one level, and no first stage."""
    config = recipes.load("quickstart_class:tiny").unlock()
    config.first_stage.kind = "identity"
    config.data.image_size = 16
    config.unet.update(out_channels=3, channel_mult=(1,), attention_downsamples=(), model_channels=32)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return keep(tmp_path_factory.mktemp("class"), classes())


@pytest.fixture(scope="module")
def pipe(run):
    return ldm_jax.load(run)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    config = recipes.load("quickstart_first_stage:tiny").unlock()
    return keep(tmp_path_factory.mktemp("first_stage"), config)


def test_other_parameters_come_when_those_from_before_are_gone(run, monkeypatch):
    pipe, there = ldm_jax.load(run), []
    place, params, frozen = pipe._place, jax.device_get(pipe.params), jax.device_get(pipe.frozen)
    monkeypatch.setattr(pipe, "_place", lambda tree: (there.append(pipe.params or pipe.frozen), place(tree))[1])
    pipe.update(params, frozen, 4)
    assert there == [None, None] and pipe.step == 4
    assert jax.tree.structure((pipe.params, pipe.frozen)) == jax.tree.structure((params, frozen))


def test_importing_is_light():
    code = "import sys, ldm_jax; dir(ldm_jax); sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_twenty_requests_compile_once(pipe):
    """Another seed, label, scale, eta, strength, number of steps: the same programs."""
    pipe.sample(label=1, num=2, steps=3, guidance=2)
    before = pipe.compiled
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    for i in range(20):
        steps = 134 if i == 10 else 1 + i % 7
        images = pipe.sample(label=i, num=2, steps=steps, guidance=1 + i / 4, seed=i, eta=i / 20)
        assert images.shape == (2, 16, 16, 3) and images.names == [f"class {i}"] * 2
    assert pipe.compiled == before and not compiled
    jax.monitoring.clear_event_listeners()


def test_the_script_gives_the_same_pixels(pipe, run, tmp_path):
    images = pipe.sample(label=[3, 5], num=2, steps=4, guidance=2, seed=7)
    asked = ["--label=3", "--label=5", "--num=2", "--steps=4", "--guidance=2", "--seed=7", "--npz"]
    out = sample.run(sample.parse([f"--workdir={run}", f"--out={tmp_path}", *asked]))
    np.testing.assert_array_equal(np.load(out / "samples.npz")["arr_0"], images.array)
    assert (out / "grid.png").is_file()
    texts = Image.open(out / "000003_class-5.png").text
    assert texts["seed"] == "7" and texts["steps"] == "4" and texts["spacing"] == "even" and texts["index"] == "3"
    told, grid = (ldm_jax.read_settings(out / name) for name in ("000003_class-5.png", "grid.png"))
    assert told["index"] == 3 and told["model"]["path"] == str(run) and told["request"] == grid["request"]
    np.testing.assert_array_equal(pipe.sample(**told["request"])[3], images[3])
    (path,) = images[3:].save(tmp_path / "saved")
    assert ldm_jax.read_settings(path)["request"] == told["request"]


def test_progress_and_previews_change_nothing(pipe):
    steps, previews = [], []
    options = dict(label=3, num=5, batch=4, steps=6, seed=1)
    images = pipe.sample(
        **options, on_progress=lambda p: steps.append((p.first, p.step, p.steps, p.total)),
        on_preview=lambda p, made: previews.append((p.step, made.shape)), preview_every=2,
    )  # fmt: skip
    np.testing.assert_array_equal(images.array, pipe.sample(**options).array)
    assert steps == [(first, k, 6, 5) for first in (0, 4) for k in range(1, 7)]
    assert previews == [(k, (n, 16, 16, 3)) for n in (4, 1) for k in (2, 4)]


LIKE_OTHERS = ("euler", "euler_ancestral", "unipc_2")  # their loops are those of ddim and unipc_3


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name not in LIKE_OTHERS])
def test_every_sampler_tells_every_step_and_its_estimate_ends_in_the_image(pipe, name):
    steps, previews = [], []
    images = pipe.sample(
        label=3, steps=5, sampler=name, on_progress=lambda p: steps.append(p.step), preview_every=1,
        on_preview=lambda p, made: previews.append(made.array.astype(int)),
    )  # fmt: skip
    assert steps == [1, 2, 3, 4, 5] and len(previews) == 4
    apart = [np.abs(made - images.array).mean() for made in previews]
    assert apart[-1] < 0.6 * apart[0] + 1


def test_a_larger_request_begins_with_a_smaller_one(pipe):
    """Image i depends on (seed, i) and its condition alone."""
    five, two = pipe.sample(label=3, num=5, steps=3), pipe.sample(label=3, num=2, steps=3, batch=1)
    assert np.abs(five.array[:2].astype(int) - two.array).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_batch_of_64_is_64_batches_of_one(pipe, name):
    """For every sampler, with guidance, and with noise where it takes any: latents alike to round-off of float32. A
    network's answer to another size of batch has other round-off, a few 1e-7, which the first step, from noise 84 times
    as strong as the signal, magnifies as much: 1e-4."""
    eta = 1.0 if samplers.SAMPLERS[name].takes_eta else 0.0
    wanted = pipe.request(label=3, steps=4, guidance=2.0, sampler=name, eta=eta, seed=5)
    method = pipe._method(wanted, (16, 16), pipe._timetable(wanted))

    def latents(numbers):
        batch = {"label": np.int32(numbers) % 10}
        return np.asarray(pipe.programs().sample(pipe.params, pipe.frozen, batch, wanted.seed, numbers, method))

    together = latents(np.arange(64))
    assert together.shape == (64, 16, 16, 3) and len(np.unique(together.reshape(64, -1), axis=0)) == 64
    alone = np.concatenate([latents(np.array([i])) for i in range(64)])
    assert np.abs(alone - together).max() < 1e-4 * together.std()


def test_a_series_can_be_made_in_parts(pipe):
    whole = pipe.sample(label=3, num=3, steps=3, batch=2)
    rest = pipe.sample(label=3, num=2, steps=3, batch=2, first=1)
    np.testing.assert_array_equal(rest.array, whole.array[1:])


def test_samplers_have_their_own_spacing(pipe):
    assert pipe.settings(pipe.request(label=1, sampler="euler"))["spacing"] == "karras"
    assert pipe.settings(pipe.request(label=1, sampler="unipc_2"))["spacing"] == "log_snr"
    assert pipe.settings(pipe.request(label=1, sampler="dpm_solver_pp_2m"))["spacing"] == "log_snr"
    assert pipe.settings(pipe.request(label=1, sampler="heun"))["spacing"] == "log_snr"
    assert pipe.settings(pipe.request(label=1, sampler="dpm_solver_pp_2m", spacing="even"))["spacing"] == "even"


def test_inverted_pictures_come_back(pipe):
    """The noise of a picture, as `noise`, makes the picture again."""
    picture = pipe.sample(label=3, steps=4)
    noise = pipe.invert(picture.array, steps=20, label=3)
    again = pipe.sample(label=3, steps=20, noise=noise)
    assert np.abs(again.array.astype(int) - picture.array).mean() < 3
    inside = pipe.sample(init=picture.array, invert=True, label=3, steps=20)
    assert np.abs(inside.array.astype(int) - again.array).max() <= 1


def test_guidance_can_be_rescaled(pipe):
    guided, off, full = (
        pipe.sample(label=3, steps=5, guidance=6, **options).array.astype(int)
        for options in ({}, {"guidance_rescale": 0}, {"guidance_rescale": 1})
    )
    assert np.abs(guided - off).max() <= 1 and np.abs(guided - full).mean() > 1


def test_guidance_in_an_interval(pipe):
    """Everywhere is the guidance, nowhere is without; another interval compiles nothing."""
    options = dict(label=3, steps=5)
    guided, plain = (pipe.sample(**options, guidance=s).array.astype(int) for s in (6, 1))
    whole = pipe.sample(**options, guidance=6, guidance_interval=(0, np.inf))
    before = pipe.compiled
    nowhere, half = (pipe.sample(**options, guidance=6, guidance_interval=ends) for ends in ((1e3, 1e4), (0.5, 2.0)))
    assert pipe.compiled == before
    assert np.abs(whole.array - guided).max() <= 1 and np.abs(nowhere.array - plain).max() <= 1
    assert min(np.abs(half.array - other).mean() for other in (guided, plain)) > 1
    assert (
        pipe.settings(pipe.request(label=1, guidance=2, guidance_interval=(0.5, 2)))["guidance_interval"] == "0.5 to 2"
    )


@pytest.fixture(scope="module")
def weaker(run, tmp_path_factory):
    """A run with another UNet, on the same latents."""
    config = classes()
    config.unet.num_res_blocks = 2
    return keep(tmp_path_factory.mktemp("weaker"), config)


def test_a_guidance_scale_for_each_of_two_conditions(tmp_path):
    """Equal scales are one scale of both; in their order, the class first; others compile nothing."""
    config = classes()
    parts = class_label.section(64, dim=32, drop_prob=0.1), semantic.section(9, channels=3)
    sections = hybrid.section(*parts, drop_prob=0.05, drop_each=0.05)
    sections["parts"]["semantic"]["n_stages"] = 0
    config.conditioner = ConfigDict({"trainable": True, "checkpoint": ""} | sections)
    pipe = ldm_jax.load(keep(tmp_path / "hybrid", config))
    where = np.arange(256, dtype=np.uint8).reshape(16, 16) % 9
    options = dict(label=3, segmentation=where, num=2, steps=3)

    def made(**more):
        return pipe.sample(**options, **more).array.astype(int)

    assert np.abs(made(guidance=4) - made(guidance=(4, 4))).max() <= 1
    compiled = pipe.compiled
    usual, more_class, more_map = (made(guidance=scales) for scales in ((1, 1), (6, 1), (1, 6)))
    assert min(np.abs(a - b).max() for a, b in ((usual, more_class), (usual, more_map), (more_class, more_map))) > 10
    changed = pipe.sample(**options | {"label": 5}, guidance=(0, 0)).array.astype(int)
    assert np.abs(changed - made(guidance=(0, 0))).max() == 0  # without either
    changed = pipe.sample(**options | {"segmentation": where.T.copy()}, guidance=(2, 0)).array.astype(int)
    assert np.abs(changed - made(guidance=(2, 0))).max() == 0  # the class alone
    assert pipe.compiled == compiled
    assert pipe.settings(pipe.request(**options, guidance=[2, 0]))["guidance"] == (2.0, 0.0)


def test_autoguidance(pipe, run, weaker):
    options = dict(label=3, num=2, steps=4)
    plain = pipe.sample(**options).array.astype(int)
    once, more = (pipe.sample(**options, autoguide=weaker, autoguide_scale=s).array.astype(int) for s in (1, 3))
    before = pipe.compiled
    again = pipe.sample(**options, autoguide=weaker, autoguide_scale=2, seed=3)
    assert pipe.compiled == before
    assert np.abs(once - plain).max() <= 1 and np.abs(more - plain).mean() > 1
    # guided away from itself nothing moves, whatever the scale
    itself = pipe.sample(**options, autoguide=run, autoguide_scale=3, autoguide_checkpoint=3).array
    assert np.abs(itself - plain).max() <= 1
    assert pipe.settings(pipe.request(label=1, autoguide=weaker))["autoguide_scale"] == 2
    np.testing.assert_array_equal(again.array, pipe.sample(**options, autoguide=weaker, seed=3).array)


def test_a_weaker_model_must_have_the_same_latents(pipe, first_stage, weaker, tmp_path):
    with pytest.raises(Missing, match="the weaker model: nowhere is not a run directory"):
        pipe.sample(label=1, autoguide="nowhere")
    with pytest.raises(Missing, match="holds a run of task 'first_stage'"):
        pipe.sample(label=1, autoguide=first_stage)
    config = classes()
    config.diffusion.end = 0.02
    other = keep(tmp_path, config)
    with pytest.raises(ConfigError, match=r"cannot guide the model in .*\n.*diffusion.end: 0.0195 here, 0.02 there"):
        pipe.sample(label=1, autoguide=other)
    with pytest.raises(Missing, match="no checkpoint of step 9"):
        pipe.sample(label=1, autoguide=weaker, autoguide_checkpoint=9)


@pytest.mark.parametrize("name", ["flow", "zero"])
def test_models_that_begin_in_pure_noise(name, tmp_path):
    config = classes()
    config.diffusion.update(**({"kind": "flow"} if name == "flow" else {"zero_terminal_snr": True}))
    pipe = ldm_jax.load(keep(tmp_path, config))
    samplers = ("heun", "euler")[: 2 if name == "flow" else 1]
    made = [pipe.sample(label=3, steps=20, sampler=s, guidance=2).array.astype(int) for s in samplers]
    assert np.abs(made[0] - made[-1]).mean() < 20 and made[0].std() > 5
    assert pipe.settings(pipe.request(label=3, sampler="euler"))["spacing"] == {
        "flow": "trailing", "zero": "karras",
    }[name]  # fmt: skip
    assert pipe.settings(pipe.request(label=3, spacing="even"))["spacing"] == "even"
    with pytest.raises(RequestError, match=r"sampler=plms cannot begin in pure noise.*ddim, ddpm, euler"):
        pipe.sample(label=3, sampler="plms")


def test_fields_of_a_batch_are_a_condition(pipe):
    labels = np.array([3, 9, 3], np.int32)
    images = pipe.sample(fields={"label": labels, "image": np.zeros((3, 16, 16, 3))}, steps=3)
    asked = pipe.sample(label=[3, 9, 3], steps=3)
    np.testing.assert_array_equal(images.array, asked.array)


def test_saved_models_load(pipe, tmp_path):
    folder = pipe.save(tmp_path / "exported")
    again = ldm_jax.load(folder)
    options = dict(label=3, steps=3, guidance=2)
    np.testing.assert_array_equal(again.sample(**options).array, pipe.sample(**options).array)
    half = ldm_jax.load(pipe.save(tmp_path / "half", dtype="bfloat16"))
    assert np.abs(half.sample(**options).array.astype(int) - pipe.sample(**options).array).mean() < 8
    assert sum(p.stat().st_size for p in (tmp_path / "half").iterdir()) < 0.6 * sum(
        p.stat().st_size for p in folder.iterdir()
    )
    with pytest.raises(RequestError, match="holds a model already"):
        pipe.save(folder)


def test_a_first_stage_encodes_decodes_and_does_not_sample(first_stage):
    pipe = ldm_jax.load(first_stage)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    z = pipe.encode(pictures)
    assert z.shape[0] == 3 and z.ndim == 4
    np.testing.assert_array_equal(z, pipe.encode([Image.fromarray(p) for p in pictures]))
    np.testing.assert_array_equal(z, pipe.encode(to_float(pictures)))
    np.testing.assert_array_equal(pipe.decode(z).array, pipe.reconstruct(pictures).array)
    assert pipe.reconstruct(pictures[0], batch=1).shape == (1, 32, 32, 3)
    with pytest.raises(RequestError, match="no prior to sample from"):
        pipe.sample(num=1)
    with pytest.raises(RequestError, match=r"\[-1,1\]"):
        pipe.encode(255.0 * pictures)
    with pytest.raises(RequestError, match="do not divide"):
        pipe.encode(pictures[:, :31])
    with pytest.raises(RequestError, match="decodes"):
        pipe.decode(z[..., :1])


def test_the_same_images_on_any_number_of_devices():
    """Forced devices of one process: 1, 2 and 8 share a batch of 5 images, filled up."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import numpy as np, jax, tempfile, pathlib\n"
        "from jax.sharding import Mesh\n"
        "from tests import test_pipeline as t\n"
        "import ldm_jax\n"
        "run = t.keep(pathlib.Path(tempfile.mkdtemp()), t.classes())\n"
        "made = []\n"
        "for n in (1, 2, 8):\n"
        "    pipe = ldm_jax.load(run, mesh=Mesh(np.array(jax.devices()[:n]), ('data',)))\n"
        "    made.append(pipe.sample(label=3, num=5, steps=3, guidance=2).array.astype(int))\n"
        "    assert made[-1].shape == (5, 16, 16, 3)\n"
        "print(max(np.abs(m - made[0]).max() for m in made[1:]), np.mean(made[1] != made[0]))\n"
        "assert all(np.abs(m - made[0]).max() <= 1 for m in made[1:])\n"
        "assert all(np.mean(m != made[0]) < 0.01 for m in made[1:])\n"
    )
    flags = fast.flags("--xla_force_host_platform_device_count=8")
    environment = {"XLA_FLAGS": flags, "PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_new_sampler_is_one_function(pipe):
    """Euler's method on z / sqrt(a): DDIM in other words."""

    @samplers.sampler()
    def first_order(denoise, z_T, timetable, keys=None):
        import jax.numpy as jnp

        steps = samplers.steps_of(timetable)

        def step(z, entry):
            s, _ = entry
            eps = denoise(z, jnp.full(z.shape[:1], s.t))
            x0 = (z - jnp.sqrt(1 - s.a) * eps) / jnp.sqrt(s.a)
            return jnp.sqrt(s.a_prev) * x0 + jnp.sqrt(1 - s.a_prev) * eps, x0

        return samplers.Loop(z_T, step, (steps, steps.k))

    try:
        made, ddim = (pipe.sample(label=3, steps=5, sampler=name) for name in ("first_order", "ddim"))
        assert np.abs(made.array.astype(int) - ddim.array).max() <= 1
        assert "first_order" in sample.parser().format_help()
    finally:
        del samplers.SAMPLERS["first_order"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lable=3), "did you mean label"),
        (dict(), "label is missing"),
        (dict(label=64), "the model has the classes 0..63"),
        (dict(label=[1, -2]), "label=-2"),
        (dict(label=1, steps=0), "steps=0 must be a whole number above 0"),
        (dict(label=1, steps=1001), "steps=1001"),
        (dict(label=1, steps=2.5), "steps=2.5"),
        (dict(label=1, seed=-1), "seed=-1 is not in"),
        (dict(label=1, seed=True), "seed=True"),
        (dict(label=1, guidance_rescale=0.5), "guidance_rescale belongs to guidance"),
        (dict(label=1, guidance="much"), "guidance='much' must be a finite number"),
        (dict(label=1, guidance=2, guidance_interval=(2, 1)), "guidance_interval=(2, 1) is not (low, high)"),
        (dict(label=1, guidance=2, guidance_interval=3), "guidance_interval=3 is not (low, high)"),
        (dict(label=1, guidance_interval=(1, 2)), "guidance_interval belongs to guidance or autoguide"),
        (dict(label=1, autoguide_scale=2), "autoguide_scale belongs to autoguide"),
        (dict(label=1, autoguide="x", guidance=2), "guidance and autoguide are two models"),
        (dict(label=1, sampler="euler9"), "'euler9' is not one of ddim"),
        (dict(label=1, spacing="odd"), "spacing='odd' is not one of even"),
        (dict(label=1, size=(16, 16, 3)), "size="),
        (dict(label=1, noise=np.zeros((1, 4, 4, 3))), "noise is"),
        (dict(label=1, fields={"label": np.zeros(1)}), "two ways to say the condition"),
        (dict(fields={"label": np.zeros((2, 3))}), "each image needs"),
        (dict(fields={"labels": np.zeros(2)}), "label is missing"),
        (dict(label=1, init="nowhere.png"), "init=nowhere.png does not exist"),
        (dict(label=1, prompt="x"), "prompt means nothing here"),
    ],
)
def test_wrong_requests_name_the_option(pipe, options, message):
    with pytest.raises(RequestError) as error:
        pipe.sample(**options)
    assert message in str(error.value)


def test_pictures_in_training_are_the_pipelines(pipe, run):
    """Also where the batch holds fewer images than are drawn: its conditions are taken again."""
    task, (shapes, _) = setup.task(pipe.config), setup.abstract_run(pipe.config)
    state = shapes.replace(ema=pipe.params, params=pipe.params)
    batch = {"image": jnp.zeros((2, 16, 16, 3)), "label": jnp.array([3, 9], jnp.int32)}
    made = task.pictures(state, pipe.frozen, batch, pipe.mesh)["samples"]
    number = pipe.config.sample.number
    labels, s = np.arange(number) % 2 * 6 + 3, pipe.config.sample
    asked = pipe.sample(fields={"label": labels}, steps=s.steps, eta=s.eta, seed=s.seed, batch=number)
    assert made.shape == (number, 16, 16, 3)
    np.testing.assert_array_equal(to_uint8(made), asked.array)


def test_what_is_not_there(tmp_path, run):
    with pytest.raises(Missing, match="is not a run directory"):
        ldm_jax.load(tmp_path / "nowhere")
    with pytest.raises(Missing, match=r"no checkpoint of step 9 in .*\[3\]"):
        ldm_jax.load(run, checkpoint=9)
    classifier = recipes.load("quickstart_classifier:tiny")
    config_file.save(tmp_path / "classifier", classifier.to_dict())
    with pytest.raises(Missing, match="give it as classifier="):
        ldm_jax.load(tmp_path / "classifier")
