"""Modules on Lua tables."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from converters.options import Dim
from converters.torch7.context import Context, Nested, module
from converters.torch7.modules.containers import joined

__all__: list[str] = []

_MOST_PARTS = 10_000


def _broadcast(c: Context, values: list[ir.Value]) -> list[Dim | None]:
    """The common dimensions; Torch adds and multiplies only what has the same."""
    dims = c.dims(values[0])
    for value in values[1:]:
        other = c.dims(value)
        if len(other) != len(dims) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(dims, other, strict=True)
        ):
            shown = " and ".join("×".join(map(str, each)) for each in (dims, other))
            raise c.error(f"combines tensors of different shapes: {shown}")
        dims = [a if isinstance(a, int) else b for a, b in zip(dims, other, strict=True)]
    return list(dims)


def _fold(c: Context, op_type: str, values: list[ir.Value]) -> ir.Value:
    dims = _broadcast(c, values)
    result = values[0]
    for value in values[1:]:
        result = c.shaped(getattr(c.op, op_type)(result, value), dims)
    return result


@module("CAddTable")
def add(c: Context) -> ir.Value:
    return _fold(c, "Add", c.values)


@module("CMulTable")
def multiply(c: Context) -> ir.Value:
    return _fold(c, "Mul", c.values)


def _pair(c: Context) -> list[ir.Value]:
    if len(c.values) != 2:
        raise c.error(f"reads two tensors, and is given {len(c.values)}")
    return c.values


@module("CSubTable")
def subtract(c: Context) -> ir.Value:
    return _fold(c, "Sub", _pair(c))


@module("CDivTable")
def divide(c: Context) -> ir.Value:
    return _fold(c, "Div", _pair(c))


@module("CMaxTable")
def maximum(c: Context) -> ir.Value:
    return _fold(c, "Max", c.values)


@module("CMinTable")
def minimum(c: Context) -> ir.Value:
    return _fold(c, "Min", c.values)


@module("JoinTable")
def join_table(c: Context) -> ir.Value:
    return joined(c, c.table, c.integer("dimension"), _example(c))


def _example(c: Context) -> int | None:
    return c.integer("nInputDims", least=1) if c.has("nInputDims") else None


@module("SplitTable")
def split_table(c: Context) -> Nested:
    """The slices along a dimension."""
    axis = c.axis(c.integer("dimension"), example=_example(c))
    size = c.size(axis)
    if size > _MOST_PARTS:
        raise c.error(f"would make a table of {size:,}")
    rest = [d for i, d in enumerate(c.dims()) if i != axis]
    if not rest:
        raise c.error("splits a tensor of one dimension into numbers")
    return [c.shaped(c.op.Gather(c.x, c.op.constant(i, ir.DataType.INT64), axis=axis), rest) for i in range(size)]


@module("SelectTable")
def select_table(c: Context) -> Nested:
    index, size = c.integer("index"), len(c.table)
    place = index - 1 if index > 0 else size + index
    if not 0 <= place < size:
        raise c.error(f"takes entry {index} of a table of {size}")
    return c.table[place]


@module("NarrowTable")
def narrow_table(c: Context) -> Nested:
    offset, length = c.integer("offset", least=1), c.integer("length", 1, least=1)
    if offset + length - 1 > len(c.table):
        raise c.error(f"takes entries {offset} to {offset + length - 1} of a table of {len(c.table)}")
    return c.table[offset - 1 : offset - 1 + length]


@module("FlattenTable")
def flatten_table(c: Context) -> Nested:
    return list(_flat(c.table))


def _flat(nested: Nested) -> Iterator[ir.Value]:
    if isinstance(nested, ir.Value):
        yield nested
    else:
        for each in nested:
            yield from _flat(each)
