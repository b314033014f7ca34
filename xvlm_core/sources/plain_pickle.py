"""Pickles that hold plain values, read without ever running what they ask for.

RefCOCO comes as pickles, and a pickle is a program: it may name any function and call it. This
reader knows only the instructions that build dict, list, tuple, str, bytes, int, float, bool and
None. Every other one is refused before it does anything.

It is built on the interpreter of the standard library that is written in Python: the one written
in C reserves memory for as many memo entries as one instruction says, 64 GB if it likes.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from xvlm_core.errors import DataError

MAX_BYTES = 1 << 30
"""Largest file that is read."""
MAX_STEPS = 30_000_000
"""Instructions that are followed; each takes at most some 100 bytes of memory. The largest file of
RefCOCO has about 7 million."""

_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
_PLAIN = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.DUP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT),
    *(pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE),
    *(pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES),
    *(pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.LIST, pickle.EMPTY_LIST, pickle.APPEND),
    *(pickle.APPENDS, pickle.DICT, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.TUPLE, pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.MEMOIZE),
)
_NAMING = (pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST)
"""These end in ``find_class``, which refuses by name."""
_REFUSED = {
    pickle.REDUCE: "wants to call a function",
    pickle.BUILD: "wants to set the state of an object",
    pickle.OBJ: "wants to make an object",
    pickle.NEWOBJ: "wants to make an object",
    pickle.NEWOBJ_EX: "wants to make an object",
    pickle.PERSID: "wants an object from outside (persistent id)",
    pickle.BINPERSID: "wants an object from outside (persistent id)",
    pickle.EXT1: "wants something by its number in the extension registry",
    pickle.EXT2: "wants something by its number in the extension registry",
    pickle.EXT4: "wants something by its number in the extension registry",
    pickle.EMPTY_SET: "holds a set",
    pickle.ADDITEMS: "holds a set",
    pickle.FROZENSET: "holds a set",
    pickle.BYTEARRAY8: "holds a bytearray",
    pickle.NEXT_BUFFER: "wants a buffer from outside",
    pickle.READONLY_BUFFER: "wants a buffer from outside",
}
_DAMAGE = (
    *(pickle.UnpicklingError, struct.error, EOFError, LookupError, ValueError, TypeError),
    *(AttributeError, OverflowError, AssertionError),
)
"""What the interpreter raises on bytes that are no pickle."""


class _NotPlain(Exception):
    """The pickle asks for more than plain values; the text says for what."""


class _Reader(pickle._Unpickler):
    """Follows the instructions in ``dispatch`` and no others."""

    stack: list[Any]
    steps = 0

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse a class or function by its name."""
        raise _NotPlain(f"wants to load {_shown(f'{module}.{name}')}")

    def _decode_string(self, value: bytes) -> str:
        """A byte string of Python 2: UTF-8, or else Latin-1, which any bytes are."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")


_Load = Callable[[Any], None]


def _counted(load: _Load) -> _Load:
    def counted(reader: _Reader) -> None:
        reader.steps += 1
        if reader.steps > MAX_STEPS:
            raise _NotPlain(f"has more than {MAX_STEPS:,} instructions")
        load(reader)

    return counted


def _refusing(what: str) -> _Load:
    def refuse(reader: _Reader) -> NoReturn:
        raise _NotPlain(what)

    return refuse


def _with_plain_keys(load: _Load, keys: slice) -> _Load:
    """Nested tuples as keys of a dict could exhaust the C stack when they are hashed."""

    def checked(reader: _Reader) -> None:
        for key in reader.stack[keys]:
            if type(key) not in _KEYS:
                raise _NotPlain(f"has a {type(key).__name__} as key of a dict")
        load(reader)

    return checked


def _dispatch() -> dict[int, _Load]:
    loads: dict[int, _Load] = dict(pickle._Unpickler.dispatch)
    dispatch = {op[0]: loads[op[0]] for op in (*_PLAIN, *_NAMING)}
    dispatch[pickle.SETITEM[0]] = _with_plain_keys(loads[pickle.SETITEM[0]], slice(-2, -1))
    for op in (pickle.SETITEMS, pickle.DICT):
        dispatch[op[0]] = _with_plain_keys(loads[op[0]], slice(None, None, 2))
    dispatch.update({op[0]: _refusing(what) for op, what in _REFUSED.items()})
    return {op: _counted(load) for op, load in dispatch.items()}


_Reader.dispatch = _dispatch()


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle of plain values, of any protocol, also of Python 2.

    Byte strings of Python 2 become ``str``. Lists and dicts may be shared and may hold themselves,
    as the file has it: do not walk all of the value without a bound.

    Args:
        path: the file.

    Returns:
        Nested dict, list, tuple, str, bytes, int, float, bool and None.

    Raises:
        DataError: the file is missing, too large, damaged, or asks for anything but plain values.
    """
    again = f"get {path.name} again from where it came from"
    try:
        if not path.is_file():
            raise DataError(f"there is no file {path}")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB: not read", try_=again)
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _Reader(file).load()
    except _NotPlain as problem:
        raise DataError(
            f"{path.name} {problem}: not read",
            where=str(path),
            try_=f"{again}: it should hold only lists, dicts, texts and numbers",
        ) from None
    except _DAMAGE as error:
        raise DataError(f"damaged pickle: {path}", try_=again) from error


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:100])
