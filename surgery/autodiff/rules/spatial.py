"""Gradients of padding and resizing, and of moving channels into space and back.

Both a padding that repeats the input and a resizing are linear maps, one axis after the other. Such an axis' gradient
is a product with the transposed matrix of its map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, no_gradient, rule

__all__: list[str] = []

no_gradient("Pad", inputs=[1, 3])
no_gradient("Resize", inputs=[1, 2, 3])

_END = np.array([2**31])


def _dtype(c: Context) -> ir.DataType:
    return c.dy.dtype or ir.DataType.FLOAT


def _dim(c: Context, shape: ir.Value, axis: int) -> ir.Value:
    """Element `axis` of `shape`, as a tensor of one element."""
    return c.op.Slice(shape, np.array([axis]), np.array([axis + 1]))


def _along(c: Context, value: ir.Value, matrix: ir.Value, axis: int, rank: int) -> ir.Value:
    """Multiplies axis `axis` of `value`, of size m, by `matrix`, [m, n]."""
    if axis == rank - 1:
        return c.op.MatMul(value, matrix)
    if axis == rank - 2:
        return c.op.MatMul(c.op.Transpose(matrix, perm=[1, 0]), value)
    swap = list(range(rank))
    swap[axis], swap[-1] = swap[-1], swap[axis]
    return c.op.Transpose(c.op.MatMul(c.op.Transpose(value, perm=swap), matrix), perm=swap)


@rule("Pad")
def pad(c: Context) -> Gradients:
    op = c.op
    axes = c.x(3) if c.has(3) else None
    if c.attr("mode", "constant") == "constant":
        inner = op.Pad(c.dy, op.Neg(c.x(1)), *([None, axes] if axes is not None else []))
        fill = None
        if c.wants(2):
            fill = op.Reshape(
                op.Sub(op.ReduceSum(c.dy, keepdims=0), op.ReduceSum(inner, keepdims=0)), c.shape_of(c.x(2))
            )
        return [inner if c.wants(0) else None, None, fill]
    return [_unrepeat(c)]


def _unrepeat(c: Context) -> ir.Value:
    """Adds each repeated element of dy to the one that it repeats; the operator itself says which, on 0, 1, 2, …"""
    op, rank, shape, dx = c.op, c.rank(c.x()), c.shape_of(c.x()), c.dy
    amounts, axes = c.constant_of(1), c.constant_of(3)
    padded = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    for place, axis in enumerate(padded):
        if amounts is not None and not amounts[place] and not amounts[len(padded) + place]:
            continue
        ends = op.Gather(c.x(1), np.array([place, len(padded) + place]))
        elements = op.Range(np.array(0), op.Squeeze(_dim(c, shape, axis)), np.array(1))
        source = op.Pad(elements, ends, mode=c.attr("mode"))
        same = op.Equal(op.Unsqueeze(source, np.array([1])), elements)
        dx = _along(c, dx, op.Cast(same, to=int(_dtype(c))), axis, rank)
    return dx


@rule("DepthToSpace")
def depth_to_space(c: Context) -> Gradients:
    op, block = c.op, c.attr("blocksize")
    if c.attr("mode", "DCR") == "DCR":
        return [op.SpaceToDepth(c.dy, blocksize=block)]
    shape = c.shape_of(c.x())
    blocks = np.array([block])
    split = op.Concat(_dim(c, shape, 0), np.array([-1]), _dim(c, shape, 2), blocks, _dim(c, shape, 3), blocks, axis=0)
    return [op.Reshape(op.Transpose(op.Reshape(c.dy, split), perm=[0, 1, 3, 5, 2, 4]), shape)]


@rule("SpaceToDepth")
def space_to_depth(c: Context) -> Gradients:
    return [c.op.DepthToSpace(c.dy, blocksize=c.attr("blocksize"))]


@rule("Resize")
def resize(c: Context) -> Gradients:
    rank = c.rank(c.x())
    repeats = _repeats(c, rank)
    if repeats is not None:
        pooled = c.op.AveragePool(c.dy, kernel_shape=repeats, strides=repeats)
        return [c.op.Mul(pooled, float(math.prod(repeats)))]
    dx = c.dy
    for place, axis in reversed(list(enumerate(_resized(c, rank)))):
        if axis is not None:
            dx = _along(c, dx, _resizing(c, place, axis, rank), axis, rank)
    return [dx]


def _resized(c: Context, rank: int) -> list[int | None]:
    """The axes that inputs 1, 2 and 3 speak of, None for each that stays as it is."""
    axes: list[int | None] = [int(a) % rank for a in c.attr("axes") or range(rank)]
    crops = c.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    scales, sizes, before = c.constant_of(2), c.constant_of(3), c.dims(c.x())
    for place, axis in enumerate(axes):
        assert axis is not None
        if crops:
            continue
        if scales is not None and scales.size:
            stays = scales[place] == 1
        else:
            after = c.dims(c.y())[axis] if sizes is None else int(sizes[place])
            stays = after is not None and after == before[axis]
        if stays:
            axes[place] = None
    return axes


def _resizing(c: Context, place: int, axis: int, rank: int) -> ir.Value:
    """The transposed matrix of one axis' map, [resized, original]: rows of the identity resized."""
    op, kept = c.op, ("axes", "keep_aspect_ratio_policy", "extrapolation_value")
    size = _dim(c, c.shape_of(c.x()), axis)
    square = op.Concat(size, size, axis=0)
    identity = op.EyeLike(op.ConstantOfShape(square, value=ir.tensor(np.zeros(1, np.float32))))
    attributes = {k: c.attr(k) for k in c.node.attributes if k not in kept}
    count = len(c.attr("axes") or range(rank))
    roi = scales = sizes = None
    if c.has(1) and attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        ends = op.Cast(op.Gather(c.x(1), np.array([place, count + place])), to=int(ir.DataType.FLOAT))
        start, end = _dim(c, ends, 0), _dim(c, ends, 1)
        zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
        roi = op.Concat(zeros, start, ones, end, axis=0)
    if c.has(2) and (c.constant_of(2) is None or c.constant_of(2).size):
        scales = op.Concat(np.ones(3, np.float32), op.Gather(c.x(2), np.array([place])), axis=0)
    elif c.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        scales = op.Concat(np.ones(3, np.float32), _common_scale(c), axis=0)
    else:
        sizes = op.Concat(np.array([1, 1]), size, _dim(c, c.shape_of(c.y()), axis), axis=0)
    rows = op.Resize(
        op.Unsqueeze(identity, np.array([0, 1])), roi, scales, *([] if sizes is None else [sizes]), **attributes
    )
    return op.Cast(op.Transpose(op.Squeeze(rows, np.array([0, 1])), perm=[1, 0]), to=int(_dtype(c)))


def _common_scale(c: Context) -> ir.Value:
    """The one scale of keep_aspect_ratio_policy, as a tensor of one element."""
    op = c.op
    before = c.shape_of(c.x())
    if c.attr("axes"):
        before = op.Gather(before, np.array(c.attr("axes")))
    ratios = op.Div(*(op.Cast(v, to=int(ir.DataType.FLOAT)) for v in (c.x(3), before)))
    smallest = c.attr("keep_aspect_ratio_policy") == "not_larger"
    return c.reduce("ReduceMin" if smallest else "ReduceMax", ratios, [0])


def _repeats(c: Context, rank: int) -> list[int] | None:
    """How often each element of the spatial axes is repeated, where that is all that the resizing does."""
    if c.attr("mode", "nearest") != "nearest" or rank < 3:
        return None
    if c.attr("coordinate_transformation_mode", "half_pixel") not in ("half_pixel", "asymmetric", "pytorch_half_pixel"):
        return None
    axes, scales = [int(a) % rank for a in c.attr("axes") or range(rank)], c.constant_of(2)
    if scales is not None and scales.size:
        by_axis = dict(zip(axes, scales.tolist(), strict=True))
        factors: Sequence[float] = [by_axis.get(a, 1.0) for a in range(rank)]
    else:
        before, after = c.dims(c.x()), c.dims(c.y())
        if None in before or None in after:
            return None
        factors = [m / n for m, n in zip(after, before, strict=True) if m and n]
    repeats = [int(f) for f in factors]
    if list(factors) != repeats or repeats[:2] != [1, 1] or not all(_repeats_only(c, r) for r in repeats):
        return None
    return repeats[2:]


def _repeats_only(c: Context, scale: int) -> bool:
    """Whether element i of the nearest resizing by `scale` is i // scale (ONNX, Resize, `nearest_mode`)."""
    if scale < 1:
        return False
    out, last = np.arange(4 * scale), 3
    half = c.attr("coordinate_transformation_mode", "half_pixel") != "asymmetric"
    x = (out + 0.5) / scale - 0.5 if half else out / scale
    rounding = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[c.attr("nearest_mode", "round_prefer_floor")]
    return bool((np.clip(rounding, 0, last) == out // scale).all())
