"""Sections for the `conditioner` of `sections.ldm`: what the UNet is told.

drop_prob = share of training samples that are told nothing; guidance needs it. The original never says how often it
dropped; 0.1 is the custom since.
"""

from ldm_jax.errors import ConfigError

EMBEDDING_STD = 0.02  # of new token and position embeddings, as the original's; small models learn sooner from 1
WITH_CONTEXT = {"class", "text", "layout", "vectors"}  # kinds that give the UNet a context


def class_label(n_classes: int, dim: int, drop_prob: float = 0.0) -> dict:
    """A learned vector per class; with dropping, one more for "any class"."""
    return dict(kind="class", n_classes=n_classes, dim=dim, null_class=drop_prob > 0, drop_prob=drop_prob)


def text(dim: int, depth: int, drop_prob: float = 0.1, tokenizer: str = "bert-base-uncased") -> dict:
    """The BERT-style transformer over captions, trained from scratch."""
    return dict(
        kind="text",
        tokenizer=tokenizer,  # a name that transformers knows, or a folder
        vocab_size=30522,
        max_length=77,
        dim=dim,
        depth=depth,
        embedding_std=EMBEDDING_STD,
        use_mask=False,  # True: padding is not attended to; the released models attend to it
        null_tokens=(101, 102),  # the tokens of the empty caption; padded with 0
        drop_prob=drop_prob,
    )


def layout(n_classes: int, dim: int, depth: int, drop_prob: float = 0.0) -> dict:
    """The transformer over 30 objects x (class, top left, bottom right) and the crop's corners."""
    return dict(
        kind="layout",
        n_classes=n_classes,
        flags=("group", "occluded", "depiction", "inside"),  # what a class token also tells
        crop_tokens=True,
        max_objects=30,
        min_objects=2,  # images with fewer are left out
        min_area=1e-4,  # of the image; smaller objects are left out
        vocab_size=8192,
        max_length=92,  # 3 max_objects + 2 for the crop
        dim=dim,
        depth=depth,
        embedding_std=EMBEDDING_STD,
        drop_prob=drop_prob,
    )


def segmentation(n_classes: int, channels: int = 3, drop_prob: float = 0.0) -> dict:
    """One-hot maps, halved to the latent's size, to `channels` learned channels."""
    return dict(kind="semantic", n_classes=n_classes, channels=channels, n_stages=2, drop_prob=drop_prob)


def low_res() -> dict:
    """The small picture, as large as the latent."""
    return dict(kind="superres", drop_prob=0.0)  # how it is made: data.degradation


def masked() -> dict:
    """The latent of the picture without its hole, and the hole's mask."""
    return dict(kind="inpaint", drop_prob=0.0)  # which holes: data.masks


def vectors(number: int, dim: int, drop_prob: float = 0.1) -> dict:
    """Vectors that come with the data."""
    return dict(kind="vectors", number=number, dim=dim, drop_prob=drop_prob)


def hybrid(*parts: dict, drop_prob: float = 0.0) -> dict:
    """Several of the sections above at once, for example a class and a map. All are dropped together, so that a class
    needs its null where drop_prob > 0: class_label(..., drop_prob) makes it."""
    sections = {part["kind"]: {k: v for k, v in part.items() if k != "drop_prob"} for part in parts}
    if len(sections) != len(parts):
        raise ConfigError(f"a hybrid of {', '.join(part['kind'] for part in parts)}: each kind once")
    return dict(kind="hybrid", parts=sections, drop_prob=drop_prob)
