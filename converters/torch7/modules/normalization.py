"""Normalizations, and dropout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.torch7.context import Context, module

__all__: list[str] = []


@module("BatchNormalization")
def batch_normalization(c: Context) -> ir.Value:
    c.need_rank(2)
    return _batch_normalization(c)


@module("SpatialBatchNormalization")
def spatial_batch_normalization(c: Context) -> ir.Value:
    c.need_rank(4)
    return _batch_normalization(c)


def _batch_normalization(c: Context) -> ir.Value:
    """With the statistics of the file. Old files have 1 / √(variance + ε) in place of the variance, ``running_std``."""
    mean = c.tensor("running_mean")
    if mean is None:
        raise c.error("has no running_mean; the file was saved without its parameters")
    channels, eps = mean.size, c.number("eps", 1e-5)
    have = c.dims()[1]
    if isinstance(have, int) and have != channels:
        raise c.error(f"takes {channels} channels, and is given {have}")
    if eps < 0:
        raise c.error(f"its eps is {eps:g}, which cannot be")
    if c.has("weight"):
        affine = [c.parameter("weight", "scale", [channels]), c.parameter("bias", "bias", [channels])]
    else:  # no parameters to train
        affine = [
            c.add_parameter("scale", np.ones(channels), trainable=False),
            c.add_parameter("bias", np.zeros(channels), trainable=False),
        ]
    momentum = 1 - c.number("momentum", 0.1)  # of the old value in ONNX, of the new one in Torch
    statistics = [c.parameter("running_mean", "mean", [channels]), _variance(c, channels, eps)]
    y = c.op.BatchNormalization(c.x, *affine, *statistics, epsilon=eps, momentum=momentum)
    return c.shaped(y, c.dims())


def _variance(c: Context, channels: int, eps: float) -> ir.Value:
    deviation = c.tensor("running_std")
    if c.has("running_var") or deviation is None:
        return c.parameter("running_var", "var", [channels])
    inverse = np.asarray(deviation.numpy().ravel(), np.float64)
    if len(inverse) != channels or not (inverse > 0).all():
        raise c.error(f"its running_std must be {channels} numbers above 0")
    return c.add_parameter("var", np.maximum(inverse**-2 - eps, 0))


@module("SpatialCrossMapLRN", "SpatialCrossResponseNormalization")
def lrn(c: Context) -> ir.Value:
    """x / (k + α / n · sum of squares over n neighbouring channels) ^ β; cudnn says K for k."""
    c.need_rank(4)
    size = c.integer("size", 5, least=1)
    if size % 2 == 0:
        raise c.error(f"its size is {size} and must be odd")
    k = c.number("K") if c.has("K") else c.number("k", 1.0)
    return c.op.LRN(c.x, size=size, alpha=c.number("alpha", 1e-4), beta=c.number("beta", 0.75), bias=k)


@module("Normalize")
def normalize(c: Context) -> ir.Value:
    """x / (Σ |x|ᵖ + ε) ^ (1 / p)"""
    c.need_rank(2)
    op, p, eps = c.op, c.module.fields.get("p"), c.number("eps", 1e-10)
    size = op.Abs(c.x)
    if p == float("inf"):
        return op.Div(c.x, op.Add(op.ReduceMax(size, op.constant([1]), keepdims=1), eps))
    power = c.number("p")
    if power <= 0:
        raise c.error(f"its p is {power:g}, which cannot be")
    raised = op.Mul(c.x, c.x) if power == 2 else op.Pow(size, power)
    total = op.Add(op.ReduceSum(raised, op.constant([1]), keepdims=1), eps)
    return op.Div(c.x, op.Sqrt(total) if power == 2 else op.Pow(total, 1 / power))


def _ratio(c: Context) -> float:
    ratio = c.number("p", 0.5)
    if not 0 <= ratio < 1:
        raise c.error(f"its p is {ratio:g} and must be 0 or more, and less than 1")
    return ratio


def _dropout(c: Context, x: ir.Value, ratio: float) -> ir.Value:
    y = c.op.Dropout(x, c.builder.add_parameter(f"{c.name}.ratio", np.array(ratio, np.float32)), _name=c.name)
    assert isinstance(y, ir.Value)
    return c.shaped(y, c.dims(x))


@module("Dropout")
def dropout(c: Context) -> ir.Value:
    """ONNX's Dropout scales when it trains. Old files scale when they infer instead: times 1 − p, always."""
    ratio = _ratio(c)
    y = _dropout(c, c.x, ratio)
    return y if c.flag("v2") or not ratio else c.op.Mul(y, 1 - ratio, _name=f"{c.name}/scale")


@module("SpatialDropout")
def spatial_dropout(c: Context) -> ir.Value:
    """Drops whole channels: Dropout of a one for each, that multiplies it. It scales when it infers."""
    c.need_rank(4)
    ratio = _ratio(c)
    ends = c.op.Concat(c.op.Shape(c.x, start=0, end=2), c.op.constant([1, 1]), axis=0)
    ones = c.op.Expand(c.op.constant(np.ones((1, 1, 1, 1), np.float32)), ends)
    kept = _dropout(c, c.shaped(ones, [*c.dims()[:2], 1, 1]), ratio)
    return c.op.Mul(c.op.Mul(c.x, kept), 1 - ratio)
