"""Gradients of pooling."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, fused_rule, rule

__all__: list[str] = []


@fused_rule("MaxPool")
def max_pool_fused(c: Context) -> Gradients:
    indices = c.extra_output(1, ir.DataType.INT64)
    names = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "dilations", "storage_order")
    return [c.op.MaxPoolGrad(c.dy, indices, **{name: c.attr(name) for name in names})]


@rule("MaxPool")
def max_pool(c: Context) -> Gradients:
    """Adds each dy to where its maximum was found; ONNX counts those places over the whole tensor."""
    op, flat = c.op, c.op.constant([-1])
    indices = op.Reshape(c.extra_output(1, ir.DataType.INT64), flat)
    shape = c.shape_of(c.x())
    zeros = op.ConstantOfShape(op.ReduceProd(shape, keepdims=1), value=ir.tensor(np.zeros(1, np.float32)))
    dx = op.ScatterElements(zeros, indices, op.Reshape(c.dy, flat), axis=0, reduction="add")
    return [op.Reshape(dx, shape)]


@rule("GlobalAveragePool")
def global_average_pool(c: Context) -> Gradients:
    sizes = c.dims(c.x())[2:]
    shape = c.shape_of(c.x())
    if None not in sizes:
        share = c.op.Mul(c.dy, 1.0 / math.prod(d or 1 for d in sizes))
    else:
        count = c.op.ReduceProd(c.op.Slice(shape, np.array([2]), np.array([2**31])), keepdims=0)
        share = c.op.Div(c.dy, c.op.CastLike(count, c.dy))
    return [c.op.Expand(share, shape)]
