"""Models and pictures are judged, and the command writes what it found. The feature network is a tiny one."""

import json
from dataclasses import replace
from shutil import rmtree
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import ldm_jax
from ldm_jax import recipes, report
from ldm_jax.cli import evaluate
from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation import features, networks
from ldm_jax.request import make
from tests.evaluation.test_features import NETWORK, PARAMS
from tests.test_pipeline import classes, keep

RANDOM = np.random.default_rng(0)


def use_tiny(monkeypatch):
    """--features=tiny, without a file of weights."""

    def load(name, folder="", batch=64):
        if name != "tiny":
            return features_load(name, folder, batch=batch)
        return features.Extractor(NETWORK, PARAMS, batch=batch)

    features_load = features.load
    monkeypatch.setattr(features, "load", load)
    monkeypatch.setitem(networks.NETWORKS, "tiny", NETWORK)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny(monkeypatch)


def class_run(folder):
    """A run of a tiny class model on pictures of 32 px."""
    config = classes()
    config.data.image_size = 32
    return keep(folder, config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return class_run(tmp_path_factory.mktemp("class"))


@pytest.fixture(scope="module")
def pipe(run):
    return ldm_jax.load(run)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    config = recipes.load("quickstart_first_stage:tiny").unlock()
    return keep(tmp_path_factory.mktemp("first_stage"), config)


def test_samples_are_the_same_in_any_parts(pipe):
    samples = report.Samples(pipe, 5, steps=2, batch=2)
    whole = samples.part(0, 5)
    np.testing.assert_array_equal(np.stack(samples.part(0, 2) + samples.part(2, 5)), np.stack(whole))
    asked = pipe.sample(label=list(range(5)), steps=2, batch=2)
    np.testing.assert_array_equal(np.stack(whole), asked.array)
    other = report.Samples(pipe, 5, labels=[3, 3, 3, 3, 3], steps=2, batch=2)
    random = report.Samples(pipe, 500, labels="random").labels
    assert len(set(random.tolist())) > 50 and random.max() < 64
    assert other.identity != samples.identity != report.Samples(pipe, 5, steps=3, batch=2).identity
    with pytest.raises(UsageError, match=r"5 numbers in 0\.\.63"):
        report.Samples(pipe, 5, labels=[64] * 5)


def test_a_class_model_by_command(run, tmp_path, capsys, monkeypatch):
    made, part = [], report.Samples.part
    monkeypatch.setattr(report.Samples, "part", lambda self, *some: made.append(some) or part(self, *some))
    command = [str(run), "--num=6", "--steps=2", "--reference-num=12", "--features=tiny", "--floor", "--keep",
               f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    evaluate.main(command)
    printed = capsys.readouterr().out
    assert "FD-tiny" in printed and "left" in printed
    assert made == [(0, 6)]  # --keep writes the samples that were measured
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    ours, floor = record["reports"]
    assert ours["metrics"]["FD-tiny"] > floor["metrics"]["FD-tiny"] > 0
    assert floor["pictures"]["pictures"] == 6  # as many as samples: numbers of other counts cannot be compared
    assert ours["pictures"]["steps"] == 2 and ours["reference"]["pictures"] == 12
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) == 6
    assert Image.open(tmp_path / "out" / "0_nearest.png").width > 6 * 32
    evaluate.main(command)  # from the cache
    assert " made, " not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["reports"][0]["metrics"] == ours["metrics"]


def test_first_stages_side_by_side(first_stage, tmp_path, capsys):
    evaluate.main([str(first_stage), str(first_stage), "--num=5", "--features=tiny", f"--out={tmp_path / 'out'}",
                   f"--cache={tmp_path / 'cache'}", f"--weights={tmp_path}"])  # fmt: skip
    first, second = json.loads((tmp_path / "out" / "evaluation.json").read_text())["reports"]
    assert first["metrics"] == second["metrics"]
    assert {"rFD-tiny", "PSNR", "SSIM", "latents/pixel"} <= set(first["metrics"])
    pipe = ldm_jax.load(first_stage)
    data = report.data_of(pipe.config, first_stage, train=False, count=5)
    images = np.stack([example["image"] for example in data.examples(0, 5)])
    made = pipe.reconstruct(images).array.astype(float)
    truth = np.stack(data.part(0, 5)).astype(float)
    expected = (10 * np.log10(255**2 / np.square(made - truth).mean((1, 2, 3)))).mean()
    assert first["metrics"]["PSNR"] == pytest.approx(expected)
    assert "rFD-tiny" in capsys.readouterr().out


def inpainting():
    config = classes()
    config.data.image_size = 32
    config.conditioner = recipes.load("quickstart_inpaint:tiny").conditioner
    config.data.masks = recipes.load("quickstart_inpaint:tiny").data.masks
    return config


def test_inpainting_keeps_what_is_known(tmp_path):
    config = inpainting()
    run = keep(tmp_path / "inpaint", config)
    pipe = ldm_jax.load(run)
    data = report.data_of(pipe.config, run, train=False, count=3, examples=True)
    samples = report.Samples(pipe, 3, data, steps=2, batch=3)
    assert samples.has_truth
    shares = []
    for made, truth, example in zip(samples.part(0, 3), samples.truth(0, 3), data.examples(0, 3)):
        hole = example["mask"][..., 0] > 0.5
        shares.append(hole.mean())
        assert 0 < hole.mean() < 1
        np.testing.assert_array_equal(made[~hole], truth[~hole])
        assert np.abs(made[hole].astype(int) - truth[hole]).mean() > 5
    evaluate.main([str(run), "--num=3", "--steps=2", "--batch=3", "--features=tiny", f"--out={tmp_path / 'out'}",
                   f"--cache={tmp_path / 'cache'}", f"--weights={tmp_path}"])  # fmt: skip
    (found,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["reports"]
    assert found["reference"] == found["pictures"]["conditions"]  # the pictures whose holes were filled
    bins = {f"hole {10 * int(10 * share)}-{10 * int(10 * share) + 10} %" for share in shares}
    assert {name for name in found["metrics"] if name.startswith("pictures, ")} == {f"pictures, {b}" for b in bins}
    assert sum(found["metrics"][f"pictures, {name}"] for name in bins) == 3
    means = [found["metrics"][f"PSNR, {b}"] * found["metrics"][f"pictures, {b}"] for b in bins]
    assert sum(means) / 3 == pytest.approx(found["metrics"]["PSNR"]) and found["metrics"]["PSNR_std"] >= 0


def folder_of_data(folder, pictures=6):
    """train/ and validation/ with so many pictures of 32 px each."""
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        for i in range(pictures):
            Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / split / f"{i}.png")
    return folder


def evaluated(tmp_path, *words):
    """The reports of a command; its files are in tmp_path."""
    return evaluate.run(evaluate.parse(
        [*map(str, words), "--features=tiny", "--steps=2", f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}",
         f"--weights={tmp_path}"]
    ))  # fmt: skip


def test_each_run_is_compared_with_its_own_pictures(run, first_stage, tmp_path, capsys):
    config = recipes.load("quickstart_first_stage:tiny").unlock()
    config.data.update(source="folder", path=str(folder_of_data(tmp_path / "data")))
    other = keep(tmp_path / "other", config)
    alone = [evaluated(tmp_path, what, "--num=5")[0] for what in (first_stage, other)]
    capsys.readouterr()
    assert [r.metrics for r in evaluated(tmp_path, first_stage, other, "--num=5")] == [r.metrics for r in alone]
    lines = capsys.readouterr().out.splitlines()
    for what in (first_stage, other):
        (line,) = (line for line in lines if line.startswith(str(what)) and "compared with" in line)
        assert line.endswith(f"compared with validation pictures of {what} (5 pictures)")
    class_model, stage = evaluated(tmp_path, run, first_stage, "--num=5", "--reference-num=9")
    assert class_model.reference == f"training pictures of {run} (9 pictures)"
    assert stage.metrics == alone[0].metrics
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["compared_with"] for row in record["reports"]] == [class_model.reference, stage.reference]


def test_one_reference_of_several_is_read_once(tmp_path, monkeypatch):
    read, pictures_of = [], report.pictures_of
    monkeypatch.setattr(report, "pictures_of", lambda path, *some: read.append(str(path)) or pictures_of(path, *some))
    data = folder_of_data(tmp_path / "data")
    what = [str(data / name) for name in ("train", "validation")]
    reports = evaluated(tmp_path, *what, f"--reference={data}")
    assert read == [str(data), *what] and {r.reference for r in reports} == {f"{data} (12 pictures)"}


def test_the_reference_is_chosen_as_the_conditions(run, tmp_path):
    common = (run, "--num=5", f"--reference={run}", "--reference-num=7")
    for split in ("train", "validation"):
        even, by_hash = (evaluated(tmp_path, *common, f"--reference-split={split}", f"--choose={choose}")[0]
                         for choose in ("even", "hash"))  # fmt: skip
        assert by_hash.settings["reference"]["chosen"] == "hash" and even.metrics != by_hash.metrics


def test_the_floor_is_not_pictures_against_themselves(run, first_stage, tmp_path, capsys):
    floor = evaluated(tmp_path, first_stage, "--num=5", "--floor")[1]
    assert floor.metrics["FD-tiny"] > 1e-3
    assert floor.name == f"validation pictures of {first_stage}, against training pictures of {first_stage}"
    assert floor.reference == f"training pictures of {first_stage} (5 pictures)"
    split = ("--reference-split=validation", "--reference-num=9")
    floor = evaluated(tmp_path, run, "--num=5", "--floor", *split)[1]
    assert floor.reference == f"training pictures of {run} (9 pictures)"
    assert "fewer than" not in capsys.readouterr().out
    evaluated(tmp_path, run, "--num=7", "--floor", "--config.data.scenes=6")[1]
    assert "there are 6 validation pictures" in capsys.readouterr().out


def test_kept_samples_of_several_runs_and_of_fewer(run, tmp_path):
    common = (run, "--reference-num=8")
    evaluated(tmp_path, run, *common, "--num=3", "--keep")
    for folder in ("0_samples", "1_samples"):
        assert len(list((tmp_path / "out" / folder).glob("*.png"))) == 3
    assert not (tmp_path / "out" / "samples").exists()
    evaluated(tmp_path, *common, "--num=4", "--keep")
    mine = tmp_path / "out" / "samples" / "mine.png"
    mine.write_bytes(b"")
    evaluated(tmp_path, "--keep", *common, "--num=3")
    assert [path.name for path in sorted(mine.parent.iterdir())] == [
        "000000.png",
        "000001.png",
        "000002.png",
        "mine.png",
    ]
    evaluated(tmp_path, *common, "--num=3", "--keep=npz")
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert list(file) == ["arr_0"] and file["arr_0"].dtype == np.uint8
        for i, image in enumerate(file["arr_0"]):
            np.testing.assert_array_equal(image, np.asarray(Image.open(mine.parent / f"{i:06d}.png")))


def test_samples_are_made_again_for_other_conditions(tmp_path):
    config = inpainting()
    config.data.update(source="folder", path=str(folder_of_data(tmp_path / "data")))
    run = keep(tmp_path / "inpaint", config)
    pipe = ldm_jax.load(run)

    def identity():
        return report.Samples(pipe, 3, report.data_of(config, run, False, 3, examples=True), steps=2).identity

    before = identity()
    assert identity() == before
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "data" / "validation" / "2.png")
    assert identity() != before


def test_samples_are_made_again_for_another_weaker_model(run, tmp_path):
    """Also where the folder is the same."""
    found, weak = [], ldm_jax.load(run)
    for _ in range(2):
        weak.save(tmp_path / "weak")
        found.append(report.Samples(ldm_jax.load(run), 3, steps=2, autoguide=tmp_path / "weak"))
        weak.params = jax.tree.map(lambda x: x + 0.1, weak.params)
        rmtree(tmp_path / "weak")
    assert found[0].settings == found[1].settings and found[0].identity != found[1].identity


def test_a_damaged_file_of_the_data_ends_the_command(first_stage, tmp_path, capsys):
    data = folder_of_data(tmp_path / "data")
    (data / "validation" / "1.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(first_stage), "--config.data.source=folder", f"--config.data.path={data}", "--num=6",
                       "--features=tiny", f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"])  # fmt: skip
    assert stopped.value.code == 2 and "validation/1.png of the validation pictures" in capsys.readouterr().err


def test_against_both_splits_and_other_data(run, tmp_path, capsys):
    """A row each, which are those of --reference-split; options of the run's data can be others."""
    common = [str(run), "--num=6", "--steps=2", "--reference-num=12", "--features=tiny", "--most-neighbours=5",
              f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}", "--config.data.scenes=40"]  # fmt: skip
    both = evaluate.run(evaluate.parse([*common, "--reference-split=both"]))
    each = [evaluate.run(evaluate.parse([*common, f"--reference-split={s}"]))[0] for s in ("train", "validation")]
    assert [r.metrics for r in both] == [r.metrics for r in each] and both[0].metrics != both[1].metrics
    assert "against validation pictures" in both[1].name and "40" in both[0].settings["reference"]["data"]
    with pytest.raises(SystemExit):
        evaluate.parse([str(run), "--config.unet.model_channels=3"])
    assert "only its data can be others" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "scales"), [(["--guidance=1.5"], 1.5), (["--guidance", "6", "1"], [6.0, 1.0])])
def test_guidance_of_the_command_reaches_the_request(words, scales, monkeypatch):
    args, given = evaluate.parse(["runs/x", *words, "--num=2"]), {}
    pipe = SimpleNamespace(config=ConfigDict(dict(task="ldm", conditioner=dict(kind="none"))))
    monkeypatch.setattr(evaluate, "_is_run", lambda path: True)
    monkeypatch.setattr(evaluate, "_config_of", lambda args, run: pipe.config)
    monkeypatch.setattr(ldm_jax, "load", lambda *_, **__: pipe, raising=False)
    monkeypatch.setattr(report, "Samples", lambda *_, **options: given.update(options))
    evaluate._pictures(args, "runs/x")
    assert args.guidance == given["guidance"] == make(given).guidance == scales


def test_a_file_of_statistics_and_pictures(pipe, tmp_path):
    """Frechet distances are those of its statistics, the other metrics those of its pictures."""
    images = RANDOM.integers(0, 256, (9, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "some.npz", arr_0=images[:7])
    common = [str(tmp_path / "some.npz"), f"--reference={tmp_path / 'both.npz'}", "--features=tiny",
              f"--out={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    (shipped,), (recomputed,) = (evaluate.run(evaluate.parse([*common, *more])) for more in ([], ["--recompute"]))
    assert shipped.metrics["FD-tiny"] != recomputed.metrics["FD-tiny"]
    assert shipped.metrics["precision-tiny"] == recomputed.metrics["precision-tiny"] > 0


def test_statistics_of_another_network_are_refused_before_the_work(pipe, tmp_path, monkeypatch):
    """But a file that also has pictures compares by them."""
    monkeypatch.setitem(networks.NETWORKS, "wide", replace(NETWORK, name="wide", taps={"mean": (7,)}))
    monkeypatch.setattr(features, "load", lambda *_, **__: pytest.fail("it loads weights first"))
    np.savez(tmp_path / "moments.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UsageError, match=r"moments\.npz have 5 numbers, wide gives 7: .*Leave wide out"):
        report.Judge(["tiny", "wide"], None, tmp_path / "moments.npz")


def test_statistics_of_another_network_with_pictures(tmp_path):
    images = RANDOM.integers(0, 256, (9, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(6), sigma=np.eye(6))
    np.savez(tmp_path / "some.npz", arr_0=images[:7])
    where = (tmp_path / "some.npz", f"--reference={tmp_path / 'both.npz'}")
    (found,), (expected,) = evaluated(tmp_path, *where), evaluated(tmp_path, *where, "--recompute")
    assert found.metrics == expected.metrics and found.settings["statistics_of"] == []
    assert found.reference == f"{tmp_path / 'both.npz'} (9 pictures)"


def test_the_record_says_what_numbers_depend_on(run, tmp_path, capsys):
    other = folder_of_data(tmp_path / "data") / "train"
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(other / "small.png")
    (found,) = evaluated(tmp_path, run, "--num=5", f"--reference={other}")
    settings = found.settings
    assert settings["pictures"]["size"] == "32x32" and settings["reference"]["size"] == "2 sizes, 9x8 to 32x32"
    assert len(settings["reference"]["fingerprint"]) == 16 and len(settings["weights"]["tiny"]) > 10
    assert settings["rules"]["neighbours"] == 3 and settings["rules"]["kernel_subset_at_most"] == 1000
    printed = capsys.readouterr().out
    assert f"note: {run} has pictures of 32x32, {other} of 2 sizes, 9x8 to 32x32" in printed
    evaluated(tmp_path, run, "--num=5", "--reference-num=9")
    assert "note:" not in capsys.readouterr().out


def test_lpips_of_all_networks_whose_weights_are_there(tmp_path):
    for net in ("alex", "squeeze"):
        (tmp_path / f"lpips_{net}.safetensors").touch()
    assert report.lpips_nets(tmp_path, 64) == ["alex", "squeeze"]
    assert report.lpips_nets(tmp_path, 20) == ["squeeze"] and report.lpips_nets(tmp_path, 16) == []


def test_more_samples_than_pictures_begin_again(tmp_path):
    run = keep(tmp_path / "inpaint", inpainting())
    pipe = ldm_jax.load(run)
    data = report.data_of(pipe.config, run, False, 4, examples=True)
    judge = report.Judge(["tiny"], data, weights_folder=tmp_path, cache=tmp_path, say=len)
    found = judge.report(report.Samples(pipe, 9, data, steps=1, batch=9)).metrics
    assert sum(number for name, number in found.items() if name.startswith("pictures, ")) == 9


def test_the_use_of_a_codebook(tmp_path):
    config = recipes.load("first_stage_vq_f4:tiny").unlock()
    config.data.update(source="shapes", scenes=32, simple_scenes=False)
    run = keep(tmp_path / "vq", config)
    pipe = ldm_jax.load(run)
    facts = report.Reconstructions(pipe, report.data_of(pipe.config, run, train=False, count=3)).facts
    size, n = config.data.image_size, config.first_stage.n_embed
    assert facts["bits/pixel"] == pytest.approx(np.log2(n) / 4**2)
    assert 0 < facts["codes used"] <= 1 and 1 <= facts["perplexity"] <= n * facts["codes used"] + 1e-6
    assert facts["latents/pixel"] == 3 / 4**2 and size


def test_folders(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(RANDOM.integers(0, 256, (20 + i, 18, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "b" / "notes.txt").write_text("")
    common = ["--features=tiny", f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"]
    evaluate.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--reference={tmp_path / 'a'}", *common])
    same, other = json.loads((tmp_path / "out" / "evaluation.json").read_text())["reports"]
    assert abs(same["metrics"]["FD-tiny"]) < 1e-6 < other["metrics"]["FD-tiny"]
    assert same["pictures"]["files"] == "png" and "1 file is no picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["pictures"], "--reference is missing"),
        (["nowhere"], "nowhere does not exist"),
        (["nowhere", "--reference=pictures"], "nowhere does not exist"),
        (["pictures", "--reference=nowhere"], "--reference=nowhere does not exist"),
        (["pictures", "--reference=pictures", "--features=tinny"], "no feature network 'tinny'"),
        (["pictures", "--reference=pictures", "--num=9"], "9 pictures were asked for"),
        (["empty", "--reference=pictures"], "holds no pictures"),
    ],
)
def test_errors_are_one_paragraph(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "empty"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.fromarray(RANDOM.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*options, *([] if "--features=tinny" in options else ["--features=tiny"]), "--cache=cache"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_weights_that_are_not_there_are_said_how_to_get(tmp_path):
    with pytest.raises(Missing, match=r"(?s)get_weights\.py inception.*--features=efficientnet_lite0"):
        evaluate.run(evaluate.parse(
            [str(tmp_path), f"--reference={_picture(tmp_path)}", f"--weights={tmp_path}"]
        ))  # fmt: skip


def _picture(folder):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    return folder
