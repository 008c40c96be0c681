"""Softmax, and what stands at the end of a net for training: losses and measures."""

from __future__ import annotations

import onnx_ir as ir

from converters.caffe.context import Context, layer

__all__: list[str] = []


@layer("Softmax")
def softmax(c: Context) -> ir.Value:
    c.need(1)
    return c.op.Softmax(c.x, axis=c.axis(c.layer.softmax_param.axis))


@layer("SoftmaxWithLoss", "InfogainLoss")
def softmax_with_loss(c: Context) -> list[ir.Value]:
    """Its Softmax is an output; its name is the second top's where the layer has one."""
    axis = c.layer.softmax_param.axis
    if c.layer.type == "InfogainLoss" and not c.layer.HasField("softmax_param"):
        axis = c.layer.infogain_loss_param.axis
    name = c.layer.top[1] if len(c.layer.top) > 1 else ""
    c.builder.defer_output(c, "Softmax", name, axis=c.axis(axis))
    return []


@layer("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy(c: Context) -> list[ir.Value]:
    """Its Sigmoid is an output."""
    c.builder.defer_output(c, "Sigmoid")
    return []


@layer("EuclideanLoss", "HingeLoss", "MultinomialLogisticLoss", "SmoothL1Loss")
def plain_loss(c: Context) -> list[ir.Value]:
    """What it compares with the truth is an output."""
    value = c.x
    c.builder.declare_output(c.layer.bottom[0], value)
    return []


@layer("ContrastiveLoss")
def contrastive_loss(c: Context) -> list[ir.Value]:
    """The two features that it compares are outputs."""
    for name, value in zip(c.layer.bottom[:2], c.bottoms, strict=False):
        c.builder.declare_output(name, value)
    return []


@layer("Accuracy")
def accuracy(c: Context) -> list[ir.Value]:
    """Measures what is an output where the net has no other."""
    value = c.x
    c.builder.last_resort.append((c.layer.bottom[0], value))
    return []


@layer("HDF5Output")
def nothing(c: Context) -> list[ir.Value]:
    """Writes to a file; there is nothing of it in a model."""
    return []
