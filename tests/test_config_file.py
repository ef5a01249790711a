"""config.json of a run, read back: of older versions, changed on purpose, damaged."""

import json

import pytest

from ldm_jax import config_file
from ldm_jax.errors import ConfigError, Damaged, Missing


def test_runs_of_older_versions_get_the_options_they_lack(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "first_stage", "optim": {"final_fraction": 0.5}}))
    config = config_file.load(tmp_path)
    optim = {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.5}
    assert config == {"task": "first_stage", "matmul_precision": "default", "optim": optim}
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(json.dumps({"version": 2, "task": "ldm", "every": {"log": 1}}))
    assert config_file.load(tmp_path / "new")["keep_every"] == 0
    now = config | {"optim": optim | {"final_fraction": 1.0}}
    assert config_file.changes(tmp_path, now) == {"optim.final_fraction": (0.5, 1.0)}


def test_a_folder_without_a_configuration_is_no_run(tmp_path):
    assert config_file.changes(tmp_path, {"task": "ldm"}) == {}
    with pytest.raises(Missing, match="not a run directory"):
        config_file.load(tmp_path)


def test_configurations_of_older_versions_are_migrated(tmp_path):
    """Version 1 had no version; what it did not have gets the value that means what it did."""
    old = {"task": "ldm", "optim": {"b1": 0.9}, "conditioner": {"kind": "x"}, "first_stage": {"ch": 8}}
    old |= {"latent_scale": 1.0, "unet": {"model_channels": 64}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = config_file.load(tmp_path)
    assert config["optim"] == {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.0, "b1": 0.9}
    assert config["conditioner"]["trainable"] and config["matmul_precision"] == "default" and "version" not in config
    assert config["first_stage"] == {"ch": 8, "use_quant_conv": True, "use_post_quant_conv": True, "norm_groups": 32}
    assert config["unet"] == {"model_channels": 64, "norm_groups": 32}
    assert config["latent_scale_kind"] == "scalar" and config["latent_channel_scale"] == []
    config_file.save(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["version"] == config_file.VERSION
    assert config_file.load(tmp_path) == config and not config_file.changes(tmp_path, config)


def test_every_bit_of_a_configuration_counts(tmp_path):
    """Also where the file still is the JSON of a run. One that was changed on purpose is read without its checksum."""
    config_file.save(tmp_path, {"task": "ldm", "seed": 1, "name": "größe", "optim": {"b1": 0.9}})
    path, options = tmp_path / "config.json", config_file.load(tmp_path)
    good = path.read_bytes()
    assert options["seed"] == 1 and "checksum" not in options
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(Damaged, match=r"config\.json is damaged: .* remove its line \"checksum\""):
            config_file.load(tmp_path)
    changed = [line for line in good.splitlines() if b'"checksum"' not in line]
    path.write_bytes(b"\n".join(changed).replace(b'"seed": 1', b'"seed": 3'))
    assert config_file.load(tmp_path) == options | {"seed": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the configuration"),
        ("[1]", "is not the configuration"),
        ('{"task": "ldm", "version": 99}', "newer"),
    ],
)
def test_configurations_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_file.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"every": 3}, "every is '3', but it must be a section"),
     ({"optim": {"decay_steps": "x"}}, "optim.decay_steps is 'x'.*an integer"),
     ({"task": ["ldm"]}, "task is .* a text"),
     ({"conditioner": {"kind": "hybrid", "parts": [1]}}, "conditioner.parts is"),
     ({"conditioner": {"kind": "hybrid", "parts": {"a": 1}}}, "conditioner.parts.a is '1'.*a section"),
     ({"diffusion": {"t_mean": True}}, "diffusion.t_mean is 'True'.*a number"), ({"unet": None}, "unet is 'None'"),
     ({"every": {}, "metrics": {"raw": 1}}, "metrics.raw is '1'.*true or false"),
     ({"latent_scale": "1"}, "latent_scale is '1'"),
     ({"ema": {"sigma_rel": 0.1}}, "ema.sigma_rel is '0.1'.*a list")],
)  # fmt: skip
def test_options_of_a_wrong_type_are_named(options, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "ldm"} | options))
    with pytest.raises(ConfigError, match=rf"config.json: {told}"):
        config_file.load(tmp_path)
