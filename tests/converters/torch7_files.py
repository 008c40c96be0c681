"""A writer of .t7 files for tests, from the description of the format: torch7's serialization guide and File.lua.

It shares nothing with the reader. What is written: numbers, texts, booleans, None; dicts and lists as tables; arrays as
tensors; `Longs` as a LongStorage; `View` as a tensor that looks at a part of an array; `Obj` as an object of a class;
`Lua` as a function. What is written twice is the same object when it is read.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Key", "Longs", "Lua", "Obj", "View", "module", "t7", "write_t7"]

NAMES = {"f4": "Float", "f8": "Double", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char", "u1": "Byte"}


@dataclasses.dataclass(eq=False)
class Obj:
    """An object of class `type`."""

    type: str
    fields: dict[Any, Any] = dataclasses.field(default_factory=dict)
    version: str | None = "V 1"


@dataclasses.dataclass(eq=False)
class Longs:
    """A torch.LongStorage."""

    numbers: list[int]


@dataclasses.dataclass(eq=False)
class View:
    """A tensor on the storage of a one-dimensional array."""

    base: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclasses.dataclass(eq=False)
class Key:
    """A table as a key in another, which a dict cannot have."""

    table: dict[Any, Any]


@dataclasses.dataclass(eq=False)
class Lua:
    """A function; `kind` 6, 7 or 8 is one of the three ways they were written."""

    kind: int = 8
    code: bytes = b"\x1bLJ\x02\x00"


class _Writer:
    """One file."""

    def __init__(self, ascii: bool, long_size: int, cuda: bool) -> None:
        self.out = io.BytesIO()
        self.ascii = ascii
        self.long = "<q" if long_size == 8 else "<i"
        self.cuda = cuda
        self.indices: dict[int, int] = {}
        self.kept: list[Any] = []

    def number(self, format: str, value: float) -> None:
        if self.ascii:
            self.out.write((b"%.17g\n" % value) if format == "<d" else (b"%d\n" % value))
        else:
            self.out.write(struct.pack(format, value))

    def ints(self, *values: int) -> None:
        for value in values:
            self.number("<i", value)

    def longs(self, values: Any) -> None:
        if self.ascii:
            self.out.write(b" ".join(b"%d" % v for v in values) + (b"\n" if len(values) else b""))
        else:
            for value in values:
                self.number(self.long, value)

    def chars(self, data: bytes) -> None:
        self.ints(len(data))
        self.out.write(data + (b"\n" if self.ascii and data else b""))

    def seen(self, kind: int, value: Any) -> bool:
        """Writes kind and number of something; whether it is in the file already."""
        known = id(value) in self.indices
        index = self.indices.setdefault(id(value), len(self.indices) + 1)
        self.kept.append(value)
        self.ints(kind, index)
        return known

    def head(self, name: str, version: str | None = "V 1") -> None:
        if version is not None:
            self.chars(version.encode())
        self.chars(name.encode())

    def value(self, value: Any) -> None:
        if value is None:
            self.ints(0)
        elif isinstance(value, bool):
            self.ints(5, int(value))
        elif isinstance(value, int | float):
            self.ints(1)
            self.number("<d", value)
        elif isinstance(value, str):
            self.ints(2)
            self.chars(value.encode())
        elif isinstance(value, dict | list):
            self.table(value)
        elif isinstance(value, np.ndarray):
            flat = np.ascontiguousarray(value)
            strides = [s // flat.itemsize for s in flat.strides] if flat.ndim else []
            self.tensor(value, flat.ravel(), flat.shape, strides, 0)
        elif isinstance(value, View):
            self.tensor(value, value.base, value.shape, value.strides, value.offset)
        elif isinstance(value, Longs):
            if not self.seen(4, value):
                self.head("torch.LongStorage")
                self.longs([len(value.numbers)])
                self.longs(value.numbers)
        elif isinstance(value, Lua):
            self.function(value)
        elif not self.seen(4, value):
            self.head(value.type, value.version)
            self.table(value.fields)

    def table(self, value: Any) -> None:
        if not self.seen(3, value):
            entries = dict(enumerate(value, 1)) if isinstance(value, list) else value
            self.ints(len(entries))
            for key, entry in entries.items():
                self.value(key.table if isinstance(key, Key) else key)
                self.value(entry)

    def tensor(self, value: Any, base: np.ndarray, shape: Any, strides: Any, offset: int) -> None:
        if self.seen(4, value):
            return
        kind = NAMES[base.dtype.str[1:]]
        prefix = "torch." + ("Cuda" if self.cuda and kind == "Float" else kind)
        self.head(f"{prefix}Tensor")
        self.ints(len(shape))
        self.longs(shape)
        self.longs(strides)
        self.longs([offset + 1])
        if not shape:
            self.ints(0)
        elif not self.seen(4, value.base if isinstance(value, View) else base):
            self.head(f"{prefix}Storage")
            self.longs([base.size])
            self.numbers(base)

    def numbers(self, base: np.ndarray) -> None:
        kind = base.dtype.str[1:]
        if not self.ascii:
            if kind == "i8":
                self.longs(base.tolist())
            else:
                self.out.write(base.astype("<" + kind).tobytes())
        elif kind in ("u1", "i1"):
            self.out.write(base.tobytes() + b"\n")
        else:
            form = "%.17g" if kind == "f8" else "%.9g" if kind == "f4" else "%d"
            self.out.write(" ".join(form % n for n in base.tolist()).encode() + b"\n")

    def function(self, value: Lua) -> None:
        if value.kind == 6:
            self.ints(6)
        elif self.seen(value.kind, value):
            return
        self.chars(value.code)
        self.table({1: {"name": "upvalue", "value": 1}})


def t7(value: Any, ascii: bool = False, long_size: int = 8, cuda: bool = False) -> bytes:
    """The bytes of a .t7 file that holds `value`."""
    writer = _Writer(ascii, long_size, cuda)
    writer.value(value)
    return writer.out.getvalue()


def write_t7(folder: Path, value: Any, name: str = "net.t7", **how: Any) -> Path:
    """Writes a .t7 file into `folder`; returns its path."""
    path = folder / name
    path.write_bytes(t7(value, **how))
    return path


def module(type: str, *modules: Obj, **fields: Any) -> Obj:
    """A module of package nn, unless `type` says another, with the fields that Torch itself gives to each."""
    name = type if "." in type else f"nn.{type}"
    inner = {"modules": list(modules)} if modules else {}
    return Obj(
        name, {"gradInput": np.zeros(0, np.float64), "train": False, "_type": "torch.FloatTensor", **inner, **fields}
    )
