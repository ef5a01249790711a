"""Kinds of condition: the tokenizer that a run keeps, and mistakes in a section."""

import importlib

import numpy as np
import pytest

from ldm_jax import build, conditions


def tiny(recipe):
    return importlib.import_module(f"configs.{recipe}").get_config("tiny").unlock()


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
