"""The kinds of condition, `config.conditioner.kind`: one entry of KINDS for each.

An entry joins the network that reads the condition (conditioners.py), the fields of a batch that it reads, how they
are made from a training example (data/fields.py), and how from what a user of sample.py asks for (data/requests.py).
A further kind is a class in conditioners.py, one in data/fields.py, a function in data/requests.py, an entry here,
and a section in configs/conditioners.py. The kind "hybrid" joins several others, section.parts = {kind: section}.
"""

import shutil
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import conditioners
from ldm_jax.data import fields, requests, tokenizers
from ldm_jax.data.layout import LayoutCoder, LayoutRules
from ldm_jax.data.sources import FilteredSource, Source
from ldm_jax.errors import ConfigError

Shapes = dict[str, tuple[tuple[int, ...], type]]
# The value of conditioner.tokenizer for a vocabulary that is trained on the captions of the training images.
FROM_CAPTIONS = "captions"


@dataclass(frozen=True)
class Frame:
    """Sizes that conditions depend on: (H, W) of the image, (h, w) of its latent, and by what (h, w) must divide."""

    image: tuple[int, int]
    latent: tuple[int, int]
    divisor: int

    @property
    def f(self) -> int:
        return self.image[0] // self.latent[0]


@dataclass(frozen=True)
class Kind:
    """section: config.conditioner; data: config.data; kept: the run's tokenizer folder, or None.

    network(section, dtype) -> conditioner          shapes(section, frame) -> fields of one example
    fields(section, data, frame, train, kept)       requests(section, asked, frame, kept) -> list of Request
    takes: options of sample.py, in groups; of each group one (at least) must be given. Ask `takes(section)`
    source(section, images) -> the images that can be learnt from
    """

    network: Callable[[ConfigDict, jnp.dtype], nn.Module]
    shapes: Callable[[ConfigDict, Frame], Shapes]
    fields: Callable[..., tuple[fields.Field, ...]]
    requests: Callable[[ConfigDict, Namespace, Frame, Path | None], list[requests.Request]]
    takes: tuple[tuple[str, ...], ...] = ()
    source: Callable[[ConfigDict, Source], Source] = lambda section, images: images


def kind_of(config: ConfigDict) -> Kind:
    """Raises ConfigError for an unknown kind."""
    name = config.conditioner.kind
    if name not in KINDS:
        raise ConfigError(f"config.conditioner.kind={name!r} is not one of {', '.join(KINDS)}")
    return KINDS[name]


def parts(c: ConfigDict) -> dict[str, ConfigDict]:
    """kind -> section: of a hybrid its parts, which are dropped as the whole is; else the section alone.

    ConfigError for a part of an unknown kind.
    """
    if c.kind != "hybrid":
        return {c.kind: c}
    unknown = [name for name in c.parts if name not in KINDS or name in ("none", "hybrid")]
    if unknown:
        raise ConfigError(f"config.conditioner.parts has {unknown[0]!r}, no kind that can be joined with others")
    return {name: ConfigDict({**part.to_dict(), "drop_prob": c.drop_prob}) for name, part in sorted(c.parts.items())}


def takes(c: ConfigDict) -> tuple[tuple[str, ...], ...]:
    """Options of sample.py, in groups; of each group one (at least) must be given."""
    return tuple(group for part in parts(c) for group in KINDS[part].takes)


def context_dim(c: ConfigDict) -> int | None:
    """Width of the context, or None. ConfigError where parts have different ones."""
    widths = {name: part.dim for name, part in parts(c).items() if "dim" in part}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"the parts of config.conditioner need one width of the context, not dim={widths}")
    return next(iter(widths.values()), None)


def crop_coder(c: ConfigDict) -> LayoutCoder | None:
    """The coder of a model whose tokens end with the corners of the crop; None for others."""
    layout = parts(c).get("layout")
    return layout_coder(layout) if layout is not None and layout.crop_tokens else None


def _text_network(c: ConfigDict, dtype: jnp.dtype) -> nn.Module:
    return conditioners.TextConditioner(
        c.vocab_size, c.max_length, c.dim, c.depth, null_tokens=_padded(c.null_tokens, c.max_length),
        null_mask=_padded((1,) * len(c.null_tokens), c.max_length), use_mask=c.use_mask,
        embedding_std=c.embedding_std, dtype=dtype,
    )  # fmt: skip


def _layout_network(c: ConfigDict, dtype: jnp.dtype) -> nn.Module:
    null = tuple(layout_coder(c).encode([]).tolist())
    return conditioners.TextConditioner(
        c.vocab_size, c.max_length, c.dim, c.depth, null_tokens=null, embedding_std=c.embedding_std, dtype=dtype
    )


def _class_network(c: ConfigDict, dtype: jnp.dtype) -> nn.Module:
    if c.drop_prob and not c.null_class:
        raise ConfigError(f"config.conditioner.drop_prob={c.drop_prob} needs config.conditioner.null_class=True")
    return conditioners.ClassEmbedder(c.n_classes, c.dim, c.null_class)


def _padded(tokens: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (*tokens, *(0,) * (length - len(tokens)))


def layout_coder(c: ConfigDict) -> LayoutCoder:
    """Objects -> tokens. Raises ConfigError when their number is not the transformer's."""
    coder = LayoutCoder(c.n_classes, c.max_objects, c.vocab_size, c.crop_tokens, tuple(c.flags))
    if coder.length != c.max_length:
        raise ConfigError(
            f"config.conditioner.max_length={c.max_length}, but {c.max_objects} objects make {coder.length} tokens"
        )
    return coder


def text_tokenizer(c: ConfigDict, kept: Path | None) -> tokenizers.TextTokenizer:
    """Captions -> tokens: the run's own tokenizer where it has one. FileNotFoundError says how to get one."""
    name = str(kept) if kept is not None and kept.exists() else c.tokenizer
    tokenizer = tokenizers.TextTokenizer(name, c.max_length)
    null = tuple(int(k) for k in tokenizer("")[0])
    if null != _padded(tuple(c.null_tokens), c.max_length) or tokenizer.vocab_size > c.vocab_size:
        raise ConfigError(
            f"tokenizer {name}: {tokenizer.vocab_size} entries, the empty text is {null[:4]}...; but "
            f"config.conditioner.vocab_size={c.vocab_size} and null_tokens={tuple(c.null_tokens)}"
        )
    return tokenizer


def keep_tokenizer(c: ConfigDict, images: Source, folder: Path) -> None:
    """Puts the tokenizer of a text model into its run directory, once, so that the directory is complete."""
    text = parts(c).get("text")
    if text is None or folder.exists():
        return
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    theirs = Path(c.get("checkpoint") or "") / folder.name
    if not c.get("trainable", True) and theirs.is_dir():
        shutil.copytree(theirs, temporary)  # the encoder that is kept knows these numbers
    elif text.tokenizer == FROM_CAPTIONS:
        some = islice(tokenizers.captions(images), 20_000)
        tokenizers.train_wordpiece(some, text.vocab_size, temporary)
    else:
        text_tokenizer(text, None).save(temporary)
    temporary.rename(folder)


def _prompts(c: ConfigDict, asked: Namespace, frame: Frame, kept: Path | None) -> list[requests.Request]:
    texts = list(asked.prompt or [])
    if asked.prompts:
        texts += [line.strip() for line in Path(asked.prompts).read_text().splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{asked.prompts} has no prompts: one a line")
    return requests.prompts(texts, text_tokenizer(c, kept), c.use_mask)


def _hybrid_network(c: ConfigDict, dtype: jnp.dtype) -> nn.Module:
    if len(c.parts) < 2:
        raise ConfigError(f"config.conditioner.parts has {list(c.parts)}: a hybrid has two parts or more")
    context_dim(c)
    frame = Frame((8, 8), (8, 8), 1)
    read = Counter(name for kind, part in parts(c).items() for name in KINDS[kind].shapes(part, frame))
    shared = [name for name, times in read.items() if times > 1]
    if shared:
        raise ConfigError(f"config.conditioner.parts={list(c.parts)}: two of them read {shared[0]!r} of a batch")
    return conditioners.Hybrid({name: KINDS[name].network(part, dtype) for name, part in parts(c).items()})


def _hybrid_source(c: ConfigDict, images: Source) -> Source:
    for name, part in parts(c).items():
        images = KINDS[name].source(part, images)
    return images


KINDS = {
    "none": Kind(
        network=lambda c, dtype: conditioners.Unconditional(),
        shapes=lambda c, frame: {},
        fields=lambda c, data, frame, train, kept: (),
        requests=lambda c, asked, frame, kept: requests.nothing(),
    ),
    "class": Kind(
        network=_class_network,
        shapes=lambda c, frame: {"label": ((), np.int32)},
        fields=lambda c, data, frame, train, kept: (fields.Label(),),
        requests=lambda c, asked, frame, kept: requests.labels(asked.label, c.n_classes),
        takes=(("label",),),
    ),
    "text": Kind(
        network=_text_network,
        shapes=lambda c, frame: {
            name: ((c.max_length,), np.int32) for name in ("tokens", *("token_mask",) * c.use_mask)
        },
        fields=lambda c, data, frame, train, kept: (fields.Text(text_tokenizer(c, kept), c.use_mask),),
        requests=_prompts,
        takes=(("prompt", "prompts"),),
    ),
    "layout": Kind(
        network=_layout_network,
        shapes=lambda c, frame: {"tokens": ((c.max_length,), np.int32)},
        fields=lambda c, data, frame, train, kept: (fields.Layout(layout_coder(c), c.min_area, shuffle=train),),
        requests=lambda c, asked, frame, kept: requests.layouts(asked.layout, layout_coder(c)),
        takes=(("layout",),),
        source=lambda c, images: FilteredSource(images, LayoutRules(c.min_area, c.min_objects, c.max_objects)),
    ),
    "semantic": Kind(
        network=lambda c, dtype: conditioners.SpatialRescaler(c.n_classes, c.channels, c.n_stages),
        shapes=lambda c, frame: {"segmentation": (frame.image, np.int32)},
        fields=lambda c, data, frame, train, kept: (fields.Segmentation(c.n_classes),),
        requests=lambda c, asked, frame, kept: requests.segmentations(
            asked.segmentation, c.n_classes, frame.f * frame.divisor
        ),
        takes=(("segmentation",),),
    ),
    "superres": Kind(
        network=lambda c, dtype: conditioners.LowRes(),
        shapes=lambda c, frame: {"low_res": ((*frame.latent, 3), np.float32)},
        fields=lambda c, data, frame, train, kept: (fields.LowRes(data.degradation, frame.f),),
        requests=lambda c, asked, frame, kept: requests.low_res(asked.image, frame.f, frame.divisor),
        takes=(("image",),),
    ),
    "inpaint": Kind(
        network=lambda c, dtype: conditioners.Inpainting(),
        shapes=lambda c, frame: {
            "masked_image": ((*frame.image, 3), np.float32), "mask": ((*frame.image, 1), np.float32)
        },
        fields=lambda c, data, frame, train, kept: (fields.Inpainting(data.masks),),
        requests=lambda c, asked, frame, kept: requests.inpaintings(
            asked.image, asked.mask, frame.f * frame.divisor, asked.feather
        ),
        takes=(("image",), ("mask",)),
    ),
    "vectors": Kind(
        network=lambda c, dtype: conditioners.Vectors(),
        shapes=lambda c, frame: {"vectors": ((c.number, c.dim), np.float32)},
        fields=lambda c, data, frame, train, kept: (fields.Vectors(c.number, c.dim),),
        requests=lambda c, asked, frame, kept: requests.vectors(asked.vectors, c.number, c.dim),
        takes=(("vectors",),),
    ),
    "hybrid": Kind(
        network=_hybrid_network,
        shapes=lambda c, frame: {
            field: shape for name, part in parts(c).items() for field, shape in KINDS[name].shapes(part, frame).items()
        },
        fields=lambda c, data, frame, train, kept: tuple(
            made for name, part in parts(c).items() for made in KINDS[name].fields(part, data, frame, train, kept)
        ),
        requests=lambda c, asked, frame, kept: requests.join(
            [KINDS[name].requests(part, asked, frame, kept) for name, part in parts(c).items()]
        ),
        source=_hybrid_source,
    ),
}
