"""Pooling windows that do not fit evenly, with the arithmetic of Caffe and Torch7 (pooling_layer.cpp, THNN).

The number of windows is rounded up or down: (size + 2 pad − kernel) / stride + 1, less one where that last window would
start behind the end padding. An average divides by the window's area inside the padded input. ONNX's own ceil_mode
differs in both, and between versions of ONNX Runtime; so the end padding is written out.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from converters.context import BaseContext
from converters.options import Dim

__all__ = ["Window", "average_pool", "end_padding", "max_pool", "window_attributes", "window_counts"]

LOWEST = float(np.finfo(np.float32).min)  # what a maximum starts from


@dataclasses.dataclass(frozen=True)
class Window:
    """A pooling window over one axis.

    Attributes:
        kernel: Its width.
        stride: How far apart windows are.
        pad: Padding on either side.
        ceil: Whether the number of windows is rounded up.
    """

    kernel: int
    stride: int
    pad: int
    ceil: bool = True

    def count(self, size: int) -> int:
        """How many windows an axis of `size` has."""
        span = size + 2 * self.pad - self.kernel
        count = (-(-span // self.stride) if self.ceil else span // self.stride) + 1
        if self.pad and (count - 1) * self.stride >= size + self.pad:
            count -= 1
        return count

    def end(self, size: int) -> int:
        """How much padding behind the axis makes exactly `count` windows fit; never negative."""
        return max(0, (self.count(size) - 1) * self.stride + self.kernel - size - self.pad)


def window_counts(c: BaseContext, x: ir.Value, windows: list[Window]) -> list[Dim | None]:
    sizes: list[Dim | None] = []
    for size, window in zip(c.dims(x)[2:], windows, strict=True):
        if isinstance(size, int) and window.count(size) < 1:
            raise c.error(f"its window of {window.kernel} does not fit into {size} with {window.pad} of padding")
        sizes.append(window.count(size) if isinstance(size, int) else None)
    return sizes


def end_padding(c: BaseContext, x: ir.Value, windows: list[Window]) -> list[int] | ir.Value:
    """The padding behind each axis (see `Window.end`): numbers, or where sizes are unknown an int64 vector [2]."""
    sizes = c.dims(x)[2:]
    if all(isinstance(size, int) for size in sizes):
        return [w.end(int(size)) for w, size in zip(windows, sizes, strict=True)]
    op = c.op
    size = op.Shape(x, start=2, end=4)
    kernel, stride, pad, up, clip = (
        op.constant([int(v) for v in column])
        for column in zip(
            *((w.kernel, w.stride, w.pad, (w.stride - 1) * w.ceil, w.pad > 0) for w in windows), strict=True
        )
    )
    # (count − 1) · stride, rounded up or down, and one stride less where the last window starts behind the end.
    span = op.Sub(op.Add(op.Add(size, op.Add(pad, pad)), up), kernel)
    last = op.Mul(op.Div(span, stride), stride)
    over = op.Mul(op.Cast(op.GreaterOrEqual(last, op.Add(size, pad)), to=ir.DataType.INT64), clip)
    last = op.Sub(last, op.Mul(over, stride))
    return op.Max(op.Sub(op.Add(last, kernel), op.Add(size, pad)), op.constant([0, 0]))


def max_pool(c: BaseContext, x: ir.Value, windows: list[Window]) -> ir.Value:
    """Maxima of windows; one that lies wholly behind the input has Caffe's lowest number."""
    op, begin, end = c.op, [w.pad for w in windows], end_padding(c, x, windows)
    sizes = window_counts(c, x, windows)
    if isinstance(end, ir.Value) and all(w.ceil and not w.pad and w.stride <= w.kernel for w in windows):
        # Here every reading of ceil_mode gives the same.
        y = _pool(c, "MaxPool", x, windows, [0] * 4, ceil_mode=1)
    elif isinstance(end, ir.Value) or any(e >= w.kernel for e, w in zip(end, windows, strict=True)):
        tail = end if isinstance(end, ir.Value) else op.constant(end)
        pads = op.Concat(op.constant([0, 0, *begin, 0, 0]), tail, axis=0)
        y = _pool(c, "MaxPool", op.Pad(x, pads, LOWEST), windows, [0] * 4)
    else:
        y = _pool(c, "MaxPool", x, windows, [*begin, *end])
    return c.shaped(y, [*c.dims(x)[:2], *sizes])


def average_pool(c: BaseContext, x: ir.Value, windows: list[Window]) -> ir.Value:
    """Averages of windows over their area inside the input and its padding, zeros included."""
    op, begin, end = c.op, [w.pad for w in windows], end_padding(c, x, windows)
    sizes = window_counts(c, x, windows)
    dims = [*c.dims(x)[:2], *sizes]
    if isinstance(end, ir.Value) or any(e >= w.kernel for e, w in zip(end, windows, strict=True)):
        return c.shaped(_average_by_sums(c, x, windows, end), dims)
    beyond = [e - p for e, p in zip(end, begin, strict=True)]
    if max(beyond) <= 0:
        return c.shaped(_pool(c, "AveragePool", x, windows, [*begin, *end], count_include_pad=1), dims)
    if any(begin):
        x = op.Pad(x, op.constant([0, 0, *begin, 0, 0, *begin]), 0.0)
    tail = [max(0, b) for b in beyond]
    return c.shaped(_pool(c, "AveragePool", x, windows, [0, 0, *tail], count_include_pad=0), dims)


def _average_by_sums(c: BaseContext, x: ir.Value, windows: list[Window], end: list[int] | ir.Value) -> ir.Value:
    """The average of the windows divided by the share of them inside the padded input."""
    op, pad = c.op, [w.pad for w in windows]
    tail = end if isinstance(end, ir.Value) else op.constant(end)
    zeros = op.constant([0, 0, *pad, 0, 0])
    sums = _pool(c, "AveragePool", op.Pad(x, op.Concat(zeros, tail, axis=0), 0.0), windows, [0] * 4)
    inside = op.Add(op.Shape(x, start=2, end=4), op.constant([2 * p for p in pad]))
    ones = op.Expand(op.constant(np.ones((1, 1, 1, 1), np.float32)), op.Concat(op.constant([1, 1]), inside, axis=0))
    rest = op.Max(op.Sub(tail, op.constant(pad)), op.constant([0, 0]))
    pads = op.Concat(op.constant([0] * 6), rest, axis=0)
    share = _pool(c, "AveragePool", op.Pad(ones, pads, 0.0), windows, [0] * 4)
    return op.Div(sums, share)


def window_attributes(windows: list[Window], pads: list[int]) -> dict[str, list[int]]:
    return {"kernel_shape": [w.kernel for w in windows], "strides": [w.stride for w in windows], "pads": pads}


def _pool(
    c: BaseContext, kind: str, x: ir.Value, windows: list[Window], pads: list[int], **attributes: int
) -> ir.Value:
    y = getattr(c.op, kind)(x, **window_attributes(windows, pads), **attributes)
    assert isinstance(y, ir.Value)
    return y
