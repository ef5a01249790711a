import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.data import shapes, tokenizers
from ldm_jax.data.sources import ShapesSource
from ldm_jax.data.tokenizers import TextTokenizer
from ldm_jax.errors import DataError
from tests.data_tools import words


@pytest.fixture(scope="module")
def texts():
    return [shapes.draw(0, index, 32)["text"] for index in range(400)]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    return tokenizers.train_wordpiece(texts, 300, tmp_path_factory.mktemp("vocabulary"))


def test_special_tokens_padding_and_mask(folder):
    tokenizer = TextTokenizer(folder, 12)
    ids, mask = tokenizer("A large RED circle")
    assert ids.dtype == mask.dtype == np.int32 and ids.shape == mask.shape == (12,)
    pad, cls, sep = (tokenizers.SPECIAL.index(name) for name in ("[PAD]", "[CLS]", "[SEP]"))
    assert ids[0] == cls and ids[5] == sep and (ids[6:] == pad).all()
    assert mask.tolist() == [1] * 6 + [0] * 6
    assert words(tokenizer, ids) == "a large red circle"
    empty, mask = tokenizer("")
    assert empty.tolist() == [cls, sep] + [pad] * 10 and mask.sum() == 2


def test_nobody_is_advised_to_install_pytorch(folder):
    code = "import sys; from ldm_jax.data.tokenizers import TextTokenizer; TextTokenizer(sys.argv[1])('a circle')"
    command, root = [sys.executable, "-c", code, str(folder)], Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""


@pytest.mark.parametrize("text", ['{"version": "1.0", "model": {"type": "?"}}', "{", '{"version": 7}'])
def test_damaged_files_are_named(folder, tmp_path, text):
    TextTokenizer(folder).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=rf"{tmp_path} cannot be read.*damaged"):
        TextTokenizer(tmp_path)


def test_long_texts_end_with_sep(folder):
    ids, mask = TextTokenizer(folder, 6)("a large red circle on a striped grey background")
    assert ids[-1] == tokenizers.SPECIAL.index("[SEP]") and mask.all()
    assert len(TextTokenizer(folder)("a")[0]) == 77


def test_captions_of_the_data_set_survive(folder, texts):
    tokenizer = TextTokenizer(folder, 77)
    assert words(tokenizer, tokenizer("a pale star")[0]) == "a pale star"
    unknown = tokenizers.SPECIAL.index("[UNK]")
    for index in range(400, 450):
        ids, _ = tokenizer(shapes.draw(0, index, 32)["text"])
        assert unknown not in ids and ids.max() < tokenizer.vocab_size <= 300
    assert unknown in tokenizer("x\u00df \u4e2d")[0]


def test_the_vocabulary_depends_on_the_captions_alone(folder, texts, tmp_path):
    again = tokenizers.train_wordpiece(reversed(texts), 300, tmp_path)
    assert (again / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    pieces = (folder / "vocab.txt").read_text().split()
    assert pieces[:5] == list(tokenizers.SPECIAL) and len(set(pieces)) == len(pieces)
    assert {"circle", "background", "large"} <= set(pieces)


def test_the_most_frequent_neighbours_are_joined_first(tmp_path):
    # Letters: a ##b b ##a (4); "ab" occurs 5 times, "ba" twice.
    tokenizers.train_wordpiece(["ab ab ab", "ab ab ba ba"], 10, tmp_path)
    assert (tmp_path / "vocab.txt").read_text().split()[5:] == ["##a", "##b", "a", "b", "ab"]


def test_repeated_letters(tmp_path):
    tokenizers.train_wordpiece(["aaaa"], 50, tmp_path)
    assert (tmp_path / "vocab.txt").read_text().split()[5:] == ["##a", "a", "##aa", "##aaa", "aaaa"]


def test_a_folder_with_a_bare_vocabulary_is_enough(folder, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    for text in ("A large red circle", "", "caf\u00e9"):
        assert np.array_equal(TextTokenizer(tmp_path, 9)(text)[0], TextTokenizer(folder, 9)(text)[0])


def test_tokenizers_can_be_pickled_for_worker_processes(folder):
    tokenizer = TextTokenizer(folder, 9)
    assert np.array_equal(pickle.loads(pickle.dumps(tokenizer))("a red star")[0], tokenizer("a red star")[0])


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"neither a folder(?s:.*)train_wordpiece\("):
        TextTokenizer(tmp_path / "nothing here")
    import transformers

    def unreachable(name):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer 'bert-base-uncased'.*couldn't connect"):
        TextTokenizer("bert-base-uncased")


def test_captions_of_a_source():
    source = ShapesSource(32, 3)
    assert list(tokenizers.captions(source)) == [source[i]["text"] for i in range(3)]


def test_impossible_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no words"):
        tokenizers.train_wordpiece([" "], 100, tmp_path)
    with pytest.raises(ValueError, match="size is 7, but 5 special tokens and the 4 letters"):
        tokenizers.train_wordpiece(["ab ba"], 7, tmp_path)
