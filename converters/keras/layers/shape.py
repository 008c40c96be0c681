"""Layers that only move numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__ = ["reshaped"]


def _product(dims: Sequence[Dim]) -> int | None:
    return math.prod(int(d) for d in dims) if not any(isinstance(d, str) for d in dims) else None


@layer("Flatten")
def flatten(c: Context) -> Tensor:
    """All but the batch in one axis, in the order of channels last: Keras turns what has them first around."""
    x = c.x
    value = c.plain()
    if "data_format" in c.config and c.channels_first and x.rank > 2:
        value = c.op.Transpose(value, perm=[0, *range(2, x.rank), 1])
    if x.rank == 1:
        return c.tensor(c.op.Unsqueeze(value, c.op.constant([1])), [*x.dims, 1])
    return c.tensor(c.op.Flatten(value, axis=1), [x.dims[0], _product(x.dims[1:])]).unmasked()


def reshaped(c: Context, x: Tensor, target: Sequence[Any], batch: Dim | None) -> Tensor:
    """`x` as [batch, *target]; one size of `target` may be -1 or None."""
    count = math.prod(int(d) for d in target if isinstance(d, int) and d >= 0)
    free = [i for i, d in enumerate(target) if not isinstance(d, int) or d < 0]
    if len(free) > 1:
        raise c.error(f"reshapes to {list(target)}, with more than one free size")
    total = _product(x.dims[1:])
    dims: list[Dim | None] = [d if isinstance(d, int) and d >= 0 else None for d in target]
    if total is not None and free and count:
        if total % count:
            raise c.error(f"reshapes {list(x.dims[1:])} to {list(target)}, which have other numbers of elements")
        dims[free[0]] = total // count
    elif total is not None and not free and count != total:
        raise c.error(f"reshapes {list(x.dims[1:])} to {list(target)}, which have other numbers of elements")
    result: list[Dim | None] = [batch, *dims]
    return c.tensor(c.reshape(c.plain(x), result, {0: 0}), result)


@layer("Reshape")
def reshape(c: Context) -> Tensor:
    """Other sizes in the same order of numbers, which is that of Keras's own layout."""
    target = c.get("target_shape")
    if not isinstance(target, list | tuple):
        raise c.error(f"target_shape is {target!r} and must be a list of sizes")
    x = c.x
    if x.rank == 2 and len(target) == 3 and list(target[:2]) == [1, 1] and isinstance(x.dims[1], int):
        # one pixel of an image: its channels are in their order in any layout
        size = x.dims[1]
        return c.tensor(c.op.Reshape(x.value, c.op.constant([0, size, 1, 1])), [x.dims[0], 1, 1, size], moved=True)
    return reshaped(c, x, target, x.dims[0])


@layer("Permute")
def permute(c: Context) -> Tensor:
    """Other order of the axes behind the batch, counted from 1."""
    dims = c.get("dims")
    if not isinstance(dims, list | tuple) or sorted(dims) != list(range(1, c.x.rank)):
        raise c.error(f"dims is {dims!r} and must have each of the axes from 1 to {c.x.rank - 1} once")
    order = [0, *dims]
    return c.tensor(c.op.Transpose(c.plain(), perm=order), [c.x.dims[i] for i in order])


@layer("RepeatVector")
def repeat_vector(c: Context) -> Tensor:
    """[N, C] as [N, n, C]."""
    count, x = c.integer("n"), c.x
    if x.rank != 2:
        raise c.error(f"needs an input of 2 dimensions, and has one of {x.rank}")
    op = c.op
    y = op.Tile(op.Unsqueeze(x.value, op.constant([1])), op.constant([1, count, 1]))
    return c.tensor(y, [x.dims[0], count, x.dims[1]])


def _pairs(c: Context, name: str, rank: int) -> list[tuple[int, int]]:
    """An argument that says something of both ends of each spatial axis."""
    value = c.get(name, 1 if rank == 1 else [[1, 1]] * rank)
    if isinstance(value, int):
        value = [value] * rank
    if isinstance(value, dict):  # Keras 1
        value = [[value.get(f"{end}_pad", 0) for end in axis] for axis in (("top", "bottom"), ("left", "right"))]
    if rank == 1 and isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        value = [value]
    if rank == 2 and isinstance(value, list) and len(value) == 4 and all(isinstance(v, int) for v in value):
        value = [value[:2], value[2:]]
    pairs = [[v, v] if isinstance(v, int) else v for v in value] if isinstance(value, list) else []
    right = all(isinstance(p, list) and len(p) == 2 and all(isinstance(v, int) and v >= 0 for v in p) for p in pairs)
    if len(pairs) != rank or not right:
        raise c.error(f"{name} is {value!r} and must be two whole numbers for each of {rank} axes")
    return [(p[0], p[1]) for p in pairs]


@layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def zero_padding(c: Context) -> Tensor:
    """Zeros around an image."""
    x, rank = c.images(), c.x.rank - 2
    pads = _pairs(c, "padding", rank)
    ends = [p[0] for p in pads], [p[1] for p in pads]
    y = c.op.Pad(x, c.op.constant([0, 0, *ends[0], 0, 0, *ends[1]]), _zero(c, x))
    dims = c.image_dims()
    sizes = [d + a + b if isinstance(d, int) else None for d, (a, b) in zip(dims[2:], pads, strict=True)]
    return c.image(y, [*dims[:2], *sizes])


def _zero(c: Context, x: ir.Value) -> ir.Value:
    return c.op.constant(0.0, x.dtype or ir.DataType.FLOAT)


@layer("Cropping1D", "Cropping2D", "Cropping3D")
def cropping(c: Context) -> Tensor:
    """An image without its margins."""
    x, rank = c.images(), c.x.rank - 2
    crops = _pairs(c, "cropping", rank)
    op = c.op
    starts = [a for a, _ in crops]
    ends = [-b if b else 2**31 - 1 for _, b in crops]
    y = op.Slice(x, op.constant(starts), op.constant(ends), op.constant(list(range(2, 2 + rank))))
    dims = c.image_dims()
    sizes = [d - a - b if isinstance(d, int) else None for d, (a, b) in zip(dims[2:], crops, strict=True)]
    return c.image(y, [*dims[:2], *sizes])
