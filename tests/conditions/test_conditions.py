"""Kinds of condition: the tokenizer that a run keeps, and mistakes in a section."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ldm_jax import build, conditions, recipes, request
from ldm_jax.cli import sample
from ldm_jax.conditions import class_label, hybrid, layout, semantic, text
from ldm_jax.data.fields import Placed
from ldm_jax.errors import ConfigError, Damaged, DataError
from ldm_jax.training import setup
from tests.data_tools import words


def tiny(recipe):
    return recipes.load(f"{recipe}:tiny").unlock()


def test_a_vocabulary_is_trained_on_the_captions_and_kept(tmp_path):
    config = tiny("text2img_ldm4")
    config.conditioner.update(tokenizer="captions", null_tokens=(2, 3))
    images, folder = setup.source(config, train=True), tmp_path / "tokenizer"
    text.keep_tokenizer(config.conditioner, config.conditioner, images, folder)
    example = setup.transform(config, train=True, tokenizer=folder)(images[0], np.random.default_rng(0))
    tokenizer = text.text_tokenizer(config.conditioner, folder)
    assert words(tokenizer, example["tokens"]).replace(" ", "") == images[0]["text"].replace(" ", "")
    before = (folder / "vocab.txt").read_text()
    # A second start of the run changes nothing.
    text.keep_tokenizer(config.conditioner, config.conditioner, images, folder)
    assert (folder / "vocab.txt").read_text() == before
    config.conditioner.null_tokens = (101, 102)
    with pytest.raises(ValueError, match=r"the empty text is \(2, 3, .*null_tokens=\(101, 102\)"):
        text.text_tokenizer(config.conditioner, folder)
    (folder / "vocab.txt").write_text(before.replace("e", "d", 1))  # one bit
    with pytest.raises(Damaged, match=r"tokenizer is damaged: vocab\.txt: its contents"):
        text.text_tokenizer(config.conditioner, folder)


def test_a_tokenizer_of_a_failed_start_is_made_anew(tmp_path):
    """Of other options, unless the run has checkpoints: then its tokens mean what they did."""
    config = tiny("text2img_ldm4")
    config.conditioner.update(tokenizer="captions", null_tokens=(2, 3), vocab_size=300)
    images, folder = setup.source(config, train=True), tmp_path / "tokenizer"
    text.keep_tokenizer(config.conditioner, config.conditioner, images, folder)
    before = (folder / "vocab.txt").read_text()
    config.conditioner.vocab_size = 200
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    text.keep_tokenizer(config.conditioner, config.conditioner, images, folder)
    assert (folder / "vocab.txt").read_text() == before
    (tmp_path / "checkpoints" / "4").rmdir()
    text.keep_tokenizer(config.conditioner, config.conditioner, images, folder)
    assert len((folder / "vocab.txt").read_text().splitlines()) <= 200
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_two_starts_at_once_do_not_take_each_others_tokenizer(tmp_path):
    """Each writes into a folder of its own; one of them stays, whole."""
    config = tiny("text2img_ldm4")
    config.conditioner.update(tokenizer="captions", null_tokens=(2, 3), vocab_size=300)
    images, folder = setup.source(config, train=True), tmp_path / "tokenizer"
    with ThreadPoolExecutor(4) as pool:
        made = [
            pool.submit(text.keep_tokenizer, config.conditioner, config.conditioner, images, folder) for _ in range(4)
        ]
    assert [one.exception() for one in made] == [None] * 4
    text.text_tokenizer(config.conditioner, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_more_classes_than_the_model_has_are_refused():
    config = tiny("quickstart_class")
    config.conditioner.n_classes = 10
    with pytest.raises(ConfigError, match=r"64 classes, more than config\.conditioner\.n_classes=10"):
        setup.source(config, train=True)
    label = class_label.Label(10)
    assert label(Placed({"label": 9}, None, None), None)["label"] == 9
    with pytest.raises(DataError, match=r"class 10; the model has the classes 0\.\.9"):
        label(Placed({"label": 10}, None, None), None)


def test_a_kept_conditioner_brings_its_tokenizer(tmp_path):
    """Its numbers mean what they did, whatever the captions are now."""
    config = tiny("text2img_ldm4")
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "vocab.txt").write_text("theirs")
    config.conditioner.update(trainable=False, checkpoint=str(tmp_path / "run"))
    text.keep_tokenizer(config.conditioner, config.conditioner, None, tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer" / "vocab.txt").read_text() == "theirs"


DEPTH = '''
"""Depth: a grey picture, as large as the latent, joined to it."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ldm_jax import images
from ldm_jax.conditions.base import Asked, Cond, Condition, ConditionNetwork, Option
from ldm_jax.data.fields import Field


def section(drop_prob=0.1):
    return dict(kind="depth", drop_prob=drop_prob)


class DepthNetwork(ConditionNetwork):
    def __call__(self, batch, encode):
        return Cond(concat=batch["depth"])

    def null(self, batch):
        return {"depth": jnp.zeros_like(batch["depth"])}


@dataclass(frozen=True)
class DepthField(Field):
    f: int

    def __call__(self, placed, rng):
        return {"depth": placed.image[:: self.f, :: self.f, :1].astype(np.float32) / 255}


class Depth(Condition):
    kind = "depth"
    options = ((Option("depth", "a grey picture of distances"),),)

    def network(self, dtype):
        return DepthNetwork()

    def shapes(self, frame):
        return {"depth": ((*frame.latent, 1), np.float32)}

    def fields(self, data, frame, train, tokenizer):
        return (DepthField(frame.f),)

    def requests(self, asked, frame, tokenizer):
        found = images.pictures("depth", asked["depth"])
        return [Asked(p.name, {"depth": p.pixels("depth", 1)[:: frame.f, :: frame.f] / 255}) for p in found]
'''


@pytest.fixture
def depth(tmp_path, monkeypatch):
    """A kind of condition that is one file more in the package's folder."""
    (tmp_path / "depth.py").write_text(DEPTH)
    monkeypatch.setattr(conditions, "__path__", [*conditions.__path__, str(tmp_path)])
    module = importlib.import_module("ldm_jax.conditions.depth")
    yield module
    del conditions.KINDS["depth"], sys.modules["ldm_jax.conditions.depth"]


def test_a_new_kind_is_one_file(depth):
    """It is trained, alone or joined with another kind, asked for in Python, and an option of sample.py."""
    for sections in (depth.section(), hybrid.section(class_label.section(64, 32, 0.1), depth.section(), drop_prob=0.1)):
        config = tiny("quickstart_ldm")
        config.conditioner = {"trainable": True, "checkpoint": "", **sections}
        config.unet.update(use_spatial_transformer=sections["kind"] == "hybrid")
        config.unet.update(channel_mult=(1,), attention_downsamples=())
        example = setup.transform(config, train=True)(setup.source(config, train=True)[0], np.random.default_rng(0))
        shapes = build.batch_shapes(config, 8)
        assert {name: shapes[name].shape[1:] for name in shapes} == {name: example[name].shape for name in shapes}
        state, frozen = setup.abstract_run(config)
        jax.eval_shape(setup.task(config).step, state, frozen, shapes)
        assert state.params["unet"]["input_blocks_0_0"]["kernel"].shape[2] == 3 + 1
    args = sample.parse(["--workdir=x", "--depth=a.png"])
    assert sample.request_of(args).asked() == {"depth": "a.png"}
    config.conditioner = {"trainable": True, "checkpoint": "", **depth.section()}
    wanted = request.make({"depth": np.full((32, 32), 255, np.uint8), "num": 2})
    made = request.resolve(wanted, config, "run", None)
    assert len(made) == 2 and (made[0].fields["depth"] == 1).all()


def test_hybrids_that_do_not_fit():
    label, where, words = class_label.section(64, 32), semantic.section(9), text.section(32, 1)
    config = tiny("quickstart_hybrid")

    def refused(message, *parts, **options):
        config.conditioner.parts = {part["kind"]: part for part in parts}
        config.conditioner.update(options)
        with pytest.raises(ValueError, match=message):
            build.conditioner(config)

    refused("a hybrid has two parts", label)
    refused("null_class=True", label, where, drop_prob=0.1)
    refused("null_class=True", label, where, drop_prob=0.0, drop_each=0.1)
    refused(r"drop_each=0\.3 for each of 2 parts.*1 at most in sum", words, where, drop_prob=0.5, drop_each=0.3)
    config.conditioner.drop_each = 0.0
    refused("one width of the context, not dim=", label | dict(dim=64), words, drop_prob=0.0)
    boxes = layout.section(64, 32, 1)
    refused("two of them read 'tokens' of a batch", words, boxes)
    refused("'smell', no kind", label, dict(kind="smell"))
    with pytest.raises(ValueError, match="each kind once"):
        hybrid.section(label, label)


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
    with pytest.raises(ValueError, match="'smell' is not one of class, hybrid"):
        build.conditioner(config)
