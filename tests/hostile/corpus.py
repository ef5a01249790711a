"""Crafted files, made by code: PyTorch's, safetensors, pictures, and folders with a metadata.jsonl."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

OLD_MAGIC = 0x1950A86A20F9469CFC6C
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4265380512\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
MANY = 100_000
NUMBERS = np.arange(6, dtype=np.float32).tobytes()


# Pieces of pickles

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICT = b"ccollections\nOrderedDict\n"
START = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def ints(*values: int) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def tensor(shape: tuple, strides: tuple, old: bool = False) -> bytes:
    end = b"N" if old else b""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06" + end + b"tQ"
    return REBUILD + b"(" + storage + b"K\x00" + ints(*shape) + ints(*strides) + b"\x89" + DICT + b")RtR"


def state(*values: bytes) -> bytes:
    """A pickle {"w0": value, ...}."""
    return START + b"}" + b"".join(text(f"w{i}") + value + b"s" for i, value in enumerate(values)) + b"."


PLAIN = state(tensor((2, 3), (3, 1)), tensor((3, 2), (1, 3)))


# Files of PyTorch


def zipped(data: bytes, numbers: bytes = NUMBERS, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", numbers)
    return file.getvalue()


def old(data: bytes, little: bool = True) -> bytes:
    parts = [pickle.dumps(part, 2) for part in (OLD_MAGIC, 1001, {"little_endian": little})]
    return b"".join(parts) + data + pickle.dumps(["0"], 2) + struct.pack("<q", 6) + NUMBERS


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    """The bytes `at` of the storage's header in the central directory, and of its local one, replaced."""
    out, name = bytearray(data), b"archive/data/0"
    for begin in (data.rfind(name) - 46, data.find(name) - 30 - 2):
        out[begin + at : begin + at + len(value)] = value
    return bytes(out)


def _many_entries() -> bytes:
    """A small local part, and a central directory of 200,000 entries."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = len(entry) * 200_000
    return b"PK\x03\x04" + entry * 200_000 + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, size, 4, 0)


def _colliding(i: int) -> bytes:
    """A key whose hash is 0, and its value."""
    return b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"Ns"


def torch_files() -> dict[str, bytes]:
    """Files that are no models, by their names."""
    zeros = bytes(80 * 2**20)
    deflated = zipped(PLAIN, NUMBERS * 100, zipfile.ZIP_DEFLATED)
    middle = deflated.find(b"archive/data/0") + 20
    lzma = bytearray(zipped(PLAIN, NUMBERS * 100, zipfile.ZIP_LZMA))
    lzma[lzma.find(b"archive/data.pkl") + 40] ^= 255
    twice = b")" + b"q\x00h\x00\x86" * 60  # a tuple of the same tuple twice, and so on
    pairs = b"(" + (text("a") + b"N\x86") * (MANY // 10) + b"l"
    return {
        "nested key": zipped(START + b"}" + b")" + b"\x85" * 4 * MANY + b"K\x01s."),
        "nested key, old": old(START + b"}" + b")" + b"\x85" * MANY + b"K\x01s."),
        "nested value": zipped(START + b"]" * MANY + b"a" * (MANY - 1) + b"."),
        "nested storage": zipped(START + b")" + b"\x85" * MANY + b"Q."),
        "doubled key": zipped(START + b"}" + twice + b"K\x01s."),
        "doubled value": zipped(START + twice + b"."),
        "list that holds itself": zipped(START + b"]q\x00h\x00a."),
        "memo of 2**31": zipped(START + b"Nr\xff\xff\xff\x7f."),
        "memo of 2**31, old": old(START + b"Nr\xff\xff\xff\x7f."),
        "steps": zipped(START + b"}" * 3_000_000 + b"."),
        "copies of a dict": zipped(START + DICT + b"q\x00" + pairs + b"\x85q\x01" + b"h\x00h\x01R" * 300 + b"."),
        "names": zipped(START + b"".join(b"ca\nb%d\n" % i for i in range(100_000)) + b"."),
        "keys that collide": zipped(START + b"}" + b"".join(map(_colliding, range(60_000))) + b"."),
        "expanded": zipped(state(tensor((2**28,), (0,)))),
        "expanded, old": old(state(tensor((2**28,), (0,), old=True))),
        "expanded often": zipped(state(*[tensor((2**20,), (0,))] * 100)),
        "huge expanded": zipped(state(tensor((2**62, 2**62), (0, 0)))),
        "storage bomb": zipped(PLAIN, zeros, zipfile.ZIP_DEFLATED),
        "pickle bomb": zipped(START + b"}" * (40 * 2**20), NUMBERS, zipfile.ZIP_DEFLATED),
        "lying bomb": _patched(zipped(PLAIN, zeros, zipfile.ZIP_DEFLATED), 24, struct.pack("<I", 24)),
        "damaged deflate": deflated[:middle] + bytes(20) + deflated[middle + 20 :],
        "damaged lzma": bytes(lzma),
        "encrypted": _patched(zipped(PLAIN), 8, b"\x01\x00"),
        "unknown compression": _patched(zipped(PLAIN), 10, b"\x63\x00"),
        "many entries": _many_entries(),
        "big endian, old": old(state(tensor((2, 3), (3, 1), old=True)), little=False),
        "no tuple": zipped(START + REBUILD + b"]R."),
        "getattr": zipped(START + b"cbuiltins\ngetattr\n" + b"(" + DICT + text("clear") + b"tR)R."),
        "extension": zipped(START + b"\x82\x01."),
        "buffer": zipped(b"\x80\x05\x97."),
        "git-LFS pointer": LFS,
        "HTML page": HTML,
        "empty": b"",
        "text": b"hello",
    }  # fmt: skip


def changes_our_function(name: bytes) -> bytes:
    """BUILD with a state that sets attributes of what `name` stands for."""
    return zipped(START + name + b"N}" + text("__defaults__") + b"K\x01\x85s\x86b.")


# safetensors


def safetensors_file(header: dict | bytes, size: int) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + bytes(size)


def entry(start, end, shape, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def _raw(inner: bytes, size: int = 8) -> bytes:
    return safetensors_file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]' + inner, size)


def safetensors_files() -> dict[str, bytes]:
    good, make = entry(0, 8, [2]), safetensors_file
    return {
        "good": make({"__metadata__": {"x": "y"}, "a": good}, 8),
        "no tensors": make({}, 0),
        "no metadata": make({"__metadata__": None, "a": good}, 8),
        "empty tensor": make({"a": good, "b": entry(8, 8, [0, 3])}, 8),
        "padded": make(json.dumps({"a": good}).encode() + b"   ", 8),
        "not aligned": make({"a": entry(0, 1, [1], "U8"), "b": entry(1, 5, [1])}, 5),
        "trailing bytes": make({"a": good}, 9),
        "hole": make({"a": good, "b": entry(12, 16, [1])}, 16),
        "hole at the beginning": make({"a": entry(4, 8, [1])}, 8),
        "overlap": make({"a": good, "b": entry(4, 8, [1])}, 8),
        "same bytes": make({"a": good, "b": good}, 8),
        "empty inside another": make({"a": good, "b": entry(4, 4, [0])}, 8),
        "wrong size": make({"a": entry(0, 8, [3])}, 8),
        "no offsets": make({"a": {"dtype": "F32", "shape": [2]}}, 8),
        "three offsets": make({"a": {**good, "data_offsets": [0, 8, 8]}}, 8),
        "negative shape": make({"a": entry(0, 8, [-2, -1])}, 8),
        "fraction": make(b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', 8),
        "minus 0": make(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', 8),
        "truth value": make({"a": entry(0, 4, [True])}, 4),
        "huge shape": make({"a": entry(0, 0, [2**63, 2, 0])}, 0),
        "unsigned": make(
            {"a": entry(0, 8, [1], "U64"), "b": entry(8, 16, [2], "U32"), "c": entry(16, 20, [2], "U16")}, 20
        ),
        "unknown type": make({"a": entry(0, 8, [2], "Q32")}, 8),
        "type that is no text": make({"a": entry(0, 8, [2], [])}, 8),
        "list": make(b"[]", 0),
        "number for a tensor": make({"a": 3}, 0),
        "metadata of numbers": make({"__metadata__": {"global_step": 7}, "a": good}, 8),
        "metadata that are a list": make({"__metadata__": [], "a": good}, 8),
        "metadata that are null": make({"__metadata__": {"a": None}, "a": good}, 8),
        "not a number": _raw(b',"x":NaN}}'),
        "deep": _raw(b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
        "long number": _raw(b',"x":' + b"1" * 5000 + b"}}"),
        "half a letter": make(b'{"\\ud800":' + json.dumps(good).encode() + b"}", 8),
        "not UTF-8": make(b'{"\xff":' + json.dumps(good).encode() + b"}", 8),
        "a field twice": _raw(b',"shape":[2]}}'),
        "header of 2**62 bytes": (2**62).to_bytes(8, "little") + b"{}",
        "header of lists": make(b"[" + b"[]," * 9_000_000 + b"0]", 0),
        "too short": b"\x02\0\0",
        "git-LFS pointer": LFS,
        "HTML page": HTML,
        "empty": b"",
    }


# What the library takes and we do not: no writer makes it.
ONLY_HERE_REFUSED = {
    "a tensor twice": _raw(b'},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "unknown field": safetensors_file({"a": entry(0, 8, [2], x=3)}, 8),
}


# Pictures


def png(mode: str = "RGB", size: tuple[int, int] = (16, 12)) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    picture = Image.fromarray(values.view("<u2")[..., 0] if mode == "I;16" else values).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def png_bomb(side: int) -> bytes:
    """A square of black pixels, 1 bit each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures() -> dict[str, bytes]:
    """Files that are no pictures, or too large."""
    return {
        "bomb of 100 megapixels": png_bomb(10_000),
        "bomb of 900 megapixels": png_bomb(30_000)[:5000],
        "truncated": png()[:200],
        "damaged": png()[:60] + bytes(30) + png()[90:],
        "empty": b"",
        "text": b"hello",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "git-LFS pointer": LFS,
        "HTML page": HTML,
    }


# Annotations

_NPY = b"\x93NUMPY\x01\0\x76\0"


def npy(header: str, data: bytes = b"") -> bytes:
    return _NPY + header.ljust(117).encode() + b"\n" + data


VECTORS = {
    "huge": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
    "call": npy("__import__('os').system('true')"),
    "brackets": npy("(" * 110),
    "text": npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", bytes(16)),
    "LFS": LFS,
    "empty": b"",
}

LINES = {
    "deep": '{"file_name": "a.png", "text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "quite deep": '{"file_name": "a.png", "text": ' + "[" * 900 + "]" * 900 + "}",
    "long number": '{"file_name": "a.png", "label": ' + "1" * 5000 + "}",
    "class of 10**18": '{"file_name": "a.png", "label": 1000000000000000000}',
    "class of an object": '{"file_name": "a.png", "objects": [{"box": [0, 0, 1, 1], "class": 1%s}]}' % ("0" * 40),
    "half a letter": '{"file_name": "a.png", "text": "\\ud800"}',
    "label of half a letter": '{"file_name": "a.png", "label": "\\ud800"}',
    "name with NUL": '{"file_name": "a\\u0000.png"}',
    "name of half a letter": '{"file_name": "\\ud800.png"}',
    "long name": '{"file_name": "%s.png"}' % ("a" * 10_000),
    "infinite box": '{"file_name": "a.png", "objects": {"bbox": [[0, 0, Infinity, 1]], "categories": [0]}}',
    "huge box": '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 1%s, 1]], "categories": [0]}}' % ("0" * 400),
    "box of NaN": '{"file_name": "a.png", "objects": [{"box": [0, 0, NaN, 1], "class": 0}]}',
    "vectors of text": '{"file_name": "a.png", "vectors": ["' + "a" * 10**6 + '"' + ', "b"' * 1000 + "]}",
    "vectors of objects": '{"file_name": "a.png", "vectors": [{"a": 1}]}',
    "deep vectors": '{"file_name": "a.png", "vectors": ' + "[" * 900 + "]" * 900 + "}",
    "huge vectors": '{"file_name": "a.png", "vectors": [1%s]}' % ("0" * 400),
    "long line": '{"file_name": "a.png", "x": [' + "[]," * 9_000_000 + "0]}",
    "git-LFS pointer": LFS.decode(),
    "HTML page": HTML.decode(),
    **{f"vectors: {name}": f'{{"file_name": "a.png", "vectors": "{name}.npy"}}' for name in VECTORS},
}  # fmt: skip


def folder(path: Path, text: str | bytes) -> Path:
    """A folder of an image, files of vectors, and a metadata.jsonl."""
    path.mkdir()
    (path / "a.png").write_bytes(png())
    (path / "metadata.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, data in VECTORS.items():
        (path / f"{name}.npy").write_bytes(data)
    return path


def write(path: Path, ending: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (path / f"{name}{ending}").write_bytes(data)
