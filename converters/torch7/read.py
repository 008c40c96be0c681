"""Reads .t7 files without Lua: what they hold becomes plain data, and nothing in them is executed.

The format is that of torch7's File.lua and of the tensors' and storages' own ``write``: a value is a number that says
what it is, and then that. Tables and objects are numbered, and are only a number where they come a second time.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

from converters.files import check_start, open_buffer
from converters.torch7.encoding import KINDS, AsciiSource, BinarySource, DamagedError, Source, is_ascii
from converters.torch7.objects import Function, Storage, Table, Tensor, TorchObject
from surgery.errors import SurgeryError

__all__ = ["is_torch7", "read"]

# What comes next in the file (File.lua).
_NIL, _NUMBER, _STRING, _TABLE, _TORCH, _BOOLEAN, _FUNCTION, _OLD_CLOSURE, _CLOSURE = range(9)

_ARRAY = re.compile(r"torch\.(?:Cuda|Cl)?(\w*)(Tensor|Storage)")
_TYPE = re.compile(r"[A-Za-z_][\w.-]{0,199}")
_HEADERS = (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", b"4\n1\n3\nV 1\n")  # of a file whose value is an object
_FOREIGN = {
    b"\x80\x02": "a PyTorch file, whatever its name says; call it .pt and convert it as that",
    b"PK\x03\x04": "a PyTorch file, whatever its name says; call it .pt and convert it as that",
    b"<": "a web page; download the file again",
}
_MOST_DIMENSIONS = 64
_MOST_VALUES = 4_000_000  # numbers, texts, tables; networks have some ten thousand, vocabularies a million
_DEEPEST = 100_000  # tables in tables; the nodes of a graph lie in each other
_MOST_EXPANDED = 2**20  # numbers of a tensor that repeats those of its storage


def is_torch7(path: Path) -> bool:
    """Whether `path` is a file of Torch7: by its name, or by what it begins with."""
    if not path.is_file():
        return False
    if path.suffix in (".t7", ".th7"):
        return True
    with path.open("rb") as file:
        return file.read(15).startswith(_HEADERS)


def read(path: Path) -> Any:
    """Returns the value in the file `path`.

    Raises:
        SurgeryError: The file is damaged, or not Torch7's.
    """
    try:
        buffer = open_buffer(path)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror or error})") from error
    check_start(path, buffer[:64])
    for start, what in _FOREIGN.items():
        if buffer[: len(start)] == start:
            raise SurgeryError(f"{path}: is {what}")
    try:
        return _Reader(AsciiSource(buffer) if is_ascii(buffer[:1]) else BinarySource(buffer, 8)).read()
    except DamagedError as error:
        damage = error
    if not is_ascii(buffer[:1]):
        with contextlib.suppress(DamagedError):
            short = BinarySource(buffer, 4)
            value = _Reader(short).read()
            if not short.left:  # what is left over shows that it was read amiss
                return value
    raise SurgeryError(f"{path}: is truncated, damaged, or not a Torch7 file ({damage}); copy it again") from damage


class _Reader:
    """Reads one value. What lies in it is asked for with ``yield``, so that depth costs no recursion."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[int, Any] = {}
        self._count = 0

    def read(self) -> Any:
        stack, value = [self._value()], None
        while stack:
            try:
                stack[-1].send(value)
            except StopIteration as done:
                stack.pop()
                value = done.value
                continue
            self._count += 1
            if self._count > _MOST_VALUES:
                raise self._source.error(f"it has more than {_MOST_VALUES:,} values")
            if len(stack) >= _DEEPEST:
                raise self._source.error(f"tables lie in each other {_DEEPEST:,} deep")
            stack.append(self._value())
            value = None
        return value

    def _value(self) -> Generator[None, Any, Any]:
        source = self._source
        kind = source.read_int()
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            number = source.read_double()
            return int(number) if abs(number) < 2**53 and number.is_integer() else number
        if kind == _STRING:
            return source.text()
        if kind == _BOOLEAN:
            return source.read_int() == 1
        if kind == _FUNCTION:
            return (yield from self._function(Function()))
        if kind not in (_TABLE, _TORCH, _CLOSURE, _OLD_CLOSURE):
            raise source.error(f"{kind} is not a kind of value")
        index = source.read_int()
        if index in self._known:
            return self._known[index]
        if kind == _TABLE:
            return (yield from self._table(self._remember(index, Table())))
        if kind == _TORCH:
            return (yield from self._object(index))
        return (yield from self._function(self._remember(index, Function())))

    def _remember(self, index: int, value: Any) -> Any:
        self._known[index] = value
        return value

    def _function(self, function: Function) -> Generator[None, Any, Function]:
        """Skips the byte code and the values that the function has with it."""
        self._source.take(self._source.read_int())
        yield
        return function

    def _table(self, table: Table) -> Generator[None, Any, Table]:
        source = self._source
        size = source.read_int()
        if not 0 <= 2 * size * source.least_bytes <= source.left + 1:
            raise source.error(f"a table of {size:,} entries is declared and {source.left:,} bytes left")
        for _ in range(size):
            key = yield
            value = yield
            if key is None or key != key:
                raise source.error("a table has an entry without a key")
            table.entries[("boolean", key) if isinstance(key, bool) else key] = value
        return table

    def _object(self, index: int) -> Generator[None, Any, Any]:
        version = self._source.text()
        name = self._source.text() if version.startswith("V ") else version  # the oldest files have no version
        if not _TYPE.fullmatch(name):
            raise self._source.error(f"{name[:80]!r} is not the name of a class")
        if match := _ARRAY.fullmatch(name):
            kind = match[1] or "Float"
            if kind not in KINDS:
                raise self._source.error(f"{name} is not a type that is known")
            if match[2] == "Storage":
                return self._remember(index, Storage(kind, self._source.numbers(kind, self._source.read_long())))
            return (yield from self._tensor(self._remember(index, Tensor(kind))))
        found = self._remember(index, TorchObject(name))
        fields = yield
        if not isinstance(fields, Table):
            raise self._source.error(f"{name} has a format of its own, which is not known")
        found.fields = fields.entries
        return found

    def _tensor(self, tensor: Tensor) -> Generator[None, Any, Tensor]:
        source = self._source
        dimensions = source.read_int()
        if not 0 <= dimensions <= _MOST_DIMENSIONS:
            raise source.error(f"a tensor of {dimensions:,} dimensions is declared")
        shape, strides = source.longs(dimensions), source.longs(dimensions)
        offset = source.read_long() - 1
        storage = yield
        if not math.prod(shape) or not shape:
            return tensor
        if not isinstance(storage, Storage) or storage.kind != tensor.kind:
            raise source.error("a tensor has no storage of its type")
        shown = "×".join(str(d) for d in shape)
        if min(shape) < 0 or min(strides) < 0 or offset < 0:
            raise source.error(f"a tensor of {shown} with strides {strides} is declared")
        tensor.shape, tensor.strides, tensor.offset, tensor.storage = shape, strides, offset, storage
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if tensor.size and last >= len(storage.data):
            raise source.error(f"a tensor of {shown} looks at number {last:,} of {len(storage.data):,}")
        if tensor.size > max(len(storage.data), _MOST_EXPANDED):
            raise source.error(f"a tensor of {shown} repeats {len(storage.data):,} numbers")
        return tensor
