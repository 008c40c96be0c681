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
        clip: Whether a last window that would start behind the end padding is left out; by default with padding.
        dilation: How far apart the places of one window are.
    """

    kernel: int
    stride: int
    pad: int
    ceil: bool = True
    clip: bool | None = None
    dilation: int = 1

    @property
    def clips(self) -> bool:
        """Whether a last window that would start behind the end padding is left out."""
        return self.pad > 0 if self.clip is None else self.clip

    @property
    def span(self) -> int:
        """How many places there are from a window's first to its last."""
        return (self.kernel - 1) * self.dilation + 1

    def count(self, size: int) -> int:
        """How many windows an axis of `size` has."""
        rest = size + 2 * self.pad - self.span
        count = (-(-rest // self.stride) if self.ceil else rest // self.stride) + 1
        if self.clips and (count - 1) * self.stride >= size + self.pad:
            count -= 1
        return count

    def end(self, size: int) -> int:
        """How much padding behind the axis makes exactly `count` windows fit; never negative."""
        return max(0, (self.count(size) - 1) * self.stride + self.span - size - self.pad)


def window_counts(c: BaseContext, x: ir.Value, windows: list[Window]) -> list[Dim | None]:
    """How many windows each axis has; None where its size is not known."""
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
        for column in zip(*((w.span, w.stride, w.pad, (w.stride - 1) * w.ceil, w.clips) for w in windows), strict=True)
    )
    # (count − 1) · stride, rounded up or down, and one stride less where the last window starts behind the end.
    span = op.Sub(op.Add(op.Add(size, op.Add(pad, pad)), up), kernel)
    last = op.Mul(op.Div(span, stride), stride)
    over = op.Mul(op.Cast(op.GreaterOrEqual(last, op.Add(size, pad)), to=ir.DataType.INT64), clip)
    last = op.Sub(last, op.Mul(over, stride))
    return op.Max(op.Sub(op.Add(last, kernel), op.Add(size, pad)), op.constant([0, 0]))


def max_pool(c: BaseContext, x: ir.Value, windows: list[Window]) -> ir.Value:
    """Maxima of windows; one that lies wholly behind the input has Caffe's lowest number."""
    op, begin, sizes = c.op, [w.pad for w in windows], window_counts(c, x, windows)
    if _fits(windows):
        return c.shaped(_pool(c, "MaxPool", x, windows, begin * 2), [*c.dims(x)[:2], *sizes])
    end = end_padding(c, x, windows)
    if isinstance(end, ir.Value) and all(w.ceil and not w.pad and w.stride <= w.span for w in windows):
        # Here every reading of ceil_mode gives the same.
        y = _pool(c, "MaxPool", x, windows, [0] * 4, ceil_mode=1)
    elif isinstance(end, ir.Value) or any(e >= w.kernel for e, w in zip(end, windows, strict=True)):
        tail = end if isinstance(end, ir.Value) else op.constant(end)
        pads = op.Concat(op.constant([0, 0, *begin, 0, 0]), tail, axis=0)
        y = _pool(c, "MaxPool", op.Pad(x, pads, LOWEST), windows, [0] * 4)
    else:
        y = _pool(c, "MaxPool", x, windows, [*begin, *end])
    return c.shaped(y, [*c.dims(x)[:2], *sizes])


def average_pool(c: BaseContext, x: ir.Value, windows: list[Window], include_pad: bool = True) -> ir.Value:
    """Averages of windows over their area inside the input, zeros of its padding included if `include_pad`."""
    op, begin = c.op, [w.pad for w in windows]
    dims = [*c.dims(x)[:2], *window_counts(c, x, windows)]
    if _fits(windows):
        return c.shaped(_pool(c, "AveragePool", x, windows, begin * 2, count_include_pad=int(include_pad)), dims)
    end = end_padding(c, x, windows)
    if isinstance(end, ir.Value) or any(e >= w.kernel for e, w in zip(end, windows, strict=True)):
        return c.shaped(_average_by_sums(c, x, windows, end, include_pad), dims)
    beyond = [e - p for e, p in zip(end, begin, strict=True)]
    if not include_pad or max(beyond) <= 0:
        pads = [*begin, *end]
        return c.shaped(_pool(c, "AveragePool", x, windows, pads, count_include_pad=int(include_pad)), dims)
    if any(begin):
        x = op.Pad(x, op.constant([0, 0, *begin, 0, 0, *begin]), 0.0)
    tail = [max(0, b) for b in beyond]
    return c.shaped(_pool(c, "AveragePool", x, windows, [0, 0, *tail], count_include_pad=0), dims)


def _average_by_sums(
    c: BaseContext, x: ir.Value, windows: list[Window], end: list[int] | ir.Value, include_pad: bool
) -> ir.Value:
    """The average of the windows divided by the share of them inside the (padded) input."""
    op, pad = c.op, [w.pad for w in windows]
    tail = end if isinstance(end, ir.Value) else op.constant(end)
    zeros = op.constant([0, 0, *pad, 0, 0])
    sums = _pool(c, "AveragePool", op.Pad(x, op.Concat(zeros, tail, axis=0), 0.0), windows, [0] * 4)
    inside = op.Shape(x, start=2, end=4)
    rest = tail
    if include_pad:
        inside = op.Add(inside, op.constant([2 * p for p in pad]))
        rest = op.Max(op.Sub(tail, op.constant(pad)), op.constant([0, 0]))
        zeros = op.constant([0] * 6)
    ones = op.Expand(op.constant(np.ones((1, 1, 1, 1), np.float32)), op.Concat(op.constant([1, 1]), inside, axis=0))
    share = _pool(c, "AveragePool", op.Pad(ones, op.Concat(zeros, rest, axis=0), 0.0), windows, [0] * 4)
    return op.Div(sums, share)


def _fits(windows: list[Window]) -> bool:
    """Whether the windows are those of ONNX itself, with the same padding on both sides."""
    return not any(w.ceil for w in windows) and all(w.pad < w.kernel for w in windows)


def window_attributes(windows: list[Window], pads: list[int]) -> dict[str, list[int]]:
    """The attributes of ONNX's MaxPool or AveragePool."""
    found = {"kernel_shape": [w.kernel for w in windows], "strides": [w.stride for w in windows], "pads": pads}
    if any(w.dilation > 1 for w in windows):
        found["dilations"] = [w.dilation for w in windows]
    return found


def _pool(
    c: BaseContext, kind: str, x: ir.Value, windows: list[Window], pads: list[int], **attributes: int
) -> ir.Value:
    y = getattr(c.op, kind)(x, **window_attributes(windows, pads), **attributes)
    assert isinstance(y, ir.Value)
    return y
