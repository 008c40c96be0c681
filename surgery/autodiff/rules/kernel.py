"""Weight gradients of convolutions, in the standard operators that were measured to be fastest for each shape.

dW[m, c, k] = Σ over examples and places of dY[m] · X[c], X shifted by k: a sum of products for each element of the
kernel. `python -m benchmarks.conv_gradients --ways` measures each way below on each shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context
from surgery.autodiff.rules.window import Window

__all__ = ["LARGE", "choose", "weight_gradient"]

Way = Callable[[Context, ir.Value, ir.Value, Window, int], ir.Value]

_FEW = 16  # channels; a product over fewer does not pay for bringing them to the end
_SMALL = 256  # places; below, a batch of products of that length costs more than it computes
LARGE = 2048  # places; above, bringing the channels to the end costs more than it gains
_MANY = 1024  # places; from here on, lines pay for wide kernels
_WIDE_KERNEL = 25  # elements; from here on, products of lines are best taken at once
_LARGE_KERNEL = 49  # elements; then the runtime's own convolution does better than that many slices


def weight_gradient(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """The gradient of the weight of a convolution, input 1 of the operator: [M, C / group, …].

    Args:
        c: The operator.
        x: What the windows slide over, [N, C, …].
        dy: The gradient of the windows' results, [N, M, …].
        win: The windows.
        group: The number of groups.
    """
    return choose(c, win, group, batch=c.dims(x)[0])(c, x, dy, win, group)


def choose(c: Context, win: Window, group: int, batch: int | None) -> Way:
    """The way that was measured to be fastest for such shapes."""
    filters, each = c.dims(c.x(1))[:2]
    elements, places = math.prod(win.kernel), math.prod(n or _SMALL for n in win.size_y)
    if filters is None or each is None or (elements >= _LARGE_KERNEL and each < _FEW and group == 1):
        return _by_convolution
    if each == 1 and group == filters:
        if elements >= _WIDE_KERNEL:
            return _by_lines if _has_lines(win) and places >= _MANY else _by_convolution
        if places < _SMALL:
            return _by_sums
        if win.has_unit_strides:
            return _by_lines if _has_lines(win) else _by_example
        return _by_convolution
    if group == 1 and (each < _FEW or (elements == 1 and filters * each < places * (filters + each))):
        return _by_columns
    return _by_example if each < _FEW or places >= LARGE or batch == 1 else _by_products


def _shifted(c: Context, x: ir.Value, dy: ir.Value, win: Window, first: int) -> Iterator[ir.Value]:
    """For each element of the kernel, what it meets of the padded `x`, whose spatial axes start at `first`."""
    op, axes = c.op, np.arange(first, first + win.spatial)
    strides = np.array(win.strides)
    if win.is_pointwise and win.has_unit_strides:
        yield x
        return
    if None in win.size_y:
        sizes = op.Slice(op.Shape(dy), np.array([2]), np.array([2**31]))
        length: ir.Value | np.ndarray = op.Mul(op.Sub(sizes, np.array(1)), strides)
    else:
        length = (np.array(win.size_y) - 1) * strides
    for offset in itertools.product(*[range(k) for k in win.kernel]):
        start = np.array(offset) * np.array(win.dilations)
        end = op.Add(length, start + 1) if isinstance(length, ir.Value) else length + start + 1
        yield op.Slice(x, start, end, axes, strides)


def _padded(c: Context, x: ir.Value, win: Window) -> ir.Value:
    return c.op.Pad(x, np.array([0, 0, *win.begin, 0, 0, *win.end])) if any(win.pads) else x


def _last(win: Window) -> list[int]:
    """The permutation that brings the channels to the end."""
    return [0, *win.axes, 1]


def _by_products(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """[G, M, places] · [G, places, C] over the places of all examples, for each element of the kernel."""
    op, (filters, each) = c.op, _sizes(c)
    x = _padded(c, x, win)
    if group == 1:
        moved, first = op.Transpose(x, perm=_last(win)), 1
        rows = op.Reshape(op.Transpose(dy, perm=[1, 0, *win.axes]), np.array([filters, -1]))
    else:
        sizes = op.Slice(op.Shape(x), np.array([2]), np.array([2**31]))
        split = op.Reshape(x, op.Concat(np.array([0, group, each]), sizes, axis=0))
        moved, first = op.Transpose(split, perm=[1, 0, *[a + 1 for a in win.axes], 2]), 2
        rows = op.Transpose(op.Reshape(dy, np.array([0, group, filters // group, -1])), perm=[1, 2, 0, 3])
        rows = op.Reshape(rows, np.array([group, filters // group, -1]))
    leading = [-1, each] if group == 1 else [group, -1, each]
    parts = [op.MatMul(rows, op.Reshape(s, np.array(leading))) for s in _shifted(c, moved, dy, win, first)]
    return _joined(c, parts, win)


def _by_example(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """[N, G, M, places] · [N, G, places, C], summed over the examples, for each element of the kernel."""
    op, (filters, each) = c.op, _sizes(c)
    rows = op.Reshape(dy, np.array([0, group, filters // group, -1]))
    parts = []
    for shifted in _shifted(c, _padded(c, x, win), dy, win, 2):
        columns = op.Transpose(op.Reshape(shifted, np.array([0, group, each, -1])), perm=[0, 1, 3, 2])
        product = op.MatMul(rows, columns)
        parts.append(product if c.dims(x)[0] == 1 else op.ReduceSum(product, np.array([0]), keepdims=0))
    return _joined(c, parts, win)


def _by_columns(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """One product for each example, [M, places] · [places, kernel · C], with all that the kernel meets side by side."""
    op, (filters, each) = c.op, _sizes(c)
    assert group == 1
    met = list(_shifted(c, _padded(c, x, win), dy, win, 2))
    columns = op.Reshape(met[0] if len(met) == 1 else op.Concat(*met, axis=1), np.array([0, len(met) * each, -1]))
    rows = op.Reshape(dy, np.array([0, filters, -1]))
    total = op.ReduceSum(op.MatMul(rows, op.Transpose(columns, perm=[0, 2, 1])), np.array([0]), keepdims=0)
    if len(met) > 1:
        total = op.Transpose(op.Reshape(total, np.array([filters, len(met), each])), perm=[0, 2, 1])
    return op.Reshape(total, np.array([filters, each, *win.kernel]))


def _by_sums(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """Depthwise: elementwise products, summed with the channels at the end."""
    op = c.op
    x, rows = op.Transpose(_padded(c, x, win), perm=_last(win)), op.Transpose(dy, perm=_last(win))
    over = np.arange(1 + win.spatial)
    parts = [op.ReduceSum(op.Mul(s, rows), over, keepdims=0) for s in _shifted(c, x, dy, win, 1)]
    return _joined(c, parts, win)


def _has_lines(win: Window) -> bool:
    """Whether `_by_lines` can do it."""
    known = None not in (*win.rest, *win.size_x, *win.size_y)
    return win.spatial == 2 and win.has_unit_strides and known and not any(win.rest)


def _by_lines(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """Depthwise: X moved by whole lines meets dY moved along the lines, each laid out in one piece.

    For a kernel of h × w elements h + w copies of contiguous places take the place of h · w copies of short rows.
    """
    op, (high, wide) = c.op, win.kernel
    lines, length = int(win.size_y[0] or 0), int(win.size_x[1] or 0) + win.begin[1] + win.end[1]
    flat = np.array([0, 0, 1, lines * length])
    free = length - int(win.size_y[1] or 0)
    along = []
    for step in (win.dilations[1] * j for j in range(wide)):
        along.append(op.Reshape(op.Pad(dy, np.array([0, 0, 0, step, 0, 0, 0, free - step])), flat))
    columns = op.Transpose(op.Concat(*along, axis=2) if wide > 1 else along[0], perm=[0, 1, 3, 2])
    padded, rows = _padded(c, x, win), []
    for step in (win.dilations[0] * i for i in range(high)):
        rows.append(op.Reshape(op.Slice(padded, np.array([step]), np.array([step + lines]), np.array([2])), flat))
    if high * wide >= _WIDE_KERNEL:
        rows = [op.Concat(*rows, axis=2)]
    products = [op.MatMul(row, columns) for row in rows]  # [N, C, 1 or h, w]
    total = op.ReduceSum(op.Concat(*products, axis=2) if len(products) > 1 else products[0], np.array([0]), keepdims=0)
    return op.Reshape(total, np.array([*_sizes(c), high, wide]))


def _sizes(c: Context) -> list[int]:
    """The weight's sizes besides the kernel, [M, C / group]."""
    return [d or 0 for d in c.dims(c.x(1))[:2]]


def _joined(c: Context, parts: list[ir.Value], win: Window) -> ir.Value:
    """One gradient for each element of the kernel, as that of the kernel."""
    shape = np.array([*_sizes(c), *win.kernel])
    if len(parts) == 1:
        return c.op.Reshape(parts[0], shape)
    apart = [c.op.Reshape(part, np.array([*_sizes(c), 1])) for part in parts]
    return c.op.Reshape(c.op.Concat(*apart, axis=2), shape)


def _by_convolution(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """Convolves X with dY, batch and channels swapped, strides and dilations as well."""
    op = c.op
    swap = [1, 0, *win.axes]
    left = op.Transpose(x, perm=swap) if group == 1 else _batch_by_group(c, x, win, group)
    rest = [0 if r is None else r for r in win.rest]
    pads = [*win.begin, *[max(q - r, 0) for q, r in zip(win.end, rest, strict=True)]]
    full = op.Conv(
        left, op.Transpose(dy, perm=swap), strides=win.dilations, dilations=win.strides, pads=pads, group=group
    )
    # Elements of the input beyond the last window give elements beyond the kernel.
    kernel = op.Slice(full, np.zeros(win.spatial, np.int64), np.array(win.kernel), np.array(win.axes))
    return op.Transpose(kernel, perm=swap)


def _batch_by_group(c: Context, x: ir.Value, win: Window, group: int) -> ir.Value:
    """[N, G·C, …] as [C, G·N, …]."""
    op = c.op
    sizes = op.Slice(op.Shape(x), np.array([2]), np.array([2**31]))
    split = op.Reshape(x, op.Concat(np.array([0, group, -1]), sizes, axis=0))
    moved = op.Transpose(split, perm=[2, 1, 0, *[a + 1 for a in win.axes]])
    return op.Reshape(moved, op.Concat(np.array([0, -1]), sizes, axis=0))
