"""Power-function EMA and post-hoc EMA against sums over a recorded trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from ldm_jax import checkpoint, config_file, files, recipes, rundir
from ldm_jax.cli import convert
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.errors import ConfigError, Damaged, Missing, SaveFailed
from ldm_jax.training import posthoc, resume, setup, snapshots
from ldm_jax.training.optim import power_of, power_update
from ldm_jax.training.state import TrainState
from ldm_jax.training.tasks import Averaging
from tests.convert.conversion_tools import refused
from tests.training.test_saving import Counting, train

KEPT = (0.05, 0.10)


def direct(trajectory, step, sigma_rel):
    """The average of trajectory [N,...] after `step` updates, by the weights of all parameters so far, float64."""
    edges = (np.arange(step + 1) / step) ** (power_of(sigma_rel) + 1)
    return np.tensordot(np.diff(edges), trajectory[:step], 1)


def walk(steps, width):
    """A trajectory [steps,width] that settles: a random walk whose steps become smaller, and noise about it."""
    rng = np.random.default_rng(0)
    n = np.arange(1, steps + 1)[:, None]
    return np.cumsum(rng.standard_normal((steps, width)) / np.sqrt(n), 0) + rng.standard_normal((steps, width))


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_the_width_is_that_of_the_weights(sigma_rel):
    """The standard deviation of the steps under the weights, as a share of the last step."""
    edges = np.linspace(0, 1, 200_001)
    weights, at = np.diff(edges ** (power_of(sigma_rel) + 1)), (edges[1:] + edges[:-1]) / 2
    mean = (weights * at).sum()
    assert np.sqrt((weights * (at - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.3, -1.0])
def test_widths_that_no_average_has(sigma_rel):
    with pytest.raises(ConfigError, match=r"between 0 and 0\.2887, for example"):
        power_of(sigma_rel)


def test_updates_give_the_average_of_all_steps():
    """Both tracks, float32, over 3000 steps; the first parameters have no weight."""
    trajectory, averaging = walk(3000, 8), Averaging(sigma_rel=KEPT)
    first = {"w": jnp.full(8, 1e6)}

    def body(carry, entry):
        n, params = entry
        return (averaging.update(carry[0], params, n), averaging.update_tracks(carry[1], params, n)), None

    entries = jnp.arange(1, 3001), {"w": jnp.float32(trajectory)}
    start = averaging.init(first), averaging.init_tracks(first)
    (ema, tracks), _ = jax.jit(lambda start, entries: jax.lax.scan(body, start, entries))(start, entries)
    np.testing.assert_allclose(ema["w"], direct(trajectory, 3000, 0.05), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tracks["ema_1"]["w"], direct(trajectory, 3000, 0.10), rtol=1e-4, atol=1e-4)
    after_one = power_update(first, {"w": jnp.ones(8)}, 1, 5.0)
    np.testing.assert_array_equal(after_one["w"], 1)


def test_products_are_the_integrals():
    n = (np.arange(1_000_000) + 0.5) / 1e6 * 40
    cases = [(40.0, 3.0), (25.0, 3.0), (25.0, 11.5)]
    densities = [np.where(n < t, (g + 1) * n**g / t ** (g + 1), 0) for t, g in cases]
    times, powers = np.array(cases).T
    found = posthoc.products(times, powers, times, powers)
    for i, a in enumerate(densities):
        for j, b in enumerate(densities):
            assert found[i, j] == pytest.approx((a * b).sum() * 40 / 1e6, rel=1e-4)


def kept_ones(every, steps):
    """(steps, powers, widths) of two tracks that are kept every so many steps."""
    pairs = [(t, s) for t in range(every, steps + 1, every) for s in KEPT]
    times, widths = (np.array(x) for x in zip(*pairs))
    return times, np.array([power_of(s) for s in widths]), widths


def test_what_was_kept_comes_back_alone():
    times, powers, _ = kept_ones(100, 1000)
    for i in (3, 8, 19):
        x = posthoc.coefficients(times, powers, times[i], powers[i])
        np.testing.assert_allclose(x, np.eye(20)[i], atol=1e-6)


def test_the_coefficients_are_the_least_squares_ones():
    """Of densities on a fine grid, among all that sum to 1: every other sum is farther from what is wanted."""
    times, powers, _ = kept_ones(250, 1000)
    n = (np.arange(40_000) + 0.5) / 40
    table = np.stack([np.where(n < t, (g + 1) / t * (n / t) ** g, 0) for t, g in zip(times, powers)], 1)
    gamma = power_of(0.08)
    wanted = (gamma + 1) / 1000 * (n / 1000) ** gamma
    x = posthoc.coefficients(times, powers, 1000, gamma)
    assert x.sum() == pytest.approx(1)
    rest = table @ x - wanted
    moves = np.random.default_rng(0).standard_normal((50, len(x)))
    moves -= moves.mean(1, keepdims=True)
    across = moves @ table.T
    # The residual stands at right angles to all that can be added.
    assert np.abs(across @ rest).max() < 1e-3 * np.linalg.norm(rest) * np.linalg.norm(across, axis=1).min()
    assert np.linalg.norm(rest) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.06, 0.08, 0.12, 0.15])
def test_post_hoc_ema(sigma_rel):
    """20 snapshots of float16 give it; the error beside how far the average is from the last parameters."""
    trajectory = walk(2000, 300)
    times, powers, widths = kept_ones(100, 2000)
    kept = np.stack([direct(trajectory, t, s) for t, s in zip(times, widths)]).astype(np.float16)
    made = posthoc.coefficients(times, powers, 2000, power_of(sigma_rel)) @ kept.astype(np.float64)
    wanted = direct(trajectory, 2000, sigma_rel)
    moved = np.linalg.norm(wanted - trajectory[-1])
    nearest = min(np.linalg.norm(wanted - direct(trajectory, 2000, s)) for s in KEPT)
    error = np.linalg.norm(made - wanted)
    assert error < 0.02 * moved and error < 0.25 * nearest


class Averaged(Counting):
    """The sum of the numbers of the steps so far, and averages of it."""

    averaging = Averaging(sigma_rel=KEPT)

    def init(self, key_data, frozen, batch):
        state = super().init(key_data, frozen, batch)
        return state.replace(ema=self.averaging.init(state.params), variables=self.averaging.init_tracks(state.params))

    def step(self, state, frozen, batch):
        new, metrics = super().step(state, frozen, batch)
        ema = self.averaging.update(state.ema, new.params, new.step)
        tracks = self.averaging.update_tracks(state.variables, new.params, new.step)
        return new.replace(ema=ema, variables=tracks), metrics


def test_snapshots_of_a_run_that_goes_on(tmp_path):
    """Those of steps that come again are removed; the last step is kept, too."""
    ema = dict(kind="power", snapshot_every=4, snapshot_dtype="float32")
    train(tmp_path, Averaged(), steps=10, ema=ema)
    assert snapshots.steps(tmp_path) == [4, 8, 10]
    snapshots.path_of(tmp_path, 12).write_bytes(b"of a life that was not saved")
    train(tmp_path, Averaged(), steps=15, ema=ema)
    assert snapshots.steps(tmp_path) == [4, 8, 10, 12, 15]
    sums = np.cumsum(np.arange(1, 16))
    for step in (4, 12, 15):
        arrays, metadata = read_safetensors(snapshots.path_of(tmp_path, step))
        assert metadata["sigma_rel"] == "[0.05, 0.1]"
        for i, width in enumerate(KEPT):
            assert float(arrays[f"{i}/counted/sum"]) == pytest.approx(direct(sums, step, width), rel=1e-5)


def test_a_flipped_bit_is_not_averaged(tmp_path, capsys):
    """`convert.py --check` finds it, too. Files of older versions have no checksum."""
    ema = dict(kind="power", snapshot_every=4, snapshot_dtype="float32")
    train(tmp_path, Averaged(), steps=8, ema=ema)
    path = snapshots.path_of(tmp_path, 4)
    arrays, metadata = read_safetensors(path)
    assert snapshots.read(tmp_path, 4)[1] == [0.05, 0.1]
    convert.check(tmp_path)
    assert "\nema/4: ok\nema/8: ok\n" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"ema/4\.safetensors is damaged: .*remove it"):
        posthoc.reconstruct(tmp_path, 0.08)
    assert not convert.check(tmp_path)
    said = capsys.readouterr().out
    assert "BAD ema/4: " in said and "\nema/8: ok" in said
    data[-1] ^= 1
    files.save_arrays(path, {n: a.copy() for n, a in arrays.items()}, {"sigma_rel": metadata["sigma_rel"]})
    assert snapshots.read(tmp_path, 4)[1] == [0.05, 0.1]


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch):
    """The step's checkpoint is saved before, nothing of the file stays, and the next start writes it."""
    ema = dict(kind="power", snapshot_every=5)

    def no_space(arrays, path, metadata):
        path.write_bytes(b"a part")
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SaveFailed, match=r"step 5 .*5\.safetensors: No space left"):
        patch.setattr("safetensors.numpy.save_file", no_space)
        train(tmp_path, Averaged(), steps=10, ema=ema)
    assert checkpoint.steps(tmp_path) == [5] and not list((tmp_path / snapshots.FOLDER).iterdir())
    train(tmp_path, Averaged(), steps=10, ema=ema)
    assert snapshots.steps(tmp_path) == [5, 10]


def test_steps_that_come_again_have_no_file_without_snapshots(tmp_path):
    """Later, snapshots of two lives would be mixed."""
    (tmp_path / snapshots.FOLDER).mkdir()
    for name in ("4.safetensors", "8.safetensors", "8.tmp"):
        (tmp_path / snapshots.FOLDER / name).touch()
    snapshots.Snapshots(tmp_path, recipes.load("quickstart_ldm:tiny"), 5)
    assert [path.name for path in (tmp_path / snapshots.FOLDER).iterdir()] == ["4.safetensors"]


def test_numbers_that_float16_does_not_hold(tmp_path):
    config = recipes.load("quickstart_ldm:tiny", ["--config.ema.kind=power", "--config.ema.snapshot_every=1"])
    small, large = jnp.float32([1.5, -2.0]), jnp.float32([1e6, 0.1])
    tree = {"a": small, "b": large}
    state = TrainState(jnp.int32(1), {}, tree, {}, {"ema_1": tree}, jnp.zeros(2, jnp.uint32))
    snapshots.Snapshots(tmp_path, config, 0).write(1, state)
    arrays, _ = read_safetensors(snapshots.path_of(tmp_path, 1))
    assert arrays["0/a"].dtype == np.float16 and arrays["1/b"].dtype == np.float32
    np.testing.assert_array_equal(arrays["1/b"], large)


def power_recipe(*options):
    """A small UNet: tracing takes most of the time."""
    small = ["--config.unet.channel_mult=(1,)", "--config.unet.attention_downsamples=()"]
    return recipes.load("quickstart_ldm:tiny", ["--config.ema.kind=power", *small, *options])


def test_the_state_of_a_diffusion_model():
    """With one average it is as it was; a second track has the shapes of the parameters."""
    two, _ = setup.abstract_run(power_recipe())
    shapes = jax.tree.map(lambda s: s.shape, (two.params, two.ema))
    assert jax.tree.map(lambda s: s.shape, two.variables) == {"ema_1": shapes[0]} and shapes[0] == shapes[1]
    for options in (["--config.ema.kind=exponential"], ["--config.ema.sigma_rel=(0.1,)"]):
        averaging = setup.task(power_recipe(*options)).averaging
        assert averaging.init_tracks(two.params) == {} == averaging.update_tracks({}, two.params, jnp.int32(1))


@pytest.mark.parametrize(
    "options,message",
    [
        (["--config.ema.sigma_rel=(0.05,0.5)"], r"sigma_rel=0\.5 must lie between"),
        (["--config.ema.sigma_rel=(0.05,0.05)"], r"sigma_rel=\(0\.05, 0\.05\) has a width twice"),
        (["--config.ema.sigma_rel=()"], r"needs a width or more in config\.ema\.sigma_rel=\(\)"),
        (["--config.ema.decay=0.0"], r"config\.ema\.decay=0\.0 not to be 0"),
        (["--config.ema.kind=both"], r"config\.ema\.kind='both' is not one of exponential, power"),
    ],
)
def test_options_that_make_no_average(options, message):
    with pytest.raises(ConfigError, match=message):
        setup.task(power_recipe(*options))


def test_snapshots_need_the_kind(tmp_path):
    config = recipes.load("quickstart_ldm:tiny", ["--config.ema.snapshot_every=4"])
    with pytest.raises(ConfigError, match=r"snapshot_every=4 needs config\.ema\.kind='power' \(not 'exponential'\)"):
        snapshots.Snapshots(tmp_path, config, 0)


def test_a_run_keeps_its_kind_of_average(tmp_path):
    config_file.save(tmp_path, recipes.load("quickstart_ldm:tiny").to_dict())
    with pytest.raises(ConfigError, match=r"ema\.kind: 'exponential' there, 'power' here"):
        resume.check_same_run(power_recipe(), tmp_path, accept_changes=True)
    resume.check_same_run(recipes.load("quickstart_ldm:tiny", ["--config.ema.snapshot_every=5"]), tmp_path)


def test_the_command_writes_a_model_that_can_be_used(tmp_path, capsys):
    """Parameters that are all the same number, which follows a known trajectory."""
    config, run = power_recipe("--config.ema.snapshot_every=50"), tmp_path / "run"
    config_file.save(run, config.to_dict())
    with refused(capsys, r"averages of the run .*run, kept .*snapshot_every=N"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "to"), "--ema-sigma=0.08"])
    shapes, frozen = rundir.params_shapes(config), rundir.frozen_shapes(config)
    checkpoint.save_tree(run / "frozen", jax.tree.map(lambda s: np.full(s.shape, 2, s.dtype), frozen))
    trajectory, writer = np.sqrt(np.arange(1.0, 401)), snapshots.Snapshots(run, config, 0)
    for step in range(50, 401, 50):
        values = [direct(trajectory, step, width) for width in KEPT]
        tracks = [jax.tree.map(lambda s, v=v: jnp.full(s.shape, v, jnp.float32), shapes) for v in values]
        state = TrainState(jnp.int32(step), {}, tracks[0], {}, {"ema_1": tracks[1]}, jnp.zeros(2, jnp.uint32))
        writer.write(step, state)
    for name, options, step in (("last", [], 400), ("earlier", ["--checkpoint=250"], 250)):
        convert.main(["--from", str(run), "--to", str(tmp_path / name), "--ema_sigma=0.08", *options])
        assert f"at step {step}, averaged with the width 0.08" in capsys.readouterr().out
        params, kept, _ = rundir.model_of(rundir.config_of(tmp_path / name), tmp_path / name)
        assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
        found = {float(x.ravel()[0]) for x in jax.tree.leaves(params)}
        assert len(found) == 1 and found.pop() == pytest.approx(direct(trajectory, step, 0.08), rel=2e-3)
        assert float(kept["latent_scale"]) == 2
    for other in (49, 225, 401):
        with pytest.raises(Missing, match=rf"of step {other} \(there are: \[50, .*400\]\)"):
            posthoc.reconstruct(run, 0.08, other)
    with refused(capsys, r"sigma_rel=0\.4 must lie between"):
        convert.main(["--from", str(run), "--to", str(tmp_path / "wide"), "--ema-sigma=0.4"])
    assert not (tmp_path / "wide").exists()
