"""Losses: each writes the mean over the batch of what a prediction costs, from the network's logits.

A Softmax or Sigmoid at the end of a network is left out while training: the loss of the logits is the same number,
computed without overflow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter
from surgery.errors import SurgeryError

__all__ = ["LOSSES", "Loss", "strip_activation"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and the metric reported beside it.

    Attributes:
        name: Its name in recipes.
        target: The type of the targets: int64 class numbers `[N]`, or floats of the output's shape.
        metric: The metric's name.
        write: Emits ``(loss, metric)``, two scalars, from logits and targets.
    """

    name: str
    target: ir.DataType
    metric: str
    write: Callable[[Emitter, ir.Value, ir.Value], tuple[ir.Value, ir.Value]]


def _mean(op: Emitter, value: ir.Value) -> ir.Value:
    return op.ReduceMean(value, keepdims=0)


def _cross_entropy(op: Emitter, logits: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
    """−log softmax(logits)[target]; ONNX's SoftmaxCrossEntropyLoss."""
    shape = logits.shape
    classes = shape[1] if shape is not None and len(shape) == 2 else None
    if not isinstance(classes, int):
        raise SurgeryError(f"cross_entropy needs an output of shape [N, classes]; {logits.name!r} has {shape}")
    log_p = op.LogSoftmax(logits, axis=1)
    one_hot = op.OneHot(target, op.constant(np.array(classes)), op.constant(np.array([0, 1], np.float32)), axis=-1)
    cost = op.Neg(op.ReduceSum(op.Mul(log_p, one_hot), op.constant([1]), keepdims=0))
    hit = op.Cast(op.Equal(op.ArgMax(logits, axis=1, keepdims=0), target), to=int(ir.DataType.FLOAT))
    return _mean(op, cost), _mean(op, hit)


def _binary_cross_entropy(op: Emitter, logits: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
    """max(x, 0) − x·t + log(1 + exp(−|x|)), which is −t·log σ(x) − (1−t)·log(1−σ(x)) without overflow."""
    cost = op.Sub(op.Softplus(logits), op.Mul(logits, target))
    said = op.Cast(op.Greater(logits, 0.0), to=int(ir.DataType.FLOAT))
    wanted = op.Cast(op.Greater(target, 0.5), to=int(ir.DataType.FLOAT))
    hit = op.Cast(op.Equal(said, wanted), to=int(ir.DataType.FLOAT))
    return _mean(op, cost), _mean(op, hit)


def _mean_squared_error(op: Emitter, output: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
    error = op.Sub(output, target)
    return _mean(op, op.Mul(error, error)), _mean(op, op.Abs(error))


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", ir.DataType.INT64, "accuracy", _cross_entropy),
        Loss("binary_cross_entropy", ir.DataType.FLOAT, "accuracy", _binary_cross_entropy),
        Loss("mean_squared_error", ir.DataType.FLOAT, "mean_absolute_error", _mean_squared_error),
    )
}

_PASSING = {"Identity", "Flatten", "Reshape", "Squeeze"}  # what may stand behind the last activation
_OF_ACTIVATION = {"Softmax": "cross_entropy", "LogSoftmax": "cross_entropy", "Sigmoid": "binary_cross_entropy"}


def _on_classes(node: ir.Node) -> bool:
    """Whether a Softmax or LogSoftmax runs over axis 1."""
    shape, axis = node.outputs[0].shape, node.attributes.get_int("axis", -1)
    return axis == 1 or (shape is not None and axis + len(shape) == 1)


def strip_activation(graph: ir.Graph, output: ir.Value, loss: str = "auto") -> str | None:
    """Takes the Softmax, LogSoftmax or Sigmoid that `loss` is written for away from `output`, which then gives logits.

    Args:
        graph: The graph, edited in place.
        output: One of its outputs.
        loss: A name of `LOSSES`; ``auto`` takes any away.

    Returns:
        The name of the loss that fits what was taken away, or None where nothing was.
    """
    node = output.producer()
    while node is not None and node.op_type in _PASSING:
        source = node.inputs[0]
        node = source.producer() if source is not None and len(source.uses()) == 1 else None
    fitting = _OF_ACTIVATION.get(node.op_type) if node is not None else None
    if node is None or fitting is None or loss not in ("auto", fitting):
        return None
    if fitting == "cross_entropy" and not _on_classes(node):
        return None
    logits = node.inputs[0]
    assert logits is not None
    if node.outputs[0].is_graph_output():  # the output keeps its name
        identity = ir.node("Identity", [logits], outputs=[ir.Value(name=f"{output.name}/logits", shape=logits.shape)])
        identity.outputs[0].type = logits.type
        graph.insert_after(node, identity)
        graph.outputs[list(graph.outputs).index(node.outputs[0])] = identity.outputs[0]
        node.outputs[0].replace_all_uses_with(identity.outputs[0])
    else:
        node.outputs[0].replace_all_uses_with(logits)
    graph.remove(node, safe=True)
    return fitting
