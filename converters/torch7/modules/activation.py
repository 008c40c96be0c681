"""Activations and other functions of one number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.torch7.context import Context, Nested, module
from converters.torch7.objects import Tensor

__all__: list[str] = []


@module("Identity", "Copy", "Contiguous", "GradientReversal", "L1Penalty", "PrintSize", "Profile", "WhiteNoise")
def identity(c: Context) -> Nested:
    """What does nothing when it infers; a Copy only changes the type of number."""
    return c.input


def _plain(type: str, op_type: str) -> None:
    """Registers a module that is one operator without attributes."""

    @module(type)
    def convert(c: Context) -> ir.Value:
        function: Callable[[ir.Value], ir.Value] = getattr(c.op, op_type)
        return function(c.x)


for _type, _op_type in {
    "Abs": "Abs",
    "Exp": "Exp",
    "Log": "Log",
    "Sigmoid": "Sigmoid",
    "SoftSign": "Softsign",
    "Sqrt": "Sqrt",
    "Tanh": "Tanh",
}.items():
    _plain(_type, _op_type)


@module("ReLU")
def relu(c: Context) -> ir.Value:
    return c.op.Relu(c.x)


@module("Threshold")
def threshold(c: Context) -> ir.Value:
    """x above the threshold, else another number."""
    least, other = c.number("threshold", 1e-6), c.number("val", 0.0)
    if least == other == 0:
        return c.op.Relu(c.x)
    return c.op.Where(c.op.Greater(c.x, least), c.x, np.array(other, np.float32))


@module("ReLU6")
def relu6(c: Context) -> ir.Value:
    return c.op.Clip(c.x, 0.0, 6.0)


@module("HardTanh", "Clamp")
def hard_tanh(c: Context) -> ir.Value:
    return c.op.Clip(c.x, c.number("min_val", -1.0), c.number("max_val", 1.0))


@module("LeakyReLU")
def leaky_relu(c: Context) -> ir.Value:
    return c.op.LeakyRelu(c.x, alpha=c.number("negval", 0.01))


@module("RReLU")
def rrelu(c: Context) -> ir.Value:
    """When it infers, the mean of the slopes between which it chooses when it trains."""
    return c.op.LeakyRelu(c.x, alpha=(c.number("lower", 1 / 8) + c.number("upper", 1 / 3)) / 2)


@module("PReLU")
def prelu(c: Context) -> ir.Value:
    """One slope, or one for each channel; ONNX wants these with an axis for each one behind the channels."""
    if c.integer("nOutputPlane", 0) == 0:
        return c.op.PRelu(c.x, c.parameter("weight", "slope", [1]))
    c.need_rank(2, 3, 4, 5)
    return c.op.PRelu(c.x, c.parameter("weight", "slope", [c.size(1), *[1] * (c.rank() - 2)]))


@module("ELU")
def elu(c: Context) -> ir.Value:
    return c.op.Elu(c.x, alpha=c.number("alpha", 1.0))


@module("SoftPlus")
def soft_plus(c: Context) -> ir.Value:
    """log(1 + exp(β x)) / β"""
    beta = c.number("beta", 1.0)
    if beta == 1:
        return c.op.Softplus(c.x)
    if beta == 0:
        raise c.error("its beta is 0, which cannot be")
    return c.op.Mul(c.op.Softplus(c.op.Mul(c.x, beta)), 1 / beta)


@module("LogSigmoid")
def log_sigmoid(c: Context) -> ir.Value:
    return c.op.Neg(c.op.Softplus(c.op.Neg(c.x)))


@module("Square")
def square(c: Context) -> ir.Value:
    return c.op.Mul(c.x, c.x)


@module("Power")
def power(c: Context) -> ir.Value:
    return c.op.Pow(c.x, c.number("pow"))


@module("MulConstant")
def multiply_constant(c: Context) -> ir.Value:
    return c.op.Mul(c.x, c.number("constant_scalar"))


@module("AddConstant")
def add_constant(c: Context) -> ir.Value:
    """One number, or one for each number of an example."""
    value = c.module.fields.get("constant_scalar")
    if isinstance(value, Tensor):
        c.need_rank(2)
        data = np.asarray(value.numpy().ravel(), np.float32)
        if len(data) != c.size(1):
            raise c.error(f"adds {len(data)} numbers to {c.size(1)}")
        return c.op.Add(c.x, c.add_parameter("constant", data, trainable=False))
    return c.op.Add(c.x, c.number("constant_scalar"))


@module("Mul")
def multiply(c: Context) -> ir.Value:
    """Times one learned number."""
    return c.op.Mul(c.x, c.parameter("weight", "weight", [1]))


def _softmax_axis(c: Context) -> int:
    """Over the numbers of an example, or the channels of an image, with or without a batch's axis (THNN)."""
    c.need_rank(1, 2, 3, 4)
    return 1 if c.rank() in (2, 4) else 0


@module("SoftMax", "SpatialSoftMax")
def softmax(c: Context) -> ir.Value:
    return c.op.Softmax(c.x, axis=_softmax_axis(c))


@module("LogSoftMax", "SpatialLogSoftMax")
def log_softmax(c: Context) -> ir.Value:
    return c.op.LogSoftmax(c.x, axis=_softmax_axis(c))


@module("SoftMin")
def softmin(c: Context) -> ir.Value:
    return c.op.Softmax(c.op.Neg(c.x), axis=_softmax_axis(c))
