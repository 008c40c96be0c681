"""Convolution and its relatives (THNN's SpatialConvolutionMM.c and its neighbours)."""

from __future__ import annotations

import onnx_ir as ir

from converters.options import Dim
from converters.torch7.context import Context, module

__all__: list[str] = []


def _window(c: Context) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding as (height, width)."""
    kernel = [c.integer(name, least=1) for name in ("kH", "kW")]
    stride = [c.integer(name, 1, least=1) for name in ("dH", "dW")]
    if c.has("padding"):  # files from before padH and padW
        return kernel, stride, [c.integer("padding", least=0)] * 2
    return kernel, stride, [c.integer(name, 0, least=0) for name in ("padH", "padW")]


def _planes(c: Context, channels_of: ir.Value) -> tuple[int, int, int]:
    """Input and output channels and groups, checked against what is read."""
    planes, outputs = (c.integer(name, least=1) for name in ("nInputPlane", "nOutputPlane"))
    groups = c.integer("groups", 1, least=1)
    if planes % groups or outputs % groups:
        raise c.error(f"{planes} and {outputs} channels do not divide into {groups} groups")
    have = c.dims(channels_of)[1]
    if isinstance(have, int) and have != planes:
        raise c.error(f"takes {planes} channels, and is given {have}")
    return planes, outputs, groups


@module("SpatialConvolution", "SpatialConvolutionMM", "SpatialDilatedConvolution")
def convolution(c: Context) -> ir.Value:
    c.need_rank(4)
    kernel, stride, pad = _window(c)
    dilation = [c.integer(name, 1, least=1) for name in ("dilationH", "dilationW")]
    planes, outputs, groups = _planes(c, c.x)
    weight = c.parameter("weight", "weight", [outputs, planes // groups, *kernel])
    bias = c.parameter("bias", "bias", [outputs]) if c.has("bias") else None
    dims = c.dims()
    sizes: list[Dim | None] = [
        None if isinstance(d, str) else (d + 2 * p - q * (k - 1) - 1) // s + 1
        for d, k, p, s, q in zip(dims[2:], kernel, pad, stride, dilation, strict=True)
    ]
    y = c.op.Conv(
        c.x, weight, bias, kernel_shape=kernel, pads=pad * 2, strides=stride, dilations=dilation, group=groups
    )
    return c.shaped(y, [dims[0], outputs, *sizes])


@module("SpatialFullConvolution")
def full_convolution(c: Context) -> ir.Value:
    """The weight is [input, output / groups, height, width], as ONNX's."""
    c.need_rank(4)
    kernel, stride, pad = _window(c)
    more = [c.integer(name, 0, least=0) for name in ("adjH", "adjW")]
    planes, outputs, groups = _planes(c, c.x)
    if any(a >= s for a, s in zip(more, stride, strict=True)):
        raise c.error("its adjH and adjW must be less than its dH and dW")
    weight = c.parameter("weight", "weight", [planes, outputs // groups, *kernel])
    bias = c.parameter("bias", "bias", [outputs]) if c.has("bias") else None
    dims = c.dims()
    sizes: list[Dim | None] = [
        None if isinstance(d, str) else (d - 1) * s + k - 2 * p + a
        for d, k, p, s, a in zip(dims[2:], kernel, pad, stride, more, strict=True)
    ]
    y = c.op.ConvTranspose(
        c.x, weight, bias, kernel_shape=kernel, pads=pad * 2, strides=stride, output_padding=more, group=groups
    )
    return c.shaped(y, [dims[0], outputs, *sizes])


@module("Linear")
def linear(c: Context) -> ir.Value:
    c.need_rank(2)
    weight = c.tensor("weight")
    if weight is None or len(weight.shape) != 2:
        raise c.error("has no weight of two dimensions; the file was saved without its parameters")
    units, inputs = weight.shape
    have = c.dims()[1]
    if isinstance(have, int) and have != inputs:
        raise c.error(f"takes {inputs} numbers, and is given {have}")
    bias = c.parameter("bias", "bias", [units]) if c.has("bias") else None
    y = c.op.Gemm(c.x, c.parameter("weight", "weight", weight.shape), bias, transB=1)
    return c.shaped(y, [c.dims()[0], units])


@module("SpatialUpSamplingNearest")
def upsample_nearest(c: Context) -> ir.Value:
    return _resize(c, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@module("SpatialUpSamplingBilinear")
def upsample_bilinear(c: Context) -> ir.Value:
    """Corners stay corners."""
    return _resize(c, mode="linear", coordinate_transformation_mode="align_corners")


def _resize(c: Context, **attributes: str) -> ir.Value:
    c.need_rank(4)
    dims = c.dims()
    if c.has("oheight") and c.has("owidth") and not c.has("scale_factor"):
        sizes = [c.integer(name, least=1) for name in ("oheight", "owidth")]
        lead = c.op.Shape(c.x, start=0, end=2)
        target = c.op.Concat(lead, c.op.constant(sizes), axis=0)
        return c.shaped(c.op.Resize(c.x, None, None, target, **attributes), [*dims[:2], *sizes])
    factor = c.integer("scale_factor", least=1)
    scaled = [None if isinstance(d, str) else d * factor for d in dims[2:]]
    lead, behind = c.op.Shape(c.x, start=0, end=2), c.op.Shape(c.x, start=2, end=4)
    target = c.op.Concat(lead, c.op.Mul(behind, c.op.constant([factor])), axis=0)
    return c.shaped(c.op.Resize(c.x, None, None, target, **attributes), [*dims[:2], *scaled])
