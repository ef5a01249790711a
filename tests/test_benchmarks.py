"""The benchmarks run on tiny recipes, count work rightly and read traces; nothing here is timed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    common,
    compare_torch,
    compression,
    evaluation,
    first_stage,
    input_pipeline,
    memory,
    objectives,
    plan,
    plot,
    profile_step,
    restore,
    roofline,
    sampling,
    startup,
    topology,
    train_step,
    work,
)
from ldm_jax import programs, recipes
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.models import kernels
from ldm_jax.training.state import TrainState
from tests.fast import QUICK

COMPILE = work.Program.compile
TINY = "--config=configs/quickstart_first_stage.py:tiny"
CEILINGS = roofline.Ceilings(flops=1e9, bytes=1e9, dtype="float32")


@pytest.fixture
def quick(monkeypatch):
    compile_program = work.Program.compile
    monkeypatch.setattr(work.Program, "compile", lambda self: compile_program(self, options=QUICK))
    monkeypatch.setattr(roofline, "measure_ceilings", lambda dtype: CEILINGS)


def record(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_first_stage_writes_rows_and_record(quick, tmp_path, capsys):
    rows = first_stage.main([TINY, "--batch=1,2", "--repeats=2", f"--out={tmp_path}"])
    assert [(row["what"], row["batch"]) for row in rows] == [("encode", 1), ("decode", 1), ("encode", 2), ("decode", 2)]
    assert rows[2]["gflop"] == pytest.approx(2 * rows[0]["gflop"])
    assert all(row["images_s"] > 0 and row["calls"] == 2 for row in rows)
    found = record(tmp_path)
    assert found["rows"] == rows and found["environment"]["versions"]["jax"] == jax.__version__
    assert found["settings"]["batch"] == [1, 2] and found["ceilings"]["gflops"] == 1.0
    assert "| decode | 2" in capsys.readouterr().out
    assert "quickstart_first_stage.py:tiny, float32" in plot.main([f"--results={tmp_path}"])


def test_input_pipeline(tmp_path):
    (row,) = input_pipeline.main(
        [TINY, "--batch=4", "--workers=0", "--repeats=2", f"--out={tmp_path}", "--config.data.image_size=32"]
    )
    assert row["images_s"] > 0 and row["batch"] == 4
    assert record(tmp_path)["settings"]["overrides"] == ["--config.data.image_size=32"]


@pytest.mark.slow
def test_memory_grows_with_the_batch(tmp_path):
    rows = memory.main([TINY, "--batch=4,32", f"--out={tmp_path}"])
    assert rows[0]["state_gib"] == pytest.approx(rows[1]["state_gib"], rel=0.1)
    assert rows[1]["temporary_gib"] > 3 * rows[0]["temporary_gib"]
    fits = record(tmp_path)["fits"][0]
    assert 10 < fits["24 GiB"] < fits["80 GiB"] < fits["141 GiB"]


def test_largest_batch():
    rows = [{"batch": 2, "peak_gib": 5.0}, {"batch": 4, "peak_gib": 7.0}]  # 3 GiB, and 1 for every image
    assert memory.largest(rows, (2, 10), reserve=0.0) == {"GiB per image": 1.0, "2 GiB": 0, "10 GiB": 7}
    assert "note" in memory.largest([rows[1], {"batch": 8, "peak_gib": 7.0}], (10,), 0.0)


@pytest.mark.parametrize("width, keys, fused", [(32, 128, True), (384, 128, False), (20, 128, False), (32, 77, False)])
def test_a_plan_for_a_gpu_has_its_formulations(monkeypatch, width, keys, fused):
    monkeypatch.setattr(topology, "_find", lambda name: jax.devices()[0])
    queries, heads = (jax.ShapeDtypeStruct((1, 2, n, width), jnp.bfloat16) for n in (128, keys))
    with topology.device("h200"):
        gradient = jax.jit(jax.grad(lambda q, k, v: kernels.attend(q, k, v).astype(jnp.float32).sum(), (0, 1, 2)))
        program = gradient.trace(queries, heads, heads).lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn$fmhaSoftmaxBackward" in program) == fused
    assert kernels.backend() == jax.default_backend()


@pytest.mark.parametrize("name, package", [("h200", "jax-cuda12-pjrt"), ("v5p:1x1x1", "libtpu"), ("h2000", "libtpu")])
def test_a_device_that_no_package_knows(monkeypatch, name, package):
    monkeypatch.setattr(topology.topologies, "get_topology_desc", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(SystemExit, match=f"--topology={name}.*\n.*\n.*{package}.*a100"), topology.device(name):
        pass


def test_wrong_options_are_refused(capsys):
    for argv, word in ([[TINY, "--batsh=1"], "--batsh"], [["--config=configs/none.py"], "none.py"],
                       [[TINY, "--config.no_such=1"], "no_such"], [[TINY, "--batch=0"], "positive"]):  # fmt: skip
        with pytest.raises(SystemExit):
            first_stage.main(argv)
        assert word in capsys.readouterr().err


def test_a_step_carries_its_state():
    config = recipes.load("configs/quickstart_ldm.py:tiny", ["--config.unet.channel_mult=(1,)"])
    model = work.make_model(config)
    compiled = work.train(model, 2).compile(options=QUICK)
    compiled()
    state, metrics = compiled()
    assert int(state.step) == 2 and int(model.state.step) == 0
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0


def test_made_up_weights_reach_the_output():
    """Layers that begin as zeros would hide differences."""
    config = recipes.load("configs/quickstart_ldm.py:tiny", ["--config.unet.channel_mult=(1,)"])
    model = work.make_model(config)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(model.state.params))
    once = work.forward(model, 1)
    first = once.compile(options=QUICK)()
    assert np.std(first) > 0.1
    params, _, t, cond = once.args
    twice = work.calls(model, 1, 2).compile(options=QUICK)()
    np.testing.assert_allclose(twice, once.fn(params, first, t - 1, cond), rtol=1e-3, atol=1e-4)


def test_bare_calls_are_at_different_steps(monkeypatch):
    """As a sampler's are. Of equal ones the compiler would make the time embedding once, before the loop."""

    def predict(params, z, t, cond):
        return 2 * z + t

    model = SimpleNamespace(task=SimpleNamespace(ldm=SimpleNamespace(predict=predict)))
    forward = work.Program(predict, ({}, np.zeros(1, np.float32), np.full(1, 5, np.int32), None))
    monkeypatch.setattr(work, "forward", lambda model, size: forward)
    assert work.calls(model, 1, 3).compile()() == (5 * 2 + 4) * 2 + 3


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_sampling_is_that_of_a_pipeline(sampler):
    model = work.make_model(recipes.load("configs/quickstart_ldm.py:tiny", ["--config.unet.channel_mult=(1,)"]))
    size, steps, ldm = 2, 3, model.task.ldm
    program = work.sample(model, size, steps, sampler)
    z = program.compile(options=QUICK)()
    method = programs.Method(model.latent, make_timetable(ldm.schedule, steps), sampler)
    batch, indices = model.batch(size), np.arange(size)
    expected = programs.Programs(ldm).sample(model.state.params, model.frozen, batch, 0, indices, method)
    np.testing.assert_allclose(z, expected, atol=1e-4 * np.std(expected))
    assert work.evaluations(model, steps, sampler) == {"ddim": 3, "heun": 5}[sampler]
    # The loop's length is known, so that operations can be counted.
    flops = [roofline.count_flops(work.formula(work.sample, model, size, n, sampler)) for n in (3, 4, 6)]
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0])) and flops[1] > flops[0]


def test_what_a_sampler_costs_itself(monkeypatch):
    """The shortest time of the steps without that of as many calls; with guidance the network sees the batch twice."""
    asked = []

    class Made:
        def compile(self):
            return lambda: None

    def making(*args):
        asked.append(args)
        return Made()

    monkeypatch.setattr(work, "calls", making)
    monkeypatch.setattr(work, "sample", making)
    monkeypatch.setattr(work, "evaluations", lambda model, steps, sampler: 2 * steps - 1)
    times = {"whole": [0.012, 0.010, 0.011], "calls": [0.009, 0.008, 0.0095]}
    monkeypatch.setattr(common, "alternate", lambda runs, repeats: {name: times[name] for name in runs})
    row = sampling.own_cost("model", 2, 5, 3, "heun", guidance=2.0)
    assert row["calls"] == 9 and asked == [("model", 2, 5, "heun", 2.0), ("model", 4, 9)]
    assert row["ms own"] == pytest.approx(2) and row["own share"] == pytest.approx(0.2)


def test_a_scale_for_each_channel():
    options = ["--config.latent_scale_kind=channels", "--config.unet.channel_mult=(1,)"]
    frozen = work.make_model(recipes.load("configs/quickstart_ldm.py:tiny", options)).frozen
    assert frozen["latent_scale"].shape == frozen["latent_shift"].shape == (3,) and (frozen["latent_scale"] == 1).all()


def test_latents_of_vq_are_codes():
    config = recipes.load("configs/celeba_ldm4.py:tiny")
    model = work.make_model(config)
    codes = model.first_stage["params"]["quantize"]["embedding"]["embedding"]
    z = model.latents(2).reshape(-1, codes.shape[1])
    assert all((codes == row).all(1).any() for row in z)


def test_flops_of_products_convolutions_and_loops():
    x, w = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 16))

    def conv(x, w, stride=1):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    once = 2 * 2 * 8 * 8 * 16 * (9 * 4)
    assert roofline.count_flops(jax.make_jaxpr(conv)(x, w)) == once
    # The gradient to the input costs what the forward pass costs, and so does that to the weights.
    for stride in (1, 2):
        both = jax.make_jaxpr(jax.grad(lambda x, w, s=stride: conv(x, w, s).sum(), (0, 1)))(x, w)
        assert roofline.count_flops(both) == pytest.approx(3 * once / stride**2, rel=0.05)
    a = jnp.zeros((5, 7))
    loop = jax.make_jaxpr(lambda a: jax.lax.scan(lambda c, _: (c + a @ a.T @ a, None), a, length=3)[0])(a)
    assert roofline.count_flops(loop) == 3 * (2 * 5 * 7 * 5 + 2 * 5 * 5 * 7)
    branch = jax.make_jaxpr(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a.T @ a, lambda a: a, a))(a)
    assert roofline.count_flops(branch) == 2 * 5 * 7 * 5 * 2


@pytest.mark.parametrize("remat", [False, True])
def test_the_formula_counts_networks_as_written(remat):
    """Neither what a backend makes of them nor what is computed twice to save memory."""
    size, variant = 2, ["--config.unet.channel_mult=(1,)", f"--config.unet.remat={remat}"]
    model = work.make_model(recipes.load("configs/quickstart_ldm.py:tiny", variant))
    plain = work.make_model(recipes.load("configs/quickstart_ldm.py:tiny", variant[:1]))
    with kernels.plain():
        program = work.train(plain, size)
        expected = roofline.count_flops(jax.make_jaxpr(program.fn)(*program.args))
    assert roofline.count_flops(work.formula(work.train, model, size)) == expected > 0


def test_a_ceiling_is_of_calls_waited_for_together():
    seconds = roofline._fastest(lambda a, b: a @ b, (jnp.eye(64), jnp.eye(64)), once=3, seconds=1e-6)
    assert 0 < seconds < 1


def test_utilisation():
    row = roofline.against(CEILINGS, seconds=4.0, flops=1e9, moved=2e9)
    assert row["utilisation"] == 0.25 and row["roofline"] == 0.5 and row["gflop_s"] == 0.25


@pytest.mark.parametrize("free, expected", [(0.0, r"left out: .* GiB, 0 are free"), (1.0, ""), (None, "")])
def test_what_does_not_fit_is_left_out(monkeypatch, free, expected):
    compiled = work.Program(lambda x: (x @ x.T).sum(), (np.ones((512, 512), np.float32),)).compile()
    monkeypatch.setattr(common, "free_gib", lambda: free)
    assert re.fullmatch(expected, compare_torch.no_room(compiled))


def test_free_memory():
    free = common.free_gib()
    assert free is None or 0 < free < 1e6


def test_calls_alternate():
    calls = []
    times = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa" + "aabb"
    assert [len(t) for t in times.values()] == [3, 3]
    alone = []
    assert len(common.alternate({"a": lambda: alone.append("a")}, repeats=3, warmup=1)["a"]) == 3 and len(alone) == 4


def test_table():
    rows = [{"a": 1, "b": 0.12345, "c": None}, {"a": 20, "b": 12345.6}]
    lines = common.table(rows).splitlines()
    assert lines[0].split() == ["|", "a", "|", "b", "|", "c", "|"]
    assert lines[2].split() == ["|", "1", "|", "0.123", "|", "-", "|"] and "12,346" in lines[3]
    assert len({len(line) for line in lines}) == 1
    assert common.table(rows, {"b": "rate", "absent": "x"}).splitlines()[0].split() == ["|", "rate", "|"]


def test_operations_of_a_trace():
    """Self times: what runs inside an operation on the same thread is not counted twice; host events are left out."""

    def event(name, start, duration, pid=1, tid=1):
        return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": duration, "name": name, "args": {"hlo_op": name}}

    events = [event("while.1", 0, 100), event("dot.2", 10, 30), event("dot.2", 50, 30), event("conv.3", 0, 60, tid=2),
              {"ph": "X", "pid": 1, "tid": 3, "ts": 0, "dur": 1e6, "name": "python"}]  # fmt: skip
    rows = profile_step.operations(events, {"dot.2": "UNet/to_q/dot_general"}, calls=2)
    assert [(r["operation"], r["ms"], r["times"]) for r in rows] == [
        ("dot.2", 0.03, 1.0), ("conv.3", 0.03, 0.5), ("while.1", 0.02, 0.5)
    ]  # fmt: skip
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    kinds = {row["kind"]: row["ms"] for row in profile_step.by_kind(rows)}
    assert kinds == {"dot_general": 0.03, "conv": 0.03, "while": 0.02}
    name = {"name": "process_name", "pid": 2, "args": {"name": "/device:GPU:0"}}
    assert [r["operation"] for r in profile_step.operations([*events, name, event("k", 0, 5, pid=2)], {}, 1)] == ["k"]


def test_places_of_a_program():
    compiled = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.zeros((4, 4))).compile()
    assert any(place.endswith("dot_general") for place in profile_step.places(compiled.as_text()).values())


def test_profile_reads_a_real_trace(quick, tmp_path):
    rows = profile_step.main([TINY, "--what=decode", "--repeats=2", f"--out={tmp_path}"])
    assert rows and sum(r["share"] for r in rows) == pytest.approx(1)
    assert any("conv_general_dilated" in row["where"] for row in rows)


def test_best_of_each_side_and_its_picture(tmp_path):
    rows = [
        {"what": "train", "batch": b, "mode": mode, "jax_rate": j, "jax_ms": 1e3 * b / j, "torch_rate": t,
         "torch_ms": 1e3 * b / t}
        for b, mode, j, t in ((1, "eager", 2.0, 1.0), (4, "eager", 3.0, 5.0), (4, "compile", 3.0, 6.0))
    ]  # fmt: skip
    rows += [{"what": "train", "batch": 64, "mode": "eager is out of memory", "jax_rate": 4.0, "jax_ms": 16e3}]
    rows += [{"what": "train", "batch": 99, "mode": "left out: it needs 9 GiB"}]
    (summary,) = compare_torch.best(rows)
    assert summary["JAX / PyTorch"] == pytest.approx(4 / 6) and summary["at batch"] == 64
    assert (summary["mode"], summary["its batch"]) == ("compile", 4)
    lines = plot.against_torch(rows)
    assert [line["JAX / PyTorch throughput"] for line in lines] == [2.0, 0.5, None, None]
    assert [line["its mode"] for line in lines][1:] == ["compile", "eager is out of memory", "left out: it needs 9 GiB"]
    found = {
        "benchmark": "compare_torch-decode", "rows": rows, "best": [summary],
        "settings": {"config": "x.py", "dtype": "f"},
        "environment": {"backend": "cpu", "device": "D", "cores": 2, "versions": {"torch": "2"}, "date": "2026-01-01"},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(found))
    other = found | {"rows": [rows[0] | {"what": "decode"}]}
    (tmp_path / "b.json").write_text(json.dumps(other))
    (one,) = plot.together([other, found])  # one table and one picture of both
    assert [row["what"] for row in one["rows"]] == ["train"] * 5 + ["decode"]
    text = plot.main([f"--results={tmp_path}", f"--image={tmp_path}/p.png"])
    assert "x.py, f, D, 2 cores, torch 2, 2026-01-01" in text and (tmp_path / "p.png").stat().st_size > 1000


def test_restore_reads_with_and_without_manifests(tmp_path, monkeypatch):
    def no_work():
        pass

    no_work.seconds = 0.0
    monkeypatch.setattr(restore, "prepare", no_work)
    rows = restore.main(["--megabytes=17", "--repeats=1", f"--out={tmp_path}"])
    assert [row["from"] for row in rows] == ["disk"] * 6 + ["page cache"] * 6
    assert [row["read"] for row in rows[4:6]] == [row["read"] for row in rows[10:]] == ["alone: sums", "alone: SHA-256"]
    assert all(row["ms"] > 0 for row in rows) and all("cost_percent" in row for row in rows[:4] + rows[6:10])
    assert record(tmp_path)["rows"] == rows


@pytest.mark.slow
def test_objectives_trains_and_reads_each_pair(tmp_path):
    options = ["--variant=tiny", "--minutes=0.001", "--trial=2", "--num=4", "--steps=2", "--networks=dit"]
    rows = objectives.main([*options, f"--out={tmp_path}"])
    assert [(row["network"], row["objective"]) for row in rows] == [("dit", "v"), ("dit", "flow")]
    assert all(row["steps"] > 0 and row["seen"] == 16 * row["steps"] and row["images_s"] > 0 for row in rows)
    assert all(0 <= row["share"] <= 1 and row["guidance"] in objectives.GUIDANCE for row in rows)
    assert record(tmp_path)["rows"] == rows


def test_objectives_names_what_there_is(capsys):
    with pytest.raises(SystemExit, match="2"):
        objectives.main(["--networks=unet,gan"])
    assert "--networks=gan: there are unet, dit" in capsys.readouterr().err


def test_accelerator_compares_a_step_with_the_cpus(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(work.Program, "compile", lambda self, precision=None: COMPILE(self, options=QUICK))
    exact, bfloat16 = accelerator.main([TINY, "--kinds=exact,bfloat16", f"--out={tmp_path}"])
    assert exact["loss apart"] == exact["grad_norm apart"] == 0
    assert 0 < bfloat16["loss apart"] < 0.1
    assert record(tmp_path)["cpu"]["loss"] == pytest.approx(exact["loss"])


def test_accelerator_ends_with_an_error_where_the_step_is_another(monkeypatch, tmp_path):
    found = iter([{"loss": 1.0, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": 2.01}])
    monkeypatch.setattr(accelerator, "metrics_on", lambda *args: (next(found), {}))
    with pytest.raises(SystemExit, match=r"differs from the CPU's by more than 0\.001"):
        accelerator.main([TINY, "--kinds=exact", f"--out={tmp_path}"])


SCRIPTS = [
    accelerator, train_step, sampling, startup, compression, compare_torch, profile_step, memory, evaluation, restore,
    objectives,
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    assert "--repeats" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["benchmarks/compression.py"], ["-m", "benchmarks.compression"]])
def test_scripts_start_as_files_and_as_modules(command):
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, *command, "--help"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0 and "--variants" in result.stdout, result.stderr


def test_evaluation_compares_both_sides(tmp_path):
    evaluation.save_pictures(tmp_path / "a", 2, 16, stream=0)
    evaluation.save_pictures(tmp_path / "b", 2, 16, stream=0)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    ours = {"FID": 10.0, "KID": 2.0, "IS": 1.5, "precision": 0.0, "recall": 0.5}
    row = evaluation.row({"jax": (2.0, ours), "torch": (3.0, ours | {"KID": 2.5})}, 64, 100)
    assert row["torch / jax"] == 1.5 and row["jax_rate"] == 50 and row["difference"] == pytest.approx(0.2)


def shapes_of(recomputes=False):
    """A model of 2^20 numbers in an array that is split, and 10 in one that is not; an image is 1 TFLOP."""
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32), "b": jax.ShapeDtypeStruct((10,), jnp.float32)}
    state = TrainState(step=(), params=params, ema={}, opt_state={}, variables={}, key=())
    return SimpleNamespace(state=state, frozen={}, operations={"half": 1e12}, recomputes=recomputes)


def test_what_a_step_sends_by_formula():
    """Without fsdp all gradients are summed over all chips; with it weights are gathered and sums scattered."""
    size = 4 * 1024 * 1024
    (all_reduce,) = plan.expected(shapes_of(), 8, 1)
    assert (all_reduce.bytes, all_reduce.group) == (size + 40, tuple(range(8)))
    assert plan.expected(shapes_of(), 1, 1) == []
    found = {(c.kind, c.group): (c.bytes, c.times) for c in plan.expected(shapes_of(recomputes=True), 8, 4, parts=3)}
    assert found == {
        ("all-reduce", tuple(range(8))): (40, 3),
        ("all-gather", (0, 1, 2, 3)): (size, 6),
        ("reduce-scatter", (0, 1, 2, 3)): (size, 3),
        ("all-reduce", (0, 4)): (size // 4, 3),
    }


def test_what_a_chip_holds_and_how_many_images_fit():
    """Weights of 4 MiB on chips of 3: they are shared by two, and one image of 1 MiB fits."""
    assert plan.held(shapes_of(), 1) == 4 * (2**20 + 10) and plan.held(shapes_of(), 4) == 2**20 + 40
    chip = SimpleNamespace(name="small", memory=3.1 * 2**20 / 0.94, half=1e12, rate=lambda group: 1e9)
    found = plan.row("r", shapes_of(), chip, 4, 2**-10, each=16, least=1)
    assert [found[k] for k in ("fsdp", "fits", "each", "batch", "tflop")] == [2, 1, 1, 4, 4]
    assert found["computing_ms"] == pytest.approx(1e3 / 0.4)
    assert plan.row("r", shapes_of(), chip, 1, 2**-10, each=16, least=1)["fits"] == 0
    more = plan.row("r", shapes_of(), chip, 8, 2**-10, each=16, least=2)
    assert (more["fsdp"], more["each"]) == (4, 2)


def test_memory_of_an_image_is_what_was_planned():
    gpu, tpu = (plan.image_gib("celeba_ldm4", chip) for chip in ("h100", "v5e"))
    assert 0.1 < gpu < tpu < 0.3 and plan.image_gib("imagenet_ldm4", "v5e") == plan.image_gib("imagenet_ldm4", "h100")
    assert plan.image_gib("quickstart_ldm", "h100") is None
