"""Turns captions into token ids, as BERT does: [CLS] pieces of words [SEP] [PAD] [PAD] ...

The released text models use bert-base-uncased, 77 tokens and no mask. `train_wordpiece` makes a vocabulary from the
captions themselves: for captions with few words, or if that one cannot be downloaded. `transformers` is imported only
when it is needed, because the import takes seconds.
"""

import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files import at, fetched, is_folder, is_local, local, reaching, write

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VOCABULARY = "vocab.txt"
_CONFIG = "tokenizer_config.json"


def _load(name: str):
    """A tokenizer of `transformers`. FileNotFoundError if there is none, DataError if the files of a folder are
    damaged; both say what to do."""
    with _on_this_machine(name) as place:
        return _loaded(place, name)


def _loaded(place: str, name: str):
    """`_load` of `name`, which is at `place`: a folder, or the same name."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # its tokenizers do without PyTorch
    from transformers import AutoTokenizer, BertTokenizerFast

    try:
        # A folder that has only vocab.txt is enough. A folder that exists is not searched for on the Hub.
        if (Path(place) / _VOCABULARY).is_file() and not (Path(place) / _CONFIG).is_file():
            return BertTokenizerFast.from_pretrained(place)
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # `tokenizers` raises plain ones
        if any((Path(place) / file).is_file() for file in (_VOCABULARY, "tokenizer.json")):
            raise DataError(
                f"the tokenizer in {name} cannot be read ({type(error).__name__}: {str(error)[:200]}): its files are "
                "damaged. Bring the folder back from a copy, or give another one"
            ) from error
        raise FileNotFoundError(
            f"no tokenizer {name!r}: it is neither a folder with tokenizer files nor could it be fetched from the "
            f"Hugging Face Hub ({str(error).splitlines()[0] if str(error) else type(error).__name__}).\n"
            f"Give a local folder, for bert-base-uncased one with its {_VOCABULARY} is enough, or train one on your "
            "captions:\n"
            "  from ldm_jax.data import tokenizers\n"
            '  tokenizers.train_wordpiece(tokenizers.captions(source), size=2000, folder="my-tokenizer")'
        ) from error


@contextmanager
def _on_this_machine(name: str) -> Iterator[str]:
    """The name, or a copy of the folder in a bucket that it is. FileNotFoundError where there is none."""
    if "://" not in name:
        yield name
        return
    folder = at(name, "tokenizer")
    if not (is_local(folder) or is_folder(folder)):
        raise FileNotFoundError(f"no tokenizer {name!r}: there is no such folder in the bucket")
    with fetched(folder) as here:
        yield str(here)


class TextTokenizer:
    """Callable: text -> (ids int32 [L], mask int32 [L]), L = max_length. The mask is 1 for tokens, 0 for padding.

    name: a folder, which may be in a bucket, or a name on the Hugging Face Hub. Long texts are cut; their last token is
    still [SEP]. FileNotFoundError if the name cannot be loaded, DataError if its files are damaged, ConfigError if the
    tokenizer has no padding token.
    """

    def __init__(self, name: str | Path = "bert-base-uncased", max_length: int = 77):
        self.name, self.max_length = str(name), max_length
        self._tokenizer = _load(self.name)
        if self._tokenizer.pad_token_id is None:
            raise ConfigError(f"the tokenizer {self.name} has no padding token, so its texts cannot be batched")

    @property
    def vocab_size(self) -> int:
        """The largest id, plus one."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        coded = self._tokenizer(text, truncation=True, max_length=self.max_length, padding="max_length")
        return np.array(coded["input_ids"], np.int32), np.array(coded["attention_mask"], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into a folder, whose name can then be used in place of `name`."""
        folder = str(local(folder, "folder"))
        with _on_this_machine(self.name) as place:  # it writes some files only where those that it has read are there
            (self._tokenizer if place == self.name else _loaded(place, self.name)).save_pretrained(folder)


def captions(source) -> Iterable[str]:
    """The texts of a source, in its order. Most sources need not decode images for this."""
    for i in range(len(source)):
        text = source.annotations(i).get("text", ())
        yield from (text,) if isinstance(text, str) else text


def _words(texts: Iterable[str]) -> Counter:
    """Counts the words, in lower case and split as BERT splits them."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    # Equal captions are split only once: drawn and labelled sets have many.
    counts = Counter()
    for text, times in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += times
    return counts


def _joined(pair: tuple[str, str]) -> str:
    return pair[0] + pair[1].removeprefix("##")


def _pieces(counts: Counter, size: int) -> list[str]:
    """The pieces of a vocabulary. It starts with all letters. Then the most frequent pair of neighbours is joined to a
    new piece, again and again, until there are `size` pieces. Of equally frequent pairs the first in alphabetical order
    is joined. So the same counts give the same pieces; the trainer of `tokenizers` does not guarantee this."""
    words = sorted(counts)
    parts = [[word[0], *(f"##{letter}" for letter in word[1:])] for word in words]
    pieces = sorted({piece for word in parts for piece in word})
    known = set(pieces)
    frequency, where = Counter(), defaultdict(set)

    def count(k: int, sign: int) -> set:
        pairs = list(zip(parts[k], parts[k][1:]))
        for pair in pairs:
            frequency[pair] += sign * counts[words[k]]
            where[pair].add(k)
        return set(pairs)

    for k in range(len(words)):
        count(k, 1)
    heap = [(-times, pair) for pair, times in frequency.items()]
    heapq.heapify(heap)
    while len(pieces) < size and heap:
        times, pair = heapq.heappop(heap)
        if -times != frequency[pair] or times == 0:
            continue  # an old entry: the pair's count has changed since
        piece, changed = _joined(pair), set()
        for k in sorted(where[pair]):
            before, merged = parts[k], []
            for part in before:
                if merged and (merged[-1], part) == pair:
                    merged[-1] = piece
                else:
                    merged.append(part)
            changed |= count(k, -1)
            parts[k] = merged
            changed |= count(k, 1)
        for other in changed:
            heapq.heappush(heap, (-frequency[other], other))
        if piece not in known:
            known.add(piece)
            pieces.append(piece)
    return pieces


def train_wordpiece(captions: Iterable[str], size: int, folder: str | Path) -> Path:
    """Makes a WordPiece vocabulary of at most `size` pieces from the captions, special tokens included.

    Writes vocab.txt and tokenizer_config.json into `folder`, and returns the folder. TextTokenizer and `transformers`
    can load it. The order of the captions does not matter. All their letters are in the vocabulary.
    DataError if there are no words, ConfigError if `size` is too small for the letters.
    """
    counts = _words(captions)
    if not counts:
        raise DataError("there are no words in the captions: nothing to train a vocabulary on")
    pieces = _pieces(counts, size - len(SPECIAL))
    if len(pieces) > size - len(SPECIAL):
        raise ConfigError(
            f"size is {size}, but {len(SPECIAL)} special tokens and the {len(pieces)} letters of these "
            f"captions, first and following ones apart, need {len(SPECIAL) + len(pieces)}"
        )
    folder = at(folder, "folder")
    with reaching(folder, write=True):
        folder.mkdir(parents=True, exist_ok=True)
    write(folder / _VOCABULARY, "\n".join((*SPECIAL, *pieces)) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    write(folder / _CONFIG, json.dumps(config) + "\n")
    return folder
