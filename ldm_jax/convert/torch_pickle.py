"""Reads the pickles in PyTorch's files without calling anything.

A pickle is a program for a small stack machine. Python's own machine calls any function that the program names, and it
recurses and allocates as the program says. This one is a loop over the opcodes. It makes strings, numbers, lists,
tuples and dicts (sets become lists), and of the names it knows only tensors, their storages and OrderedDict. All other
names, and all objects made with them, become a `Placeholder`. The number of steps is limited, and so is the memory:
a step takes some hundred bytes at most, besides the bytes of the file.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.files import Window

STEPS = 1_000_000  # a tensor takes about 40
DIMENSIONS = 8
NAMES = 1000  # different names that are not known
KEY_PARTS = 16
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Placeholder:
    """Stands for a name or an object that is not read. A name is a subclass, and an object is an instance."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The numbers that tensors share: their name in the file, and their type."""

    key: str
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor before its numbers are read: parts of a checkpoint that nobody asks for never are."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """The name of a class of storages."""

    dtype: np.dtype


class _Known(Placeholder):
    """A name that means something to `Unpickler.made`."""


_TENSOR, _PARAMETER, _DICT = _Known(), _Known(), _Known()
_KNOWN = {
    ("torch._utils", "_rebuild_tensor"): _TENSOR,
    ("torch._utils", "_rebuild_tensor_v2"): _TENSOR,
    ("torch._utils", "_rebuild_parameter"): _PARAMETER,
    ("collections", "OrderedDict"): _DICT,
} | {(module, name): _Kind(np.dtype(t)) for module in ("torch", "torch.storage") for name, t in STORAGES.items()}


class Unpickler:
    """Reads pickles from a file, one after another. `storages`: those of the last pickle, by their keys."""

    def __init__(self, file: Window):
        self.file = file
        self.storages: dict[str, Storage] = {}
        self._names: dict[tuple[str, str], type] = {}

    def load(self) -> Any:
        """The object of the next pickle. ValueError, IndexError, KeyError or TypeError for one that is damaged."""
        self.stack: list = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}
        self.storages, self.left = {}, STEPS
        for opcode, argument, _ in pickletools.genops(self.file):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"a pickle of more than {STEPS} steps")
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise ValueError(f"a pickle with the opcode {opcode.name}, which PyTorch does not use")
            action(self, argument)
        return self.stack.pop()

    def since_mark(self) -> list:
        """Takes what is on the stack above the last mark."""
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def named(self, module: Any, name: Any) -> Any:
        """What a name stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if (module, name) not in self._names:
            if len(self._names) == NAMES:
                raise ValueError(f"more than {NAMES} names of classes and functions")
            self._names[module, name] = type("Placeholder", (Placeholder,), {})
        return self._names[module, name]

    def storage(self, given: Any) -> Storage:
        """The storage of a persistent id ("storage", class, key, device, size, view)."""
        if not isinstance(given, tuple) or len(given) < 5 or given[0] != "storage" or not isinstance(given[1], _Kind):
            raise ValueError("an unknown kind of storage")
        if len(given) > 5 and given[5] is not None:
            raise ValueError("a storage that is a view of another one is not supported")
        if not isinstance(given[2], str):
            raise ValueError("the key of a storage is not text")
        return self.storages.setdefault(given[2], Storage(given[2], given[1].dtype))

    def made(self, function: Any, arguments: Any) -> Any:
        """What a call gives. Nothing is called."""
        if not isinstance(arguments, tuple):
            raise ValueError("a call without a tuple of arguments")
        if function is _TENSOR:
            return _tensor(*arguments[:4])
        if function is _PARAMETER:
            return arguments[0]
        if function is _DICT:
            pairs = arguments[0] if arguments else []
            if not isinstance(pairs, list):
                raise ValueError("an OrderedDict that is not made of a list")
            self.left -= len(pairs)
            return {_key(key): value for key, value in pairs}
        return Placeholder()


def _is_size(value: Any) -> bool:
    return type(value) is int and value.bit_length() < 64


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= DIMENSIONS):
        raise ValueError(f"a tensor has no shape of at most {DIMENSIONS} dimensions with its strides")
    if not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("the shape, strides or offset of a tensor are not integers of 64 bits")
    return Tensor(storage, offset, shape, strides)


def _key(value: Any) -> Any:
    """Checks a key of a dict: a text, a number, a name, or a short tuple of these. The hash of others may recurse."""
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > KEY_PARTS:
        raise ValueError(f"a key of more than {KEY_PARTS} parts")
    for part in parts:
        if isinstance(part, int) and part.bit_length() > 64:
            raise ValueError("a key that is a number of more than 64 bits")
        if not (part is None or isinstance(part, str | bytes | int | float | type | Placeholder | _Kind)):
            raise ValueError(f"a key of the type {type(part).__name__}")
    return value


def _fill(target: Any, items: list) -> None:
    """Appends to a list, or sets the keys and values of a dict. What is put into a placeholder is dropped."""
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):
        if len(items) % 2:
            raise ValueError("a dict with a key without a value")
        for key, value in zip(items[::2], items[1::2]):
            target[_key(key)] = value
    elif not isinstance(target, Placeholder | type):
        raise ValueError(f"items for an object of the type {type(target).__name__}")


# Actions. Each takes the unpickler and the opcode's argument.

_LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip


def _push(make: Callable[[], Any]) -> Callable:
    return lambda machine, _: machine.stack.append(make())


def _top_to_tuple(size: int) -> Callable:
    def action(machine: Unpickler, _: None) -> None:
        if len(machine.stack) < size:
            raise ValueError("the stack is empty")
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return action


def _text(machine: Unpickler, argument: str) -> None:
    """A string of Python 2, whose bytes pickletools gives as latin-1."""
    machine.stack.append(argument.encode("latin-1").decode("utf-8", "backslashreplace"))


def _to_dict(machine: Unpickler, _: None) -> None:
    items: dict = {}
    _fill(items, machine.since_mark())
    machine.stack.append(items)


def _pop(machine: Unpickler, _: None) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _remember(machine: Unpickler, argument: int | str | None) -> None:
    machine.memo[len(machine.memo) if argument is None else int(argument)] = machine.stack[-1]


def _recall(machine: Unpickler, argument: int | str) -> None:
    if int(argument) not in machine.memo:
        raise ValueError("an object that was not remembered")
    machine.stack.append(machine.memo[int(argument)])


def _add_one(machine: Unpickler, _: None) -> None:
    item = machine.stack.pop()
    _fill(machine.stack[-1], [item])


def _set_one(machine: Unpickler, _: None) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _fill(machine.stack[-1], [key, value])


def _add_many(machine: Unpickler, _: None) -> None:
    items = machine.since_mark()
    _fill(machine.stack[-1], items)


def _global(machine: Unpickler, argument: str) -> None:
    machine.stack.append(machine.named(*argument.split(" ", 1)))


def _stack_global(machine: Unpickler, _: None) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.named(module, name))


def _reduce(machine: Unpickler, _: None) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.made(function, arguments))


def _reduce_with_names(machine: Unpickler, _: None) -> None:
    machine.stack.pop()
    _reduce(machine, None)


def _object(machine: Unpickler, _: None) -> None:
    function, *arguments = machine.since_mark()
    machine.stack.append(machine.made(function, tuple(arguments)))


def _instance(machine: Unpickler, argument: str) -> None:
    arguments = tuple(machine.since_mark())
    machine.stack.append(machine.made(machine.named(*argument.split(" ", 1)), arguments))


def _literal(machine: Unpickler, argument: Any) -> None:
    machine.stack.append(argument)


_ACTIONS: dict[str, Callable[[Unpickler, Any], None]] = {
    **dict.fromkeys(_LITERALS, _literal),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(list),
    "BINSTRING": _text,
    "SHORT_BINSTRING": _text,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": _top_to_tuple(1),
    "TUPLE2": _top_to_tuple(2),
    "TUPLE3": _top_to_tuple(3),
    "DICT": _to_dict,
    "APPEND": _add_one,
    "APPENDS": _add_many,
    "ADDITEMS": _add_many,
    "SETITEM": _set_one,
    "SETITEMS": _add_many,
    "PUT": _remember,
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember,
    "GET": _recall,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.storage(machine.stack.pop())),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_with_names,
    "OBJ": _object,
    "INST": _instance,
    "BUILD": lambda machine, _: machine.stack.pop(),  # the state of an object
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
}
