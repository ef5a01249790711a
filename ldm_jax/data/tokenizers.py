"""Captions to token ids, as BERT writes them: [CLS] words in pieces [SEP] [PAD] [PAD] ...

The released text models use bert-base-uncased, 77 tokens and no mask. Where that vocabulary cannot be fetched, or for
captions of a small world, `train_wordpiece` makes one from the captions themselves. `transformers` is imported when
it is needed, not before: it takes seconds.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ldm_jax.errors import ConfigError, DataError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VOCABULARY = "vocab.txt"
_CONFIG = "tokenizer_config.json"


def _load(name: str):
    """A tokenizer of `transformers`. FileNotFoundError that says what to do where there is none."""
    from transformers import AutoTokenizer, BertTokenizerFast

    try:
        # A folder with a bare vocab.txt is enough, and one that exists is never looked for on the network.
        if (Path(name) / _VOCABULARY).is_file() and not (Path(name) / _CONFIG).is_file():
            return BertTokenizerFast.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no tokenizer {name!r}: it is neither a folder with tokenizer files nor could it be fetched from the "
            f"Hugging Face Hub ({str(error).splitlines()[0] if str(error) else type(error).__name__}).\n"
            f"Give a local folder, for bert-base-uncased one with its {_VOCABULARY} is enough, or train one on your "
            "captions:\n"
            "  from ldm_jax.data import tokenizers\n"
            '  tokenizers.train_wordpiece(tokenizers.captions(source), size=2000, folder="my-tokenizer")'
        ) from error


class TextTokenizer:
    """Callable: text -> ids int32 [L], mask int32 [L] (1 = a token, 0 = padding), L = max_length.

    name: a local folder, or a name on the Hugging Face Hub. Longer texts are cut so that [SEP] stays the last token.
    FileNotFoundError where the name cannot be loaded; ValueError where the tokenizer has no padding token.
    """

    def __init__(self, name: str | Path = "bert-base-uncased", max_length: int = 77):
        self.name, self.max_length = str(name), max_length
        self._tokenizer = _load(self.name)
        if self._tokenizer.pad_token_id is None:
            raise ConfigError(f"the tokenizer {self.name} has no padding token, so its texts cannot be batched")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        coded = self._tokenizer(text, truncation=True, max_length=self.max_length, padding="max_length")
        return np.array(coded["input_ids"], np.int32), np.array(coded["attention_mask"], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, so that its name is needed no more."""
        self._tokenizer.save_pretrained(str(folder))


def captions(source) -> Iterable[str]:
    """The texts of a source, in its order; pictures are not decoded where that can be avoided."""
    for i in range(len(source)):
        text = source.annotations(i).get("text", ())
        yield from (text,) if isinstance(text, str) else text


def _words(texts: Iterable[str]) -> Counter:
    """How often each word occurs, split and in lower case as BERT does it."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    # Captions repeat in drawn and labelled sets.
    counts = Counter()
    for text, times in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += times
    return counts


def _joined(pair: tuple[str, str]) -> str:
    return pair[0] + pair[1].removeprefix("##")


def _pieces(counts: Counter, size: int) -> list[str]:
    """Single letters, then the most frequent neighbours joined, until there are `size`. Among equals the first in
    alphabetical order: the same counts give the same pieces, which the trainer of `tokenizers` does not promise."""
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
            continue  # an entry from before the pair's count changed
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
    """Makes a WordPiece vocabulary of at most `size` pieces, special tokens included, from the captions.

    Writes vocab.txt and tokenizer_config.json into `folder`, which TextTokenizer and `transformers` load; returns
    it. The result depends on the captions alone, not on their order. All letters of the captions are kept.
    ValueError where there are no words, or `size` has no room for the letters.
    """
    counts = _words(captions)
    if not counts:
        raise DataError("there are no words in the captions: nothing to train a vocabulary on")
    pieces = _pieces(counts, size - len(SPECIAL))
    if len(pieces) > size - len(SPECIAL):
        raise ConfigError(f"size is {size}, but {len(SPECIAL)} special tokens and the {len(pieces)} letters of these "
                          f"captions, first and following ones apart, need {len(SPECIAL) + len(pieces)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _VOCABULARY).write_text("\n".join((*SPECIAL, *pieces)) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / _CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")
    return folder
