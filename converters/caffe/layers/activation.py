"""Activations and other functions of one number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.caffe.context import Context, layer

__all__: list[str] = []


def _plain(types: str, op_type: str) -> None:
    """Registers a layer that is one operator without attributes."""

    @layer(types)
    def convert(c: Context) -> ir.Value:
        c.need(1)
        function: Callable[[ir.Value], ir.Value] = getattr(c.op, op_type)
        return function(c.x)


_plain("AbsVal", "Abs")
_plain("BNLL", "Softplus")  # log(1 + exp(x))
_plain("Mish", "Mish")
_plain("Sigmoid", "Sigmoid")
_plain("TanH", "Tanh")


@layer("ReLU")
def relu(c: Context) -> ir.Value:
    c.need(1)
    slope = c.layer.relu_param.negative_slope
    return c.op.LeakyRelu(c.x, alpha=slope) if slope else c.op.Relu(c.x)


@layer("ReLU6")
def relu6(c: Context) -> ir.Value:
    c.need(1)
    return c.op.Clip(c.x, 0.0, 6.0)


@layer("PReLU")
def prelu(c: Context) -> ir.Value:
    """A slope for each channel, or one for all; ONNX wants them with an axis for each one behind the channels."""
    c.need(1)
    c.need_rank(2)
    param = c.layer.prelu_param
    behind = [1] * (c.rank() - 2)
    blob_shape = [] if param.channel_shared else [c.size(1)]
    shape = [1] if param.channel_shared else [*blob_shape, *behind]
    return c.op.PRelu(c.x, c.parameter(0, "slope", shape, param.filler, "constant", 0.25, blob_shape))


@layer("ELU")
def elu(c: Context) -> ir.Value:
    c.need(1)
    return c.op.Elu(c.x, alpha=c.layer.elu_param.alpha)


@layer("Swish")
def swish(c: Context) -> ir.Value:
    """x · sigmoid(β x)"""
    c.need(1)
    return c.op.Mul(c.x, c.op.Sigmoid(_scaled(c, c.x, c.layer.swish_param.beta)))


@layer("Clip")
def clip(c: Context) -> ir.Value:
    c.need(1)
    return c.op.Clip(c.x, c.layer.clip_param.min, c.layer.clip_param.max)


@layer("Threshold")
def threshold(c: Context) -> ir.Value:
    """1 above the threshold, else 0."""
    c.need(1)
    return c.op.Cast(c.op.Greater(c.x, c.layer.threshold_param.threshold), to=ir.DataType.FLOAT)


@layer("Dropout")
def dropout(c: Context) -> ir.Value:
    """Dropout stays, with its ratio; ONNX's passes its input on unless training mode is switched on, as in Caffe."""
    c.need(1)
    ratio = np.array(c.layer.dropout_param.dropout_ratio, np.float32)
    if not 0 <= ratio < 1:
        raise c.error(f"dropout_ratio is {ratio} and must be 0 or more, and less than 1")
    return c.op.Dropout(c.x, c.builder.parameters.add(c, "ratio", ratio))


def _scaled(c: Context, x: ir.Value, scale: float, shift: float = 0.0) -> ir.Value:
    """scale · x + shift, without what changes nothing."""
    if scale != 1:
        x = c.op.Mul(x, float(scale))
    return c.op.Add(x, float(shift)) if shift != 0 else x


@layer("Power")
def power(c: Context) -> ir.Value:
    """(shift + scale · x) ^ power"""
    c.need(1)
    param = c.layer.power_param
    x = _scaled(c, c.x, param.scale, param.shift)
    return c.op.Pow(x, float(param.power)) if param.power != 1 else x


def _log_base(c: Context, base: float) -> float:
    """ln(base); -1 stands for e."""
    if base != -1 and base <= 0:
        raise c.error(f"base is {base} and must be positive, or -1 for e")
    return 1.0 if base == -1 else math.log(base)


@layer("Exp")
def exp(c: Context) -> ir.Value:
    """base ^ (shift + scale · x)"""
    c.need(1)
    param = c.layer.exp_param
    factor = _log_base(c, param.base)
    return c.op.Exp(_scaled(c, c.x, param.scale * factor, param.shift * factor))


@layer("Log")
def log(c: Context) -> ir.Value:
    """log_base(shift + scale · x)"""
    c.need(1)
    param = c.layer.log_param
    factor = _log_base(c, param.base)
    if factor == 0:
        raise c.error("base is 1, to which there is no logarithm")
    return _scaled(c, c.op.Log(_scaled(c, c.x, param.scale, param.shift)), 1 / factor)
