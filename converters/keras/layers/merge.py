"""Layers that join several values."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__ = ["broadcast", "concatenated"]


def _same_rank(c: Context, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Adds axes of size 1 behind the batch where some have fewer, as Keras does."""
    rank = max(t.rank for t in inputs)
    result = []
    for t in inputs:
        missing = rank - t.rank
        if missing and t.rank:
            axes = list(range(1, 1 + missing))
            value = c.op.Unsqueeze(c.plain(t), c.op.constant(axes))
            t = c.tensor(value, [t.dims[0], *[1] * missing, *t.dims[1:]])
        result.append(t)
    return result


def _one_layout(c: Context, inputs: Sequence[Tensor]) -> tuple[list[ir.Value], bool]:
    """The values in one layout, moved where one of them is."""
    moved = any(t.moved for t in inputs)
    return [c.builder.layouts.get(t, moved) for t in inputs], moved


def _broadcast_dim(c: Context, sizes: Sequence[Dim]) -> Dim:
    numbers = {d for d in sizes if isinstance(d, int) and d != 1}
    if len(numbers) > 1:
        raise c.error(f"its inputs have sizes that do not go together: {', '.join(map(str, sizes))}")
    names = [d for d in sizes if isinstance(d, str)]
    return next(iter(numbers), names[0] if names else 1)


def broadcast(c: Context, op_type: str, inputs: Sequence[Tensor]) -> Tensor:
    """`op_type` of two values at a time, each broadcast to the others' shapes."""
    same = _same_rank(c, inputs)
    values, moved = _one_layout(c, same)
    dims = [_broadcast_dim(c, sizes) for sizes in zip(*(t.dims for t in same), strict=True)]
    y = functools.reduce(lambda a, b: getattr(c.op, op_type)(a, b), values)
    return c.tensor(y, dims, moved=moved)


_OPERATORS = {"Add": "Add", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min", "Subtract": "Sub", "Average": "Add"}


@layer(*_OPERATORS)
def elementwise(c: Context) -> Tensor:
    """Sum, product, …, of any number of inputs."""
    inputs = [c.floats(t) for t in c.inputs]
    if len(inputs) < 2 or (c.layer.type == "Subtract" and len(inputs) != 2):
        raise c.error(f"has {len(inputs)} inputs")
    y = broadcast(c, _OPERATORS[c.layer.type], inputs)
    return c.like(y, c.op.Mul(y.value, 1 / len(inputs))) if c.layer.type == "Average" else y


def concatenated(c: Context, inputs: Sequence[Tensor], axis: int) -> Tensor:
    """Inputs one behind the other along an axis of Keras."""
    if any(t.rank != inputs[0].rank for t in inputs):
        raise c.error("its inputs have different numbers of dimensions")
    axis = c.axis(axis, inputs[0])
    values, moved = _one_layout(c, inputs)
    dims: list[Dim | None] = list(inputs[0].dims)
    sizes = [t.dims[axis] for t in inputs]
    dims[axis] = sum(int(d) for d in sizes) if all(isinstance(d, int) for d in sizes) else None
    place = Tensor(values[0], inputs[0].dims, moved).axis(axis)
    return c.tensor(c.op.Concat(*values, axis=place), dims, moved=moved)


@layer("Concatenate")
def concatenate(c: Context) -> Tensor:
    """Inputs one behind the other."""
    return concatenated(c, c.inputs, c.get("axis", -1))


@layer("CustomScaleLayer")
def scaled_sum(c: Context) -> Tensor:
    """x + scale · y, as InceptionResNetV2 has it."""
    x, y = (c.floats(t) for t in c.inputs)
    return broadcast(c, "Add", [x, c.like(y, c.op.Mul(y.value, c.number("scale", 1.0)))])


@layer("Dot")
def dot(c: Context) -> Tensor:
    """Products over one axis of each, example by example."""
    if len(c.inputs) != 2:
        raise c.error(f"has {len(c.inputs)} inputs and takes 2")
    a, b = (c.floats(t) for t in c.inputs)
    axes = c.get("axes")
    first, second = (axes, axes) if isinstance(axes, int) else axes
    i, j = c.axis(first, a), c.axis(second, b)
    if a.rank not in (2, 3) or b.rank not in (2, 3) or 0 in (i, j):
        raise c.error(f"multiplies values of {a.rank} and {b.rank} dimensions along {axes}, which cannot be converted")
    op, values = c.op, [c.plain(a), c.plain(b)]
    if c.get("normalize", False):
        values = [op.LpNormalization(v, axis=axis, p=2) for v, axis in zip(values, (i, j), strict=True)]
    if a.rank == b.rank == 2:
        y = op.ReduceSum(op.Mul(*values), op.constant([1]), keepdims=1)
        return c.tensor(y, [a.dims[0], 1])
    x, y = values
    x = op.Unsqueeze(x, op.constant([1])) if a.rank == 2 else x if i == 2 else op.Transpose(x, perm=[0, 2, 1])
    y = op.Unsqueeze(y, op.constant([2])) if b.rank == 2 else y if j == 1 else op.Transpose(y, perm=[0, 2, 1])
    product = op.MatMul(x, y)
    rest = [[d for axis, d in enumerate(t.dims) if axis not in (0, k)] for t, k in ((a, i), (b, j))]
    gone = [axis for axis, t in ((1, a), (2, b)) if t.rank == 2]
    if gone:
        product = op.Squeeze(product, op.constant(gone))
    return c.tensor(product, [a.dims[0], *rest[0], *rest[1]])
