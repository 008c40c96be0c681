"""Gradients of pooling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule
from surgery.autodiff.rules.window import Window, transposed_sum, window

__all__: list[str] = []


def _indices(c: Context) -> ir.Value:
    """Where each maximum was found, counted over the whole tensor in row-major order."""
    if not c.attr("storage_order", 0):
        return c.extra_output(1, ir.DataType.INT64)
    attributes = {k: c.attr(k) for k in c.node.attributes if k != "storage_order"}
    return c.op.MaxPool(c.x(), _outputs=2, **attributes)[1]


@rule("MaxPool")
def max_pool(c: Context) -> Gradients:
    """Adds each dy to where its maximum was found.

    The MaxPoolGrad of the onnxruntime-training build is no faster, and needs to know the batch's size beforehand.
    """
    dtype = c.dy.dtype or ir.DataType.FLOAT
    if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return [_unpooled(c, c.dy, dtype)]
    # Runtimes add at places, and better, in float.
    wide = _unpooled(c, c.op.Cast(c.dy, to=int(ir.DataType.FLOAT)), ir.DataType.FLOAT)
    return [c.op.Cast(wide, to=int(dtype))]


def _unpooled(c: Context, dy: ir.Value, dtype: ir.DataType) -> ir.Value:
    op, flat, shape = c.op, c.op.constant([-1]), c.shape_of(c.x())
    # Where a window has only what is no number, the runtimes give a place before the first, and refuse it here.
    indices = op.Max(_indices(c), op.constant([0]))
    win = window(c, c.attr("kernel_shape"))
    overlaps = [-(-k // s) for k, s in zip(win.span, win.strides, strict=True)]
    if max(overlaps) == 1 and dtype == ir.DataType.FLOAT:
        return op.MaxUnpool(dy, indices, shape, kernel_shape=[1] * win.spatial)
    size = op.ReduceProd(shape, keepdims=1)
    zeros = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, dtype.numpy())))
    if c.opset >= 16:
        places, dy = op.Reshape(indices, flat), op.Reshape(dy, flat)
        return op.Reshape(op.ScatterElements(zeros, places, dy, axis=0, reduction="add"), shape)
    # Before operator set 16 nothing adds at places: windows that do not overlap are written apart, then summed.
    parts = []
    for start in itertools.product(*[range(n) for n in overlaps]):
        some, places = (
            op.Slice(v, np.array(start), np.full(win.spatial, 2**31), np.array(win.axes), np.array(overlaps))
            for v in (dy, indices)
        )
        parts.append(op.ScatterElements(zeros, op.Reshape(places, flat), op.Reshape(some, flat), axis=0))
    return op.Reshape(op.Sum(*parts), shape)


@rule("AveragePool")
def average_pool(c: Context) -> Gradients:
    win = window(c, c.attr("kernel_shape"))
    return [transposed_sum(c, _divided(c, win), win)]


def _divided(c: Context, win: Window) -> ir.Value:
    """dy divided by how many elements its window averages, as the runtime counts them."""
    op, dtype = c.op, c.dy.dtype or ir.DataType.FLOAT
    sizes = [*win.size_x, *win.size_y]
    whole = None not in sizes and all(r is not None and r >= 0 for r in win.rest)
    if whole and (not any(win.pads) or c.attr("count_include_pad", 0)):
        return op.Mul(c.dy, 1.0 / math.prod(win.kernel))
    # The average of ones is inside / count, so 1 / count = average / inside.
    shape = op.Concat(np.array([1, 1]), op.Slice(c.shape_of(c.x()), np.array([2]), np.array([2**31])), axis=0)
    ones = op.ConstantOfShape(shape, value=ir.tensor(np.ones(1, dtype.numpy())))
    average = op.AveragePool(ones, **{k: c.attr(k) for k in c.node.attributes})
    if not any(win.pads) and whole:
        inside: ir.Value | float = float(math.prod(win.kernel))
    else:
        # Overhanging windows see zeros; what is padded too much makes windows that are cut off again.
        end = [q + s - 1 for q, s in zip(win.end, win.strides, strict=True)]
        count = op.Conv(
            ones,
            op.constant(np.ones([1, 1, *win.kernel], dtype.numpy())),
            strides=win.strides,
            dilations=win.dilations,
            pads=[*win.begin, *end],
        )
        sizes_y = op.Slice(c.shape_of(c.y()), np.array([2]), np.array([2**31]))
        inside = op.Slice(count, np.zeros(win.spatial, np.int64), sizes_y, np.array(win.axes))
    return op.Mul(c.dy, op.Div(average, inside))


@rule("LpPool")
def lp_pool(c: Context) -> Gradients:
    """y = (Σ |x|ᵖ)^(1/p): dx = |x|ᵖ⁻¹ sign(x) · Σ dy y¹⁻ᵖ over the windows of x."""
    p = c.attr("p", 2)
    return [c.op.Mul(_power(c, p), transposed_sum(c, _scaled(c, p), window(c, c.attr("kernel_shape"))))]


@rule("GlobalLpPool")
def global_lp_pool(c: Context) -> Gradients:
    p = c.attr("p", 2)
    return [c.op.Mul(_power(c, p), _scaled(c, p))]


def _power(c: Context, p: int) -> ir.Value:
    """|x|ᵖ⁻¹ sign(x)."""
    if p == 2:
        return c.x()
    sign = c.op.Sign(c.x())
    return sign if p == 1 else c.op.Mul(sign, c.op.Pow(c.op.Abs(c.x()), float(p - 1)))


def _scaled(c: Context, p: int) -> ir.Value:
    """dy y¹⁻ᵖ, and something finite where y is 0 and with it each x."""
    if p == 1:
        return c.dy
    power = c.y() if p == 2 else c.op.Pow(c.y(), float(p - 1))
    return c.op.Div(c.dy, c.op.Max(power, 1e-30))


@rule("GlobalAveragePool")
def global_average_pool(c: Context) -> Gradients:
    sizes = c.dims(c.x())[2:]
    shape = c.shape_of(c.x())
    if None not in sizes:
        share = c.op.Mul(c.dy, 1.0 / math.prod(d or 1 for d in sizes))
    else:
        count = c.op.ReduceProd(c.op.Slice(shape, np.array([2]), np.array([2**31])), keepdims=0)
        share = c.op.Div(c.dy, c.op.Cast(count, to=int(c.dy.dtype or ir.DataType.FLOAT)))
    return [c.op.Expand(share, shape)]


@rule("GlobalMaxPool")
def global_max_pool(c: Context) -> Gradients:
    """The first of equal maxima takes it all, as in MaxPool."""
    op = c.op
    flat = op.Reshape(c.x(), np.array([0, 0, -1]))
    place = op.ArgMax(flat, axis=2, keepdims=1)
    zeros = op.ConstantOfShape(op.Shape(flat), value=ir.tensor(np.zeros(1, (c.dy.dtype or ir.DataType.FLOAT).numpy())))
    dx = op.ScatterElements(zeros, place, op.Reshape(c.dy, np.array([0, 0, 1])), axis=2)
    return [op.Reshape(dx, c.shape_of(c.x()))]
