"""Convolution and its relatives (caffe.proto, ConvolutionParameter)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from converters.caffe.context import Context, Dim, layer

__all__ = ["output_sizes", "window"]


def _spatial(c: Context, param: object, name: str, rank: int, default: int | None) -> list[int]:
    """One of kernel_size, pad, stride, dilation for each spatial axis: ``x``, ``x: a x: b``, or ``x_h`` and ``x_w``."""
    values = list(getattr(param, name))
    short = name.removesuffix("_size")
    pair = [f"{short}_h", f"{short}_w"]
    if all(hasattr(param, p) for p in pair) and any(param.HasField(p) for p in pair):  # type: ignore[attr-defined]
        if values:
            raise c.error(f"has both {name} and {pair[0]} or {pair[1]}; one of the two ways")
        values = [getattr(param, p) for p in pair]
    if not values and default is not None:
        values = [default]
    if len(values) not in (1, rank):
        raise c.error(f"has {len(values)} {name} for {rank} spatial dimensions")
    return values * rank if len(values) == 1 else values


def window(c: Context) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, pad, stride and dilation, checked."""
    param = c.layer.convolution_param
    rank = c.rank() - 2
    if param.axis not in (1, 1 - c.rank()) or rank < 1:
        raise c.error(f"convolves over axes behind {param.axis} of {c.rank()}; only axis 1 can be converted")
    kernel = _spatial(c, param, "kernel_size", rank, None)
    stride = _spatial(c, param, "stride", rank, 1)
    pad = _spatial(c, param, "pad", rank, 0)
    dilation = _spatial(c, param, "dilation", rank, 1)
    for name, values in (("kernel_size", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) < 1:
            raise c.error(f"{name} is {min(values)} and must be 1 or more")
    return kernel, pad, stride, dilation


def _channels(c: Context, outputs: bool) -> int:
    """The channels of the bottom; where unknown, what the weights in the file say."""
    if isinstance(c.dims()[1], str) and (shape := c.builder.parameters.shape(c, 0)) and len(shape) > 2:
        return shape[1] * c.layer.convolution_param.group if not outputs else shape[0]
    return c.size(1)


def _check_outputs(c: Context) -> None:
    if c.layer.convolution_param.num_output < 1 or c.layer.convolution_param.group < 1:
        raise c.error("num_output and group must be 1 or more")


@layer("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise")
def convolution(c: Context) -> list[ir.Value]:
    """Convolution as Conv. Several bottoms go through the same weights, each to a top of its own."""
    param = c.layer.convolution_param
    kernel, pad, stride, dilation = window(c)
    _check_outputs(c)
    channels = _channels(c, outputs=False)
    group = param.group if c.layer.type == "Convolution" or param.HasField("group") else channels
    if channels % group or param.num_output % group:
        raise c.error(f"{channels} channels and {param.num_output} outputs do not divide into {group} groups")
    weight, bias = _parameters(c, [param.num_output, channels // group, *kernel])
    tops = []
    for x in c.bottoms:
        _same_channels(c, x, channels)
        dims = c.dims(x)
        sizes = output_sizes(dims[2:], kernel, pad, stride, dilation)
        y = c.op.Conv(
            x, weight, bias, kernel_shape=kernel, pads=pad * 2, strides=stride, dilations=dilation, group=group
        )
        tops.append(c.shaped(y, [dims[0], param.num_output, *sizes]))
    return tops


def output_sizes(
    sizes: Sequence[Dim], kernel: list[int], pad: list[int], stride: list[int], dilation: list[int]
) -> list[Dim | None]:
    """The sizes behind a convolution; None for those that are not known."""
    return [
        None if isinstance(d, str) else (d + 2 * p - q * (k - 1) - 1) // s + 1
        for d, k, p, s, q in zip(sizes, kernel, pad, stride, dilation, strict=True)
    ]


def _same_channels(c: Context, x: ir.Value, channels: int) -> None:
    c.need_rank(c.rank(), c.rank(), x)
    if isinstance(c.dims(x)[1], int) and c.dims(x)[1] != channels:
        raise c.error(f"its bottoms have different channels: {channels} and {c.dims(x)[1]}")


def _parameters(c: Context, shape: Sequence[int]) -> tuple[ir.Value, ir.Value | None]:
    param = c.layer.convolution_param
    weight = c.parameter(0, "weight", shape, param.weight_filler, "xavier")
    bias = c.parameter(1, "bias", [param.num_output], param.bias_filler) if param.bias_term else None
    return weight, bias


@layer("Deconvolution")
def deconvolution(c: Context) -> list[ir.Value]:
    """Deconvolution as ConvTranspose; the weight is [channels, outputs / group, …] in both."""
    param = c.layer.convolution_param
    kernel, pad, stride, dilation = window(c)
    _check_outputs(c)
    channels = _channels(c, outputs=True)
    if channels % param.group or param.num_output % param.group:
        raise c.error(f"{channels} channels and {param.num_output} outputs do not divide into {param.group} groups")
    weight, bias = _parameters(c, [channels, param.num_output // param.group, *kernel])
    tops = []
    for x in c.bottoms:
        _same_channels(c, x, channels)
        dims = c.dims(x)
        sizes: list[Dim | None] = [
            None if isinstance(d, str) else (d - 1) * s + q * (k - 1) + 1 - 2 * p
            for d, k, p, s, q in zip(dims[2:], kernel, pad, stride, dilation, strict=True)
        ]
        y = c.op.ConvTranspose(
            x, weight, bias, kernel_shape=kernel, pads=pad * 2, strides=stride, dilations=dilation, group=param.group
        )
        tops.append(c.shaped(y, [dims[0], param.num_output, *sizes]))
    return tops
