"""Gradients of convolutions (Dumoulin and Visin 2016, A guide to convolution arithmetic, chapter 4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from surgery.autodiff.backward import Context, Gradients, fused_rule, rule
from surgery.autodiff.rules.kernel import LARGE, weight_gradient
from surgery.autodiff.rules.window import Window, transpose_convolution, window
from surgery.errors import SurgeryError

__all__: list[str] = []


def _kernel(c: Context) -> list[int]:
    kernel: list[Any] = c.attr("kernel_shape") or c.dims(c.x(1))[2:]
    if None in kernel:
        raise SurgeryError(f"{c.node.op_type} {c.node.name!r}: the kernel's size is unknown; give its weight a shape")
    return [int(k) for k in kernel]


@fused_rule("Conv")
def conv_fused(c: Context) -> Gradients:
    win = window(c, _kernel(c))
    if _is_better_by_parts(c, win):
        return NotImplemented
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


def _is_better_by_parts(c: Context, win: Window) -> bool:
    """Whether a convolution is depthwise and so large that ConvGrad, which does that on one processor, is slower."""
    filters, each = c.dims(c.x(1))[:2]
    depthwise = each == 1 and filters == c.attr("group", 1) and win.has_unit_strides and None not in win.size_y
    return depthwise and c.wants(0) and c.wants(1) and math.prod(n or 1 for n in win.size_y) >= 2 * LARGE


@rule("Conv")
def conv(c: Context) -> Gradients:
    """dX: the transposed convolution of dY; dW: X convolved with dY; db: the sum of dY."""
    win, group = window(c, _kernel(c)), c.attr("group", 1)
    return [
        transpose_convolution(c, c.dy, c.x(1), win, group) if c.wants(0) else None,
        weight_gradient(c, c.x(0), c.dy, win, group) if c.wants(1) else None,
        c.op.ReduceSum(c.dy, np.array([0, *win.axes]), keepdims=0) if c.wants(2) else None,
    ]


@rule("ConvTranspose")
def conv_transpose(c: Context) -> Gradients:
    """The adjoint of a convolution from Y to X, with the same weight: so dX is that convolution of dY."""
    op, win, group = c.op, _transposed_window(c), c.attr("group", 1)
    geometry = {"strides": win.strides, "dilations": win.dilations, "pads": win.pads}
    return [
        op.Conv(c.dy, c.x(1), group=group, **geometry) if c.wants(0) else None,
        weight_gradient(c, c.dy, c.x(0), win, group) if c.wants(1) else None,
        op.ReduceSum(c.dy, np.array([0, *win.axes]), keepdims=0) if c.wants(2) else None,
    ]


def _transposed_window(c: Context) -> Window:
    """The windows over Y, one for each element of X (ONNX, ConvTranspose, `auto_pad` and `output_shape`)."""
    kernel = _kernel(c)
    spatial = len(kernel)
    strides, dilations = c.attr("strides") or [1] * spatial, c.attr("dilations") or [1] * spatial
    size_x, size_y = c.dims(c.x())[2:], c.dims(c.y())[2:]
    begin, end = [0] * spatial, [0] * spatial
    auto, shape = c.attr("auto_pad", "NOTSET"), c.attr("output_shape")
    if auto == "NOTSET" and not shape:
        pads = c.attr("pads") or [0] * 2 * spatial
        begin, end = pads[:spatial], pads[spatial:]
    elif auto != "VALID" or shape:
        extra = c.attr("output_padding") or [0] * spatial
        for i, (n, k, s, d, e) in enumerate(zip(size_x, kernel, strides, dilations, extra, strict=True)):
            if not shape:
                total = (k - 1) * d + 1 - s + e
            elif n is not None:
                total = (n - 1) * s + (k - 1) * d + 1 + e - shape[-spatial + i]
            else:
                raise SurgeryError(
                    f"ConvTranspose {c.node.name!r}: output_shape pads by the input's size, which is unknown; give "
                    "the model's input its height and width"
                )
            small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
            begin[i], end[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(kernel, list(strides), list(dilations), list(begin), list(end), size_y, size_x)
