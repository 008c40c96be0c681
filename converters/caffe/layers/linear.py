"""Layers that multiply by a matrix."""

from __future__ import annotations

import math

import onnx_ir as ir

from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []


@layer("InnerProduct")
def inner_product(c: Context) -> ir.Value:
    """InnerProduct as Flatten and Gemm, the weight in Caffe's layout: [outputs, inputs] unless ``transpose``."""
    c.need(1)
    param = c.layer.inner_product_param
    axis = c.axis(param.axis)
    dims = c.dims()
    inputs = _inputs(c, dims[axis:])
    units = param.num_output
    if units < 1:
        raise c.error("num_output must be 1 or more")
    shape = [inputs, units] if param.transpose else [units, inputs]
    weight = c.parameter(0, "weight", shape, param.weight_filler, "xavier")
    bias = c.parameter(1, "bias", [units], param.bias_filler) if param.bias_term else None
    x = c.x
    if axis == 1 and len(dims) > 2:
        x = c.op.Flatten(x, axis=1, _name=f"{c.name}/flatten")
    elif axis != 1 or len(dims) != 2:
        x = c.reshape(x, [None, inputs])
    y = c.op.Gemm(x, weight, bias, transB=int(not param.transpose), _name=c.name)
    if axis == 1:
        return c.shaped(y, [dims[0], units])
    return _unflatten(c, y, [*dims[:axis], units])


def _unflatten(c: Context, y: ir.Value, dims: list[Dim]) -> ir.Value:
    """Brings the leading axes back."""
    unknown = [i for i, d in enumerate(dims) if isinstance(d, str)]
    if len(unknown) <= 1:
        return c.reshape(y, dims)
    lead = c.op.Shape(c.x, end=len(dims) - 1)
    return c.shaped(c.op.Reshape(y, c.op.Concat(lead, c.op.constant([dims[-1]]), axis=0)), dims)  # type: ignore[list-item]


def _inputs(c: Context, dims: list[Dim]) -> int:
    """How many numbers go into a unit: from the bottom's shape, or where that is unknown from the file's weights."""
    if all(isinstance(d, int) for d in dims):
        return math.prod(dims)  # type: ignore[arg-type]
    shape = c.builder.parameters.shape(c, 0)
    if shape is not None and len(shape) >= 2:
        return shape[-2 if c.layer.inner_product_param.transpose else -1]
    return math.prod(c.size(axis) for axis in range(c.rank() - len(dims), c.rank()))


@layer("Embed")
def embed(c: Context) -> ir.Value:
    """A row of the weight for each number of the bottom."""
    c.need(1)
    param = c.layer.embed_param
    if param.num_output < 1 or param.input_dim < 1:
        raise c.error("num_output and input_dim must be 1 or more")
    weight = c.parameter(0, "weight", [param.input_dim, param.num_output], param.weight_filler, "xavier")
    rows = c.op.Gather(weight, c.op.Cast(c.x, to=ir.DataType.INT64), axis=0, _name=c.name)
    dims = [*c.dims(), param.num_output]
    if not param.bias_term:
        return c.shaped(rows, dims)
    bias = c.parameter(1, "bias", [param.num_output], param.bias_filler)
    return c.shaped(c.op.Add(rows, bias, _name=f"{c.name}/bias"), dims)
