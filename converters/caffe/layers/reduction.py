"""Sums, means and maxima along axes."""

from __future__ import annotations

import onnx_ir as ir

from converters.caffe.caffe_pb2 import ReductionParameter
from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []

_OPERATORS = {
    ReductionParameter.SUM: "ReduceSum",
    ReductionParameter.ASUM: "ReduceL1",
    ReductionParameter.SUMSQ: "ReduceSumSquare",
    ReductionParameter.MEAN: "ReduceMean",
}


@layer("Reduction")
def reduction(c: Context) -> ir.Value:
    """One number in place of all axes from ``axis`` on, times ``coeff``."""
    c.need(1)
    param = c.layer.reduction_param
    axis = c.axis(param.axis)
    axes = list(range(axis, c.rank()))
    y = getattr(c.op, _OPERATORS[param.operation])(c.x, c.op.constant(axes), keepdims=0)
    return c.shaped(c.op.Mul(y, float(param.coeff)) if param.coeff != 1 else y, c.dims()[:axis])


@layer("ArgMax")
def arg_max(c: Context) -> ir.Value:
    """Where the ``top_k`` largest numbers are, along an axis or in each example; of equal ones the last comes first."""
    c.need(1)
    c.need_rank(1)
    param, dims = c.layer.argmax_param, c.dims()
    if param.HasField("axis"):
        axis = c.axis(param.axis)
        values, places = _largest(c, c.x, axis, c.size(axis))
        new: list[Dim] = [*dims[:axis], param.top_k, *dims[axis + 1 :]]
        return c.shaped(values if param.out_max_val else places, new)
    count = 1
    for a in range(1, len(dims)):
        count *= c.size(a)
    values, places = _largest(c, c.op.Flatten(c.x, axis=1), 1, count)
    behind = [1] * (max(len(dims), 3) - 3)
    shape = c.op.constant([0, 1, param.top_k, *behind])
    pair = [c.op.Reshape(each, shape) for each in ((places, values) if param.out_max_val else (places,))]
    y = c.op.Concat(*pair, axis=1) if param.out_max_val else pair[0]
    return c.shaped(y, [dims[0], len(pair), param.top_k, *behind])


def _largest(c: Context, x: ir.Value, axis: int, size: int) -> tuple[ir.Value, ir.Value]:
    """The largest numbers along an axis and, as floats, their places.

    ONNX prefers the first of equals, Caffe the last.
    """
    op, count = c.op, c.layer.argmax_param.top_k
    if not 1 <= count <= size:
        raise c.error(f"top_k is {count} and must be from 1 to {size}")
    minus_one = op.constant([-1])
    turned = op.Slice(x, minus_one, op.constant([-(2**31)]), op.constant([axis]), minus_one)
    values, places = op.TopK(turned, op.constant([count]), axis=axis, _outputs=2)
    places.dtype = ir.DataType.INT64
    return values, op.Cast(op.Sub(op.constant(size - 1), places), to=ir.DataType.FLOAT)
