"""Dense, Embedding, EinsumDense and what does nothing."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.layers.activation import activate
from converters.keras.tensor import Tensor

__all__: list[str] = []


@layer("Dense", variables="kernel bias?use_bias")
def dense(c: Context) -> Tensor:
    """x W + b over the last axis: Gemm, MatMul and Add, or over a moved image a Conv with a kernel of one pixel."""
    x, units = c.floats(c.x), c.integer("units")
    depth = c.size(-1)
    if x.moved and not c.layer.shared:
        return activate(c, _as_convolution(c, x, depth, units), c.get("activation"))
    weight = c.parameter("kernel", [depth, units])
    bias = c.parameter("bias", [units]) if c.has("bias") else None
    dims = [*x.dims[:-1], units]
    if x.rank == 2:
        return activate(c, c.tensor(c.op.Gemm(x.value, weight, bias, _name=c.name), dims), c.get("activation"))
    y = c.op.MatMul(c.plain(x), weight, _name=c.name)
    return activate(c, c.tensor(y if bias is None else c.op.Add(y, bias), dims), c.get("activation"))


def _as_convolution(c: Context, x: Tensor, depth: int, units: int) -> Tensor:
    ones = [1] * (x.rank - 2)
    weight = c.parameter("kernel", [depth, units], [1, 0], [units, depth, *ones])
    bias = c.parameter("bias", [units]) if c.has("bias") else None
    y = c.op.Conv(x.value, weight, bias, kernel_shape=ones, _name=c.name)
    return c.tensor(y, [*x.dims[:-1], units], moved=True)


@layer("EinsumDense", variables="kernel bias?bias_axes")
def einsum_dense(c: Context) -> Tensor:
    """Einsum with a weight; the shapes come from the equation."""
    x, equation = c.floats(c.x), str(c.get("equation", "")).replace(" ", "")
    found = re.fullmatch(r"(\.{3})?(\w+),(\w+)->(\.{3})?(\w+)", equation)
    kernel = c.stored_shape("kernel")
    if found is None or kernel is None or len(kernel) != len(found[3]):
        raise c.error(f"has the equation {equation!r} and a kernel {kernel}, which cannot be converted")
    own, result = found[2], found[5]
    if len(own) > x.rank or (not found[1] and len(own) != x.rank):
        raise c.error(f"its equation {equation!r} does not fit an input of {x.rank} dimensions")
    sizes = dict(zip(own, x.dims[x.rank - len(own) :], strict=True)) | dict(zip(found[3], kernel, strict=True))
    dims = [*(x.dims[: x.rank - len(own)] if found[4] else ()), *(sizes.get(letter) for letter in result)]
    y = c.op.Einsum(c.plain(x), c.parameter("kernel", kernel), equation=equation, _name=c.name)
    if c.get("bias_axes"):
        axes = [result.index(letter) for letter in c.get("bias_axes") if letter in result]
        shape = [int(sizes[result[i]]) if i in axes else 1 for i in range(min(axes), len(result))]
        y = c.op.Add(y, c.parameter("bias", shape))
    return activate(c, c.tensor(y, dims), c.get("activation"))


@layer("Embedding", variables="embeddings")
def embedding(c: Context) -> Tensor:
    """A row of a table for each number."""
    rows, size = c.integer("input_dim"), c.integer("output_dim")
    table = c.parameter("embeddings", [rows, size])
    x = c.plain()
    if x.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        x = c.op.Cast(x, to=ir.DataType.INT64)
    y = c.tensor(c.op.Gather(table, x, axis=0, _name=c.name), [*c.x.dims, size])
    return dataclasses.replace(y, masked=bool(c.get("mask_zero", False)))


@layer("Masking")
def masking(c: Context) -> Tensor:
    """Sets steps of which all numbers are `mask_value` to zero, and hides them from layers that heed masks."""
    x = c.floats(c.x)
    different = c.op.Not(c.op.Equal(x.value, c.number("mask_value", 0.0)))
    last = np.array([x.axis(-1)])
    kept = c.op.ReduceMax(c.op.Cast(different, to=ir.DataType.FLOAT), last, keepdims=1)
    y = c.like(x, c.op.Mul(x.value, kept))
    return dataclasses.replace(y, masked=True)


@layer("Identity", "ActivityRegularization")
def identity(c: Context) -> Tensor:
    """Nothing at inference; a penalty on activities is only training's."""
    if c.layer.type == "ActivityRegularization":
        c.note("its penalty, which only training has, is left out")
    return c.x
