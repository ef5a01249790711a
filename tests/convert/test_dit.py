"""Files of DiT: the names and shapes of the released one, there and back bit by bit, and what is refused."""

import jax
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax import build, config_file, recipes, rundir, tree
from ldm_jax.cli import convert
from ldm_jax.convert import dit, names
from ldm_jax.convert.safetensors_file import read_safetensors, write_safetensors
from ldm_jax.convert.tensors import KEPT, given
from ldm_jax.convert.torch_reader import read_torch
from ldm_jax.convert.torch_writer import write_torch
from ldm_jax.errors import UsageError
from tests.convert.conversion_tools import assert_same, from_run, refused, to_run

TINY, FIRST_STAGE = "imagenet_dit_xl2:tiny", "first_stage_sd_vae:tiny"
SMALLER = ("--config.first_stage.ch_mult=(1,)", "--config.data.image_size=16")  # latents of 16x16x4, too


def released(width: int, depth: int, tokens: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a released file with patches of 2x2, as its code makes them."""

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    found = {"pos_embed": (1, tokens, width), "y_embedder.embedding_table.weight": (1001, width)}
    found |= {"x_embedder.proj.weight": (width, 4, 2, 2), "x_embedder.proj.bias": (width,)}
    found |= linear("t_embedder.mlp.0", 256, width) | linear("t_embedder.mlp.2", width, width)
    for i in range(depth):
        found |= linear(f"blocks.{i}.attn.qkv", width, 3 * width) | linear(f"blocks.{i}.attn.proj", width, width)
        found |= linear(f"blocks.{i}.mlp.fc1", width, 4 * width) | linear(f"blocks.{i}.mlp.fc2", 4 * width, width)
        found |= linear(f"blocks.{i}.adaLN_modulation.1", width, 6 * width)
    found |= linear("final_layer.linear", width, 2 * 2 * 8)
    return found | linear("final_layer.adaLN_modulation.1", width, 2 * width)


def parts_of(config) -> tree.Tree:
    """Shapes of the network and its classes."""
    table = jax.eval_shape(build.conditioner(config).init, jax.random.key(0), {"label": np.zeros(1, np.int32)}, None)
    context = np.zeros((1, 1, config.conditioner.dim), np.float32)
    z = np.zeros((1, *build.latent_shape(config)), np.float32)
    unet = jax.eval_shape(build.denoiser(config).init, jax.random.key(0), z, np.zeros(1, np.int32), context)
    return {"unet": unet["params"], "conditioner": table["params"]}


def keys_of(config) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the file of a recipe's model."""
    leaves = tree.flatten(parts_of(config))
    return {dit.key_of(path): names.torch_shape(path, leaf.shape) for path, leaf in leaves.items()}


def test_keys_shapes_and_number_of_the_released_parameters():
    """At full width; of the 28 blocks, which are alike, one is traced and all are counted."""
    config = recipes.load("imagenet_dit_xl2").unlock()
    assert (config.dit.depth, build.latent_shape(config)) == (28, (32, 32, 4))
    config.dit.depth = 1
    found = keys_of(config) | {"pos_embed": (1, 256, 1152)}
    assert found == released(1152, 1, 256)
    numbers = {key: int(np.prod(shape)) for key, shape in found.items()}
    block = sum(number for key, number in numbers.items() if key.startswith("blocks.0."))
    assert sum(numbers.values()) + 27 * block == 675_129_632


def made_up(width: int, side: int, dtype=np.float32) -> dict[str, np.ndarray]:
    """A file of the tiny recipe, with random numbers."""
    rng = np.random.default_rng(0)
    state = {key: rng.standard_normal(shape).astype(dtype) for key, shape in keys_of(recipes.load(TINY)).items()}
    return state | {"pos_embed": dit.positions(side, side, width)[None].astype(dtype)}


def restored(run):
    config = ConfigDict(config_file.load(run))
    return config, *convert.restore(config, run, None)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """(its variables, options of a model on it)."""
    folder, config = tmp_path_factory.mktemp("first"), recipes.load(FIRST_STAGE, SMALLER)
    shapes = build.first_stage_variables(build.first_stage(config), 16, 3)
    variables = jax.tree.map(lambda s: np.full(s.shape, 0.5, np.float32), shapes)
    rundir.write_exported(folder, config, {}, {"first_stage": variables, "latent_scale": np.float32(1)}, "float32")
    return variables, (*SMALLER, f"--config.first_stage.checkpoint={folder}")


def test_there_and_back_with_the_first_stage_of_another_run(first_stage, tmp_path, capsys):
    variables, options = first_stage
    state = made_up(32, 8)
    write_torch(tmp_path / "m.pt", state)
    with refused(capsys, r"(?s)the first stage, whose latents.*configs/first_stage_sd_vae\.py"):
        to_run(TINY, tmp_path / "m.pt", tmp_path / "run", *SMALLER, "--config.first_stage.checkpoint=")
    to_run(TINY, tmp_path / "m.pt", tmp_path / "run", *options)
    told = capsys.readouterr().out
    assert "one set of weights" in told and "latent scale 0.18215 (the recipe's)" in told
    _, run, frozen = restored(tmp_path / "run")
    assert np.array_equal(run.ema["unet"]["blocks_0"]["attn"]["qkv"]["kernel"], state["blocks.0.attn.qkv.weight"].T)
    table = run.params["conditioner"]["embedding"]["embedding"]
    assert np.array_equal(table, state["y_embedder.embedding_table.weight"])
    jax.tree.map(np.testing.assert_array_equal, frozen["first_stage"], variables)
    from_run(tmp_path / "run", tmp_path / "back.pt")
    assert_same(read_torch(tmp_path / "back.pt"), state)
    with refused(capsys, "transformers have no folder of diffusers"):
        from_run(tmp_path / "run", tmp_path / "folder")


def test_half_precision_and_a_run_of_our_own(first_stage, tmp_path):
    """Types come back as they were; without a list of keys to follow the file is the released one's, of the averages
    or of the raw parameters."""
    state = made_up(32, 8, ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "m.safetensors", given(state), {})
    to_run(TINY, tmp_path / "m.safetensors", tmp_path / "run", *first_stage[1])
    from_run(tmp_path / "run", tmp_path / "back.safetensors")
    assert_same(read_safetensors(tmp_path / "back.safetensors")[0], state)
    (tmp_path / "run" / KEPT).unlink()
    config, run, frozen = restored(tmp_path / "run")
    run = run.replace(ema=jax.tree.map(lambda a: 2 * a, run.params))
    for averaged, factor in ((True, 2), (False, 1)):
        file = tmp_path / f"{averaged}.safetensors"
        convert._write_file(file, config, tmp_path / "run", run, frozen, averaged)
        expected = {key: factor * array.astype(np.float32) for key, array in state.items()}
        assert_same(read_safetensors(file)[0], expected | {"pos_embed": dit.positions(8, 8, 32)[None]})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dit.context=cross_attention", "context='adaln' \\(not 'cross_attention'\\)"),
        ("conditioner.dim=16", "conditioner.dim=32, the network's width \\(not 16\\)"),
        ("diffusion.learn_logvar=True", "no place for config.diffusion.learn_logvar"),
    ],
)
def test_models_with_more_parameters_than_the_layout_has(option, message):
    with pytest.raises(UsageError, match=message):
        dit.check(recipes.load(TINY, [f"--config.{option}"]))


def test_models_of_texts_are_refused():
    config = recipes.load("quickstart_text:tiny", ["--config.network.kind=dit"])
    with pytest.raises(UsageError, match="kind='class' \\(not 'text'\\)"):
        dit.check(config)


def test_other_files_are_refused():
    config = recipes.load(TINY)
    parts = parts_of(config)

    def refuse(message, **changes):
        with pytest.raises(UsageError, match=message):
            dit.split(made_up(32, 8) | changes, parts, dit.table(config, 16))

    refuse("unexpected \\(1\\):\n  blocks.1.attn.qkv.weight", **{"blocks.1.attn.qkv.weight": np.zeros((96, 32))})
    refuse("pos_embed has the shape \\(1, 16, 32\\).*image_size", pos_embed=dit.positions(4, 4, 32)[None])
    refuse("not DiT's sines and cosines", pos_embed=np.ones((1, 64, 32), np.float32))
