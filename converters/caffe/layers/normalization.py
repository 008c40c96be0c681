"""Normalizations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.caffe.caffe_pb2 import LRNParameter
from converters.caffe.context import Context, layer
from converters.pooling import Window, average_pool
from surgery.marks import set_marks

__all__ = ["absorb_scale"]


@layer("BatchNorm")
def batch_norm(c: Context) -> ir.Value:
    """BatchNorm as BatchNormalization with a scale of 1 and a bias of 0, which a Scale behind it replaces.

    The file's mean and variance are sums, to be divided by its third blob. Caffe gives all three an lr_mult of 0, since
    no gradient changes them; here they are frozen only where ``use_global_stats: true`` says that training keeps them.
    Without weights the mean is 0 and the variance 1.
    """
    c.need(1)
    param = c.layer.batch_norm_param
    c.need_rank(2)
    channels = c.size(1)
    sizes = (("mean", channels), ("var", channels), ("scale factor", 1))
    blobs = [c.blob(index, role, [size]) for index, (role, size) in enumerate(sizes)]
    mean, variance, total = np.zeros(channels, np.float32), np.ones(channels, np.float32), blobs[2]
    if blobs[0] is not None and blobs[1] is not None and total is not None:
        factor = np.float32(0 if total[0] == 0 else 1 / total[0])
        mean, variance = blobs[0] * factor, blobs[1] * factor
    add = c.builder.parameters.add
    inputs = {
        "scale": add(c, "scale", np.ones(channels, np.float32)),
        "bias": add(c, "bias", np.zeros(channels, np.float32)),
        "mean": add(c, "mean", mean),
        "var": add(c, "var", variance),
    }
    for role in ("scale", "bias", *(("mean", "var") if param.use_global_stats else ())):
        set_marks(inputs[role], trainable=False)
    y = c.op.BatchNormalization(
        c.x, *inputs.values(), epsilon=param.eps, momentum=param.moving_average_fraction, _name=c.name
    )
    assert isinstance(y, ir.Value)
    return y


def absorb_scale(c: Context) -> ir.Value | None:
    """Puts a Scale layer's parameters into the BatchNormalization that alone it reads; None where it cannot."""
    param, norm = c.layer.scale_param, c.x.producer()
    alone = norm is not None and norm.op_type == "BatchNormalization" and c.builder.reads(c.layer.bottom[0]) == 1
    if not alone or not c.is_top(c.x, c.layer.bottom[0]) or c.x.uses():
        return None
    if param.axis not in (1, 1 - c.rank()) or param.num_axes != 1:
        return None
    assert norm is not None
    shape = [c.size(1)]
    norm.replace_input_with(1, c.parameter(0, "scale", shape, param.filler, value=1.0))
    if param.bias_term:
        norm.replace_input_with(2, c.parameter(1, "bias", shape, param.bias_filler))
    return c.x


@layer("LRN")
def lrn(c: Context) -> ir.Value:
    """x / (k + α / n · sum of squares) ^ β, the sum over n neighbouring channels, or over an n × n neighbourhood."""
    c.need(1)
    c.need_rank(4, 4)
    param = c.layer.lrn_param
    if param.local_size % 2 == 0:
        raise c.error(f"local_size is {param.local_size} and must be odd")
    if param.norm_region == LRNParameter.ACROSS_CHANNELS:
        return c.op.LRN(c.x, size=param.local_size, alpha=param.alpha, beta=param.beta, bias=param.k)
    # Within a channel Caffe takes 1 for k, and zeros around the image count.
    window = Window(param.local_size, 1, param.local_size // 2)
    squares = c.shaped(c.op.Mul(c.x, c.x), c.dims())
    mean = average_pool(c, squares, [window, window])
    return c.op.Div(c.x, c.op.Pow(c.op.Add(c.op.Mul(mean, float(param.alpha)), 1.0), float(param.beta)))


@layer("MVN")
def mvn(c: Context) -> ir.Value:
    """Mean 0, and perhaps standard deviation 1, over each channel or over all of an example: (x − μ) / (σ + ε)."""
    c.need(1)
    param = c.layer.mvn_param
    axes = list(range(1 if param.across_channels else 2, c.rank()))
    if not axes:
        raise c.error(f"normalizes over the axes behind the channels, and its bottom has {c.rank()} dimensions")
    over = c.op.constant(axes)
    centered = c.op.Sub(c.x, c.op.ReduceMean(c.x, over))
    if not param.normalize_variance:
        return centered
    deviation = c.op.Sqrt(c.op.ReduceMean(c.op.Mul(centered, centered), over))
    return c.op.Div(centered, c.op.Add(deviation, float(param.eps)))


@layer("Normalize")
def normalize(c: Context) -> ir.Value:
    """x / L2 norm, over the channels at each place or over all of an example, times a learned scale (SSD's)."""
    c.need(1)
    c.need_rank(2)
    param = c.layer.norm_param
    axes = list(range(1, c.rank())) if param.across_spatial else [1]
    squares = c.op.ReduceSum(c.op.Mul(c.x, c.x), c.op.constant(axes))
    unit = c.op.Div(c.x, c.op.Sqrt(c.op.Add(squares, float(param.eps))))
    blob_shape = [] if param.channel_shared else [c.size(1)]
    shape = [*blob_shape, *[1] * (c.rank() - 2)] if blob_shape else []
    factor = c.parameter(0, "scale", shape, param.scale_filler, value=1.0, blob_shape=blob_shape)
    return c.op.Mul(unit, factor, _name=c.name)
