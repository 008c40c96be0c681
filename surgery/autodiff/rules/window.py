"""Sliding windows: the geometry that convolutions and pooling share, and its transpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context
from surgery.errors import SurgeryError

__all__ = ["Window", "transposed_sum", "window"]

_END = np.array([2**31])  # of a Slice: to the last element


@dataclasses.dataclass(frozen=True)
class Window:
    """How windows slide over the spatial axes.

    Attributes:
        kernel: The window's size.
        strides: From one window to the next.
        dilations: From one element of a window to the next.
        begin: The padding before the first element.
        end: The padding after the last element, by the attributes: `ceil_mode` may reach further.
        size_x: The input's size, None where unknown.
        size_y: The number of windows, None where unknown.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    size_x: list[int | None]
    size_y: list[int | None]

    @property
    def spatial(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def axes(self) -> list[int]:
        """The spatial axes."""
        return list(range(2, 2 + self.spatial))

    @property
    def pads(self) -> list[int]:
        """The padding as ONNX writes it."""
        return [*self.begin, *self.end]

    @property
    def span(self) -> list[int]:
        """From the first to the last element of a window, both counted."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def reach(self) -> list[int | None]:
        """From the first element of the first window to the last of the last."""
        parts = zip(self.size_y, self.strides, self.span, strict=True)
        return [None if n is None else (n - 1) * s + k for n, s, k in parts]

    @property
    def rest(self) -> list[int | None]:
        """How many elements of the padded input lie beyond the last window; negative where a window overhangs."""
        parts = zip(self.size_x, self.begin, self.end, self.reach, strict=True)
        return [None if x is None or r is None else x + p + q - r for x, p, q, r in parts]

    @property
    def is_pointwise(self) -> bool:
        """Whether a window is one element and there is no padding."""
        return all(k == 1 for k in self.kernel) and not any(self.pads)

    @property
    def has_unit_strides(self) -> bool:
        """Whether windows start at every element."""
        return all(s == 1 for s in self.strides)


def window(c: Context, kernel: list[int]) -> Window:
    """The windows of a Conv or pooling operator, `auto_pad` worked out (ONNX, Conv, `auto_pad`).

    Raises:
        SurgeryError: The padding depends on an input size that is unknown.
    """
    spatial = len(kernel)
    strides, dilations = c.attr("strides") or [1] * spatial, c.attr("dilations") or [1] * spatial
    size_x, size_y = c.dims(c.x())[2:], c.dims(c.y())[2:]
    auto = c.attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = c.attr("pads") or [0] * 2 * spatial
        begin, end = pads[:spatial], pads[spatial:]
    elif auto == "VALID":
        begin, end = [0] * spatial, [0] * spatial
    else:
        begin, end = [], []
        for size, k, s, d in zip(size_x, kernel, strides, dilations, strict=True):
            if size is None and s > 1:
                raise SurgeryError(
                    f"{c.node.op_type} {c.node.name!r}: auto_pad={auto} with strides {strides} pads by the input's "
                    "size, which is unknown; give the model's input its height and width"
                )
            total = (k - 1) * d if size is None else max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            begin.append(small if auto == "SAME_UPPER" else large)
            end.append(large if auto == "SAME_UPPER" else small)
        # ONNX Runtime 1.19 takes less than nothing where strides exceed the window: written out, it cannot.
        c.node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
        c.node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])
    return Window(list(kernel), list(strides), list(dilations), begin, end, size_x, size_y)


def transpose_convolution(c: Context, dy: ir.Value, w: ir.Value, win: Window, group: int) -> ir.Value:
    """The adjoint of the convolution by `w`: from the gradient of its output to that of its input."""
    op = c.op
    attributes = {"strides": win.strides, "dilations": win.dilations, "group": group}
    if None not in win.rest:
        # A window that overhangs the padded input (ceil_mode) is cut at its end, like padding.
        rest = [r or 0 for r in win.rest]
        end = [q + max(-r, 0) for q, r in zip(win.end, rest, strict=True)]
        extra = [max(r, 0) for r in rest]
        flipped = _by_flipped_kernel(c, dy, w, win, group, rest)
        if flipped is not None:
            return flipped
        if all(e < s for e, s in zip(extra, win.strides, strict=True)):  # more is an error or wrong by the runtime
            return op.ConvTranspose(dy, w, pads=[*win.begin, *end], output_padding=extra, **attributes)
    # The size is unknown (or odd): all that windows reach, cut or filled up to the input's shape.
    full = op.ConvTranspose(dy, w, **attributes)
    shape = op.Shape(c.x())
    sizes = op.Slice(shape, np.array([2]), _END)
    reached = op.Slice(op.Shape(full), np.array([2]), _END)
    begin = np.array(win.begin)
    missing = op.Max(op.Sub(op.Add(sizes, begin), reached), np.zeros(1, np.int64))
    filled = op.Pad(full, op.Concat(np.zeros(win.spatial + 4, np.int64), missing, axis=0))
    return op.Slice(filled, begin, op.Add(sizes, begin), np.array(win.axes))


def _by_flipped_kernel(
    c: Context, dy: ir.Value, w: ir.Value, win: Window, group: int, rest: list[int]
) -> ir.Value | None:
    """The adjoint as a convolution by the flipped kernel, where that is faster; None where it is not.

    The runtimes compute a ConvTranspose group by group, one example after the other, and use one processor then.
    """
    filters, each = c.dims(w)[:2]
    if not win.has_unit_strides or (group == 1 and not win.is_pointwise) or filters is None or each is None:
        return None
    inner = [s - 1 for s in win.span]
    begin = [s - p for s, p in zip(inner, win.begin, strict=True)]
    end = [s - q + r for s, q, r in zip(inner, win.end, rest, strict=True)]
    if min(begin + end) < 0:
        return None
    op = c.op
    if max(win.kernel) > 1:
        back = np.full(win.spatial, -1)
        w = op.Slice(w, back, np.full(win.spatial, -(2**31)), np.array(win.axes), back)
    if filters == group:
        w = op.Reshape(w, np.array([group * each, 1, *win.kernel]))
    else:
        apart = op.Reshape(w, np.array([group, filters // group, each, *win.kernel]))
        turned = op.Transpose(apart, perm=[0, 2, 1, *range(3, 3 + win.spatial)])
        w = op.Reshape(turned, np.array([group * each, filters // group, *win.kernel]))
    return op.Conv(dy, w, pads=[*begin, *end], dilations=win.dilations, group=group)


def transposed_sum(c: Context, dy: ir.Value, win: Window) -> ir.Value:
    """Adds each dy to all elements of its window: the adjoint of a pooling that sums."""
    op, dtype = c.op, c.dy.dtype or ir.DataType.FLOAT
    side_by_side = win.strides == win.kernel and not any(win.pads) and not any(d > 1 for d in win.dilations)
    if side_by_side and None not in win.rest and not any(win.rest) and dtype == ir.DataType.FLOAT:
        scales = np.array([1, 1, *win.strides], np.float32)
        return op.Resize(dy, None, scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    # All channels by the same window: as one channel of a larger batch.
    flat = op.Reshape(dy, op.Concat(np.array([-1, 1]), op.Slice(op.Shape(dy), np.array([2]), _END), axis=0))
    ones = op.constant(np.ones([1, 1, *win.kernel], dtype.numpy()))
    return op.Reshape(transpose_convolution(c, flat, ones, win, 1), c.shape_of(c.x()))
