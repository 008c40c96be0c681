"""Gradients of convolutions (Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, fused_rule, rule
from surgery.autodiff.rules.window import Window, transpose_convolution, window
from surgery.errors import SurgeryError

__all__: list[str] = []


def _window(c: Context) -> Window:
    kernel = c.attr("kernel_shape") or c.dims(c.x(1))[2:]
    if None in kernel:
        raise SurgeryError(f"{c.node.op_type} {c.node.name!r}: the kernel's size is unknown; give its weight a shape")
    return window(c, kernel)


@fused_rule("Conv")
def conv_fused(c: Context) -> Gradients:
    win = _window(c)
    outputs = c.op.ConvGrad(
        c.dy,
        c.x(0),
        c.x(1),
        _domain="com.microsoft",
        _outputs=3,
        kernel_shape=win.kernel,
        strides=win.strides,
        dilations=win.dilations,
        pads=win.pads,
        group=c.attr("group", 1),
    )
    for index, output in enumerate(outputs):
        if not c.wants(index):
            output.name = ""
    if not c.wants(2):
        outputs[0].producer().resize_outputs(2)
    return [g if c.wants(i) else None for i, g in enumerate(outputs)]


@rule("Conv")
def conv(c: Context) -> Gradients:
    """dX: the transposed convolution of dY; dW: X convolved with dY; db: the sum of dY."""
    win, group = _window(c), c.attr("group", 1)
    return [
        transpose_convolution(c, c.dy, c.x(1), win, group) if c.wants(0) else None,
        weight_gradient(c, c.x(0), c.dy, win, group) if c.wants(1) else None,
        c.op.ReduceSum(c.dy, np.array([0, *win.axes]), keepdims=0) if c.wants(2) else None,
    ]


def weight_gradient(c: Context, x: ir.Value, dy: ir.Value, win: Window, group: int) -> ir.Value:
    """Convolves X with dY, batch and channels swapped, strides and dilations as well."""
    op = c.op
    swap = [1, 0, *win.axes]
    left = op.Transpose(x, perm=swap) if group == 1 else _batch_by_group(c, x, win, group)
    crop = [0 if r is None else r for r in win.rest]
    pads = [*win.begin, *[q - r for q, r in zip(win.end, crop, strict=True)]]
    if any(p < 0 for p in pads):
        pads = [max(p, 0) for p in pads]
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
