"""Kinds of condition: the tokenizer that a run keeps, and mistakes in a section."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, conditioners, conditions, recipes, runs
from ldm_jax.recipes import conditioners as told


def tiny(recipe):
    return recipes.load(f"{recipe}:tiny").unlock()


def test_a_vocabulary_is_trained_on_the_captions_and_kept(tmp_path):
    config = tiny("text2img_ldm4")
    config.conditioner.update(tokenizer="captions", null_tokens=(2, 3))
    images, folder = build.source(config, train=True), tmp_path / "tokenizer"
    conditions.keep_tokenizer(config.conditioner, images, folder)
    example = build.transform(config, train=True, kept_tokenizer=folder)(images[0], np.random.default_rng(0))
    tokenizer = conditions.text_tokenizer(config.conditioner, folder)
    assert tokenizer.decode(example["tokens"]).replace(" ", "") == images[0]["text"].replace(" ", "")
    before = (folder / "vocab.txt").read_text()
    conditions.keep_tokenizer(config.conditioner, images, folder)  # a second start of the run changes nothing
    assert (folder / "vocab.txt").read_text() == before
    config.conditioner.null_tokens = (101, 102)
    with pytest.raises(ValueError, match=r"the empty text is \(2, 3, .*null_tokens=\(101, 102\)"):
        conditions.text_tokenizer(config.conditioner, folder)


def test_a_kept_conditioner_brings_its_tokenizer(tmp_path):
    """Its numbers mean what they did, whatever the captions are now."""
    config = tiny("text2img_ldm4")
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "vocab.txt").write_text("theirs")
    config.conditioner.update(trainable=False, checkpoint=str(tmp_path / "run"))
    conditions.keep_tokenizer(config.conditioner, None, tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer" / "vocab.txt").read_text() == "theirs"


class Depth(nn.Module):
    @nn.compact
    def __call__(self, batch, encode):
        return conditioners.Cond(concat=batch["depth"])

    def null(self, batch):
        return {"depth": jnp.zeros_like(batch["depth"])}


def depth_field(placed, rng):
    return {"depth": placed.image[::2, ::2, :1].astype(np.float32) / 255}


def test_a_further_kind_takes_what_the_readme_says(monkeypatch):
    """An entry of KINDS with its network and field is enough to train, alone or joined with another kind."""
    kind = conditions.Kind(
        network=lambda c, dtype: Depth(),
        shapes=lambda c, frame: {"depth": ((*frame.latent, 1), np.float32)},
        fields=lambda c, data, frame, train, kept: (depth_field,),
        requests=lambda c, asked, frame, kept: [],
        takes=(("depth",),),
    )
    monkeypatch.setitem(conditions.KINDS, "depth", kind)
    section = dict(kind="depth", drop_prob=0.1)
    for sections in (section, told.hybrid(told.class_label(64, 32, 0.1), section, drop_prob=0.1)):
        config = tiny("quickstart_ldm")
        config.conditioner = {"trainable": True, "checkpoint": "", **sections}
        config.unet.update(use_spatial_transformer=sections["kind"] == "hybrid")
        config.unet.update(channel_mult=(1,), attention_downsamples=())
        example = build.transform(config, train=True)(build.source(config, train=True)[0], np.random.default_rng(0))
        shapes = build.batch_shapes(config, 8)
        assert {name: shapes[name].shape[1:] for name in shapes} == {name: example[name].shape for name in shapes}
        state, frozen = runs.abstract_run(config)
        jax.eval_shape(build.task(config).step, state, frozen, shapes)
        assert state.params["unet"]["input_blocks_0_0"]["kernel"].shape[2] == 3 + 1


def test_hybrids_that_do_not_fit():
    label, where, words = told.class_label(64, 32), told.segmentation(9), told.text(32, 1)
    config = tiny("quickstart_hybrid")

    def refused(message, *parts, **options):
        config.conditioner.parts = {part["kind"]: part for part in parts}
        config.conditioner.update(options)
        with pytest.raises(ValueError, match=message):
            build.conditioner(config)

    refused("a hybrid has two parts", label)
    refused("null_class=True", label, where, drop_prob=0.1)
    refused("one width of the context, not dim=", label | dict(dim=64), words, drop_prob=0.0)
    boxes = told.layout(64, 32, 1)
    refused("two of them read 'tokens' of a batch", words, boxes)
    refused("'smell', no kind", label, dict(kind="smell"))
    with pytest.raises(ValueError, match="each kind once"):
        told.hybrid(label, label)


def test_sections_that_do_not_fit():
    config = tiny("openimages_layout_ldm4")
    config.conditioner.max_objects = 29
    with pytest.raises(ValueError, match="29 objects make 89 tokens"):
        build.conditioner(config)
    config = tiny("imagenet_ldm8")
    config.conditioner.drop_prob = 0.1
    with pytest.raises(ValueError, match="null_class=True"):
        build.conditioner(config)
    config.conditioner.kind = "smell"
    with pytest.raises(ValueError, match="'smell' is not one of none, class"):
        build.conditioner(config)
