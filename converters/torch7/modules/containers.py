"""Modules that hold modules."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.options import Dim
from converters.torch7.context import Context, Nested, module
from converters.torch7.objects import TorchObject

__all__ = ["joined"]


@module("Sequential")
def sequential(c: Context) -> Nested:
    value = c.input
    for place, each in enumerate(c.modules, 1):
        value = c.run(each, place, value)
    return value


@module("NoBackprop", "DataParallel", "DataParallelTable", "DontCast", "GPU", "WeightNorm", "ZeroGrad")
def wrapper(c: Context) -> Nested:
    """What only concerns training or the machine; a DataParallelTable has copies, of which the first is taken."""
    if not c.modules:
        raise c.error("holds no module")
    return c.run(c.modules[0], 1, c.input)


@module("ConcatTable")
def concat_table(c: Context) -> Nested:
    return [c.run(each, place, c.input) for place, each in enumerate(c.modules, 1)]


@module("ParallelTable")
def parallel_table(c: Context) -> Nested:
    if len(c.table) != len(c.modules):
        raise c.error(f"has {len(c.modules)} modules for a table of {len(c.table)}")
    return [c.run(each, place, value) for place, (each, value) in enumerate(zip(c.modules, c.table, strict=True), 1)]


@module("MapTable")
def map_table(c: Context) -> Nested:
    """One module, with the same parameters, for each entry."""
    return [c.run(_one(c), 1, value) for value in c.table]


def _one(c: Context) -> TorchObject:
    found = c.module.fields.get("module")
    found = found if isinstance(found, TorchObject) else next(iter(c.modules), None)
    if found is None:
        raise c.error("holds no module")
    return found


@module("Concat")
def concat(c: Context) -> ir.Value:
    """Joins what its modules make of the same input."""
    made = [c.run(each, place, c.input) for place, each in enumerate(c.modules, 1)]
    return joined(c, made, c.integer("dimension"))


@module("DepthConcat", "InceptionConcat")
def depth_concat(c: Context) -> ir.Value:
    """Concat whose smaller outputs get zeros around them."""
    made = _values(c, [c.run(each, place, c.input) for place, each in enumerate(c.modules, 1)])
    axis = c.axis(c.integer("dimension"), made[0])
    rank = c.rank(made[0])
    if any(c.rank(value) != rank for value in made):
        raise c.error("joins tensors of different numbers of dimensions")
    others = [i for i in range(rank) if i != axis and len({c.dims(value)[i] for value in made}) > 1]
    sizes = {i: max(c.size(i, value) for value in made) for i in others}
    padded: list[Nested] = []
    for value in made:
        missing = {i: size - c.size(i, value) for i, size in sizes.items()}
        if any(missing.values()):
            begin = [missing.get(i, 0) // 2 for i in range(rank)]
            end = [missing.get(i, 0) - begin[i] for i in range(rank)]
            dims = [sizes.get(i, d) for i, d in enumerate(c.dims(value))]
            value = c.shaped(c.op.Pad(value, c.op.constant(np.array([*begin, *end], np.int64)), 0.0), dims)
        padded.append(value)
    return joined(c, padded, axis + 1)


@module("Parallel")
def parallel(c: Context) -> ir.Value:
    """A module for each slice along one dimension; their outputs are joined along another."""
    axis = c.axis(c.integer("inputDimension"))
    if c.size(axis) != len(c.modules):
        raise c.error(f"has {len(c.modules)} modules for {c.size(axis)} slices")
    rest = [d for i, d in enumerate(c.dims()) if i != axis]
    made = []
    for place, each in enumerate(c.modules, 1):
        c.op.prefix = f"{c.name}/"
        part = c.shaped(c.op.Gather(c.x, c.op.constant(place - 1, ir.DataType.INT64), axis=axis), rest)
        made.append(c.run(each, place, part))
    return joined(c, made, c.integer("outputDimension"))


def _values(c: Context, made: list[Nested]) -> list[ir.Value]:
    values = [value for value in made if isinstance(value, ir.Value)]
    if len(values) != len(made) or not values:
        raise c.error("joins tensors, and is given a table or nothing")
    return values


def joined(c: Context, made: list[Nested], dimension: int, example: int | None = None) -> ir.Value:
    """The values joined along a dimension of Torch's."""
    values = _values(c, made)
    c.op.prefix = f"{c.name}/"
    axis = c.axis(dimension, values[0], example)
    dims: list[Dim | None] = list(c.dims(values[0]))
    for value in values[1:]:
        other = c.dims(value)
        if len(other) != len(dims):
            raise c.error("joins tensors of different numbers of dimensions")
        for i, (a, b) in enumerate(zip(dims, other, strict=True)):
            if i == axis:
                dims[i] = a + b if isinstance(a, int) and isinstance(b, int) else None
            elif isinstance(a, int) and isinstance(b, int) and a != b:
                raise c.error(f"joins tensors along axis {axis} that have sizes {a} and {b} along axis {i}")
            elif not isinstance(a, int):
                dims[i] = b
    return c.shaped(c.op.Concat(*values, axis=axis), dims)
