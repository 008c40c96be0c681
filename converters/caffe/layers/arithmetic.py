"""Arithmetic of several bottoms, or of a bottom and parameters."""

from __future__ import annotations

from functools import reduce

import onnx_ir as ir

from converters.caffe.caffe_pb2 import EltwiseParameter, FillerParameter
from converters.caffe.context import Context, Dim, layer
from converters.caffe.layers.normalization import absorb_scale

__all__: list[str] = []


@layer("Eltwise")
def eltwise(c: Context) -> ir.Value:
    """Product, sum with coefficients, or maximum of bottoms of one shape."""
    param = c.layer.eltwise_param
    if len(c.bottoms) < 2:
        raise c.error("needs two bottoms or more")
    for bottom in c.bottoms[1:]:
        _same_shape(c, c.x, bottom)
    if param.coeff and (len(param.coeff) != len(c.bottoms) or param.operation != EltwiseParameter.SUM):
        raise c.error(f"has {len(param.coeff)} coeff; SUM takes one for each of its {len(c.bottoms)} bottoms")
    if param.operation == EltwiseParameter.MAX:
        return c.op.Max(*c.bottoms)
    if param.operation == EltwiseParameter.PROD:
        return reduce(c.op.Mul, c.bottoms)
    coefficients = list(param.coeff) or [1.0] * len(c.bottoms)
    if coefficients == [1, -1]:
        return c.op.Sub(*c.bottoms)
    terms = [x if k == 1 else c.op.Mul(x, float(k)) for k, x in zip(coefficients, c.bottoms, strict=True)]
    return reduce(c.op.Add, terms)


def _same_shape(c: Context, a: ir.Value, b: ir.Value) -> None:
    first, second = c.dims(a), c.dims(b)
    if len(first) != len(second) or any(
        p != q for p, q in zip(first, second, strict=True) if isinstance(p, int) and isinstance(q, int)
    ):
        shown = ["×".join(str(d) for d in dims) for dims in (first, second)]
        raise c.error(f"its bottoms have different shapes: {shown[0]} and {shown[1]}")


def _covered(c: Context, axis: int, num_axes: int) -> list[int]:
    """The sizes of the axes that a scale or bias covers."""
    axis = c.axis(axis, extra=int(num_axes == 0))
    end = c.rank() if num_axes == -1 else axis + num_axes
    if num_axes < -1 or end > c.rank():
        raise c.error(f"covers {num_axes} axes from axis {axis}; its bottom has {c.rank()}")
    return [c.size(a) for a in range(axis, end)]


def _aligned(c: Context, axis: int, covered: int) -> list[int]:
    """The ones behind the covered axes that make ONNX's broadcasting, aligned at the end, mean the same."""
    return [1] * (c.rank() - c.axis(axis, extra=int(covered == 0)) - covered) if covered else []


def _broadcast_bottom(c: Context, value: ir.Value, axis: int) -> ir.Value:
    """The second bottom with axes behind it, so that it lies along `axis` of the first."""
    dims = c.dims(value)
    start = c.axis(axis, extra=int(not dims)) if axis >= 0 else c.axis(axis)
    behind = c.rank() - start - len(dims)
    if behind < 0:
        raise c.error(f"its second bottom has {len(dims)} dimensions, too many from axis {start} of the first")
    for own, whole in zip(dims, c.dims()[start:], strict=False):
        if own != whole and isinstance(own, int) and isinstance(whole, int):
            raise c.error(f"its second bottom has {own} where the first has {whole}")
    if not dims or not behind:
        return value
    axes = list(range(len(dims), len(dims) + behind))
    return c.shaped(c.op.Unsqueeze(value, c.op.constant(axes)), [*dims, *[1] * behind])


@layer("Scale")
def scale(c: Context) -> ir.Value:
    """A learned scale (or the second bottom) along some axes, and perhaps a bias; joined with a BatchNorm before it."""
    param = c.layer.scale_param
    if len(c.bottoms) not in (1, 2):
        raise c.error(f"takes one bottom or two, and has {len(c.bottoms)}")
    if len(c.bottoms) == 1 and (joined := absorb_scale(c)) is not None:
        return joined
    if len(c.bottoms) == 2:
        factor = _broadcast_bottom(c, c.bottoms[1], param.axis)
        covered: list[Dim] = c.dims(c.bottoms[1])
        bias_shape = [c.size(i, c.bottoms[1]) for i in range(len(covered))] if param.bias_term else []
    else:
        bias_shape = _covered(c, param.axis, param.num_axes)
        behind = _aligned(c, param.axis, len(bias_shape))
        factor = c.parameter(0, "scale", [*bias_shape, *behind], param.filler, value=1.0, blob_shape=bias_shape)
    y = c.op.Mul(c.x, factor, _name=c.name)
    if not param.bias_term:
        return y
    c.shaped(y, c.dims())
    return _add_bias(c, y, len(c.bottoms) == 1, bias_shape, param.bias_filler)


def _add_bias(c: Context, y: ir.Value, second: bool, shape: list[int], filler: FillerParameter) -> ir.Value:
    behind = _aligned(c, c.layer.scale_param.axis, len(shape))
    bias = c.parameter(int(second), "bias", [*shape, *behind], filler, blob_shape=shape)
    return c.op.Add(y, bias, _name=f"{c.name}/bias")


@layer("Bias")
def bias(c: Context) -> ir.Value:
    """A learned bias (or the second bottom) along some axes."""
    param = c.layer.bias_param
    if len(c.bottoms) == 2:
        return c.op.Add(c.x, _broadcast_bottom(c, c.bottoms[1], param.axis))
    c.need(1)
    shape = _covered(c, param.axis, param.num_axes)
    behind = _aligned(c, param.axis, len(shape))
    return c.op.Add(c.x, c.parameter(0, "bias", [*shape, *behind], param.filler, blob_shape=shape))


@layer("Axpy")
def axpy(c: Context) -> ir.Value:
    """a · x + y with a number a for each channel (a fork's, for squeeze-and-excitation networks)."""
    c.need(3)
    a, x, y = c.bottoms
    _same_shape(c, x, y)
    c.need_rank(2, value=x)
    numbers = [d for d in c.dims(a)[2:] if d != 1]
    if numbers or any(isinstance(d, int) and d != e for d, e in zip(c.dims(a)[1:2], c.dims(x)[1:2], strict=False)):
        raise c.error(f"its first bottom must have one number for each of {c.dims(x)[1]} channels")
    c.need_rank(2, c.rank(x), a)
    if c.rank(a) == 2 < c.rank(x):
        axes = list(range(2, c.rank(x)))
        a = c.op.Unsqueeze(a, c.op.constant(axes))
    return c.shaped(c.op.Add(c.op.Mul(a, x), y), c.dims(x))
