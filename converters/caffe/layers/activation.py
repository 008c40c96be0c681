"""Activations and other functions of one number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.caffe.context import Context, layer

__all__: list[str] = []


@layer("ReLU")
def relu(c: Context) -> ir.Value:
    c.need(1)
    slope = c.layer.relu_param.negative_slope
    return c.op.LeakyRelu(c.x, alpha=slope) if slope else c.op.Relu(c.x)


@layer("PReLU")
def prelu(c: Context) -> ir.Value:
    """A slope for each channel, or one for all; ONNX wants them with an axis for each one behind the channels."""
    c.need(1)
    param = c.layer.prelu_param
    behind = [1] * (c.rank() - 2)
    blob_shape = [] if param.channel_shared else [c.size(1)]
    slope = c.parameter(
        0, "slope", [1] if param.channel_shared else [*blob_shape, *behind], param.filler, "constant", 0.25, blob_shape
    )
    return c.op.PRelu(c.x, slope)


@layer("Dropout")
def dropout(c: Context) -> ir.Value:
    """Dropout stays, with its ratio; ONNX's passes its input on unless training mode is switched on, as in Caffe."""
    c.need(1)
    ratio = np.array(c.layer.dropout_param.dropout_ratio, np.float32)
    if not 0 <= ratio < 1:
        raise c.error(f"dropout_ratio is {ratio} and must be 0 or more, and less than 1")
    return c.op.Dropout(c.x, c.builder.parameters.add(c, "ratio", ratio))
