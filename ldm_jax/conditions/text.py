"""Text: a BERT-style transformer over the caption's tokens, trained with the UNet (paper, section 3.3)."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ldm_jax import files, manifest, shipped
from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.data import tokenizers
from ldm_jax.data.fields import Field, Placed
from ldm_jax.data.sources import Source
from ldm_jax.errors import ConfigError, ReadFailed, RequestError
from ldm_jax.models.text_encoder import EMBEDDING_STD, TextEncoder

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The value of conditioner.tokenizer for a vocabulary that is trained on the captions of the training images.
FROM_CAPTIONS = "captions"
MADE_FROM = "made_from.json"  # in the tokenizer's folder: the options that it was made with


def section(dim: int, depth: int, drop_prob: float = 0.1, tokenizer: str = "bert-base-uncased") -> dict:
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


class TextConditioner(ConditionNetwork):
    """batch["tokens"] [B,L] int -> [B,L,dim], for captions and layouts. `null_tokens` [L] are those of no condition.

    use_mask: batch["token_mask"] [B,L] keeps padding from being attended to and its rows of the context are 0;
    the released models have no mask. embedding_std: see TextEncoder.
    """

    vocab_size: int
    max_length: int
    dim: int
    depth: int
    null_tokens: tuple[int, ...] = ()
    null_mask: tuple[int, ...] = ()
    use_mask: bool = False
    embedding_std: float = EMBEDDING_STD
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        encoder = TextEncoder(
            self.vocab_size, self.max_length, self.dim, self.depth, self.embedding_std, self.dtype, name="transformer"
        )
        if not self.use_mask:
            return Cond(context=encoder(batch["tokens"]))
        mask = batch["token_mask"]
        return Cond(context=jnp.where(mask[:, :, None] != 0, encoder(batch["tokens"], mask), 0.0))

    def null(self, batch: Batch) -> Batch:
        tokens = batch["tokens"]
        if len(self.null_tokens) != tokens.shape[1]:
            raise ValueError(f"{len(self.null_tokens)} null tokens, but the batch has {tokens.shape[1]}")
        fields = {"tokens": jnp.broadcast_to(jnp.array(self.null_tokens, tokens.dtype), tokens.shape)}
        if self.use_mask:
            mask = batch["token_mask"]
            fields["token_mask"] = jnp.broadcast_to(jnp.array(self.null_mask, mask.dtype), mask.shape)
        return fields


@dataclass(frozen=True)
class Tokens(Field):
    """ "tokens" int32 [L] of the caption, and with `mask` "token_mask" int32 [L], 1 = a token.

    Of several captions one is drawn at every visit (a function of seed and sample). The released models have no mask:
    padding is attended to.
    """

    tokenizer: tokenizers.TextTokenizer
    mask: bool = False
    reads_image = False

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = placed.get("text")
        if not isinstance(text, str):
            text = text[int(rng.integers(len(text)))]
        tokens, mask = self.tokenizer(text)
        return {"tokens": tokens, "token_mask": mask} if self.mask else {"tokens": tokens}


def requests(texts: Sequence[str], tokenizer: tokenizers.TextTokenizer, mask: bool) -> list[Asked]:
    """With `mask` the padding is marked. Texts longer than the model takes are cut."""

    def fields(text: str) -> dict[str, np.ndarray]:
        tokens, token_mask = tokenizer(text)
        return {"tokens": tokens, "token_mask": token_mask} if mask else {"tokens": tokens}

    return [Asked(text, fields(text)) for text in texts]


class Text(Condition):
    kind = "text"
    example = '--prompt="a painting of a squirrel"'
    options = (
        (
            Option("prompt", "text; may be given again for more", repeats=True),
            Option("prompts", "file with one text a line"),
        ),
    )
    has_context = True

    def network(self, dtype):
        c = self.section
        return TextConditioner(
            c.vocab_size, c.max_length, c.dim, c.depth, null_tokens=_padded(c.null_tokens, c.max_length),
            null_mask=_padded((1,) * len(c.null_tokens), c.max_length), use_mask=c.use_mask,
            embedding_std=c.embedding_std, dtype=dtype,
        )  # fmt: skip

    def shapes(self, frame):
        names = ("tokens", "token_mask") if self.section.use_mask else ("tokens",)
        return {name: ((self.section.max_length,), np.int32) for name in names}

    def fields(self, data, frame, train, tokenizer):
        return (Tokens(text_tokenizer(self.section, tokenizer), self.section.use_mask),)

    def requests(self, asked, frame, tokenizer):
        prompt = asked.get("prompt", ())
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise RequestError(f"prompt={wrong[0]!r} is not a text")
        if "prompts" in asked:
            texts += _lines(files.local(asked["prompts"], "prompts"))
        if not texts:
            raise RequestError("prompt: an empty list asks for nothing")
        return requests(texts, text_tokenizer(self.section, tokenizer), self.section.use_mask)


def _lines(path: Path) -> list[str]:
    """The texts of a file, one a line."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts={path} is not a text file that can be read: {error}") from None
    if not lines:
        raise RequestError(f"prompts={path} has no prompts: one a line")
    return lines


def _padded(tokens: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (*tokens, *(0,) * (length - len(tokens)))


def text_tokenizer(c: "ConfigDict", kept: Path | None) -> tokenizers.TextTokenizer:
    """Captions -> tokens: the run's own tokenizer where it has one. FileNotFoundError says how to get one. Damaged if
    the run's own is not what was written."""
    name = c.tokenizer
    if kept is not None and files.is_folder(kept):
        name = str(kept)
        with files.fetched(kept) as folder:
            _check_whole(folder)
            tokenizer = tokenizers.TextTokenizer(folder, c.max_length)
    else:
        tokenizer = tokenizers.TextTokenizer(name, c.max_length)
    null = tuple(int(k) for k in tokenizer("")[0])
    if null != _padded(tuple(c.null_tokens), c.max_length) or tokenizer.vocab_size > c.vocab_size:
        raise ConfigError(
            f"tokenizer {name}: {tokenizer.vocab_size} entries, the empty text is {null[:4]}...; but "
            f"config.conditioner.vocab_size={c.vocab_size} and null_tokens={tuple(c.null_tokens)}"
        )
    return tokenizer


def _check_whole(folder: Path) -> None:
    """Damaged if a manifest says that the tokenizer in the folder is not what was written."""
    if wrong := manifest.problems(folder):
        raise manifest.damaged(folder, wrong)


def keep_tokenizer(
    conditioner: "ConfigDict", text: "ConfigDict | None", images: Source, folder: Path, init_from: str = ""
) -> None:  # fmt: skip
    """Puts the tokenizer of a text model into its run directory, once, so that the directory is complete.

    text: the text's section of config.conditioner, None where there is none. init_from: a run to begin from, whose
    tokenizer is taken in place of one that would be made from the captions. A tokenizer that an earlier start
    made with other options is replaced, unless the run has checkpoints. Call it on one host.
    """
    if text is None:
        return
    theirs = shipped.find(conditioner.get("checkpoint") or "") / folder.name
    from_run = not conditioner.get("trainable", True) and files.is_folder(theirs)
    to_begin = shipped.find(init_from or "") / folder.name
    if not from_run and init_from and text.tokenizer == FROM_CAPTIONS and files.is_folder(to_begin):
        theirs, from_run = to_begin, True
    captions = text.tokenizer == FROM_CAPTIONS and not from_run
    made_from = dict(
        tokenizer=str(theirs) if from_run else text.tokenizer, vocab_size=text.vocab_size,
        images=images.describe() if captions else "",
    )  # fmt: skip
    if files.exists(folder) and _is_kept(folder, made_from):
        return
    with files.reaching(folder, write=True):
        folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent if files.is_local(folder) else None
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=beside))
    try:
        if from_run:  # the encoder was trained with these token numbers
            _check_whole(theirs)
            files.copy_folder(theirs, temporary)
        elif captions:
            some = islice(tokenizers.captions(images), 20_000)
            tokenizers.train_wordpiece(some, text.vocab_size, temporary)
        else:
            text_tokenizer(text, None).save(temporary)
        (temporary / MADE_FROM).write_text(json.dumps(made_from, indent=1) + "\n")
        manifest.write(temporary)
        temporary.chmod(0o755)
        _replace(folder, temporary, made_from)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(folder: Path, made: Path, made_from: dict) -> None:
    """`made` becomes `folder`, unless another start has put the same one there in the meantime."""
    if files.exists(folder) and not _is_kept(folder, made_from):
        files.remove_folder(folder, missing_ok=True)
    if not files.is_local(folder):
        files.copy_folder(made, folder)
        return
    try:
        made.rename(folder)
    except OSError:
        if not _is_kept(folder, made_from):
            raise


def _is_kept(folder: Path, made_from: dict) -> bool:
    """Whether the tokenizer in `folder` stays: the run has checkpoints, or it was made with the same options.
    ReadFailed where a bucket does not tell."""
    checkpoints = folder.parent / "checkpoints"
    if files.is_folder(checkpoints):
        with files.reaching(checkpoints):
            if any(path.name.isdigit() for path in checkpoints.iterdir()):
                return True
    try:
        with files.opened(folder / MADE_FROM) as file:
            return json.loads(file.read()) == made_from
    except ReadFailed:
        raise
    except (OSError, ValueError):
        return False
