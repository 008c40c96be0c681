"""Activation functions by the names that recipes use."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.passes.editing import insert_behind, opset

__all__ = ["ACTIVATION_OPS", "Activation", "activation_node", "insert_activation"]

Activation = Literal[
    "linear",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "mish",
    "sigmoid",
    "hard_sigmoid",
    "hard_swish",
    "tanh",
    "softplus",
    "softsign",
    "softmax",
    "log_softmax",
]


# The operator of each, and the operator set it came with.
_OPERATORS = {
    "relu": ("Relu", 1),
    "leaky_relu": ("LeakyRelu", 1),
    "elu": ("Elu", 1),
    "selu": ("Selu", 1),
    "celu": ("Celu", 12),
    "gelu": ("Gelu", 20),
    "mish": ("Mish", 18),
    "sigmoid": ("Sigmoid", 1),
    "hard_sigmoid": ("HardSigmoid", 1),
    "hard_swish": ("HardSwish", 14),
    "tanh": ("Tanh", 1),
    "softplus": ("Softplus", 1),
    "softsign": ("Softsign", 1),
    "softmax": ("Softmax", 1),
    "log_softmax": ("LogSoftmax", 1),
}
ACTIVATION_OPS = frozenset(op_type for op_type, _ in _OPERATORS.values()) | {"PRelu", "ThresholdedRelu", "Clip"}


def activation_node(kind: Activation) -> str | None:
    """The operator of an activation; None for linear."""
    return None if kind == "linear" else _OPERATORS[kind][0]


def insert_activation(model: ir.Model, value: ir.Value, kind: Activation, name: str, axis: int = -1) -> ir.Value:
    """Inserts an activation behind `value` and returns its output; `value` itself for linear.

    Args:
        model: The model.
        value: What it is applied to.
        kind: Which.
        name: The operator's name, if that is free.
        axis: For softmax and log_softmax: the axis of the units.

    Raises:
        SurgeryError: The model's operator set lacks it.
    """
    if kind == "linear":
        return value
    (op_type, since), version = _OPERATORS[kind], opset(model)
    if version < since:
        raise SurgeryError(
            f"activation {kind} needs operator set {since}; the model has {version}: choose another, or raise "
            "the model's with onnx.version_converter"
        )
    attributes = {}
    if kind in ("softmax", "log_softmax"):
        attributes["axis"] = _softmax_axis(value, axis, version)
    return insert_behind(value, op_type, name, attributes=attributes).outputs[0]


def _softmax_axis(value: ir.Value, axis: int, version: int) -> int:
    """The axis attribute: before operator set 13, Softmax normalizes over `axis` and all that follow it together."""
    rank = None if value.shape is None else len(value.shape)
    if axis < 0 and rank is not None:
        axis += rank
    if version >= 13:
        return axis
    if axis < 0:
        return 1  # of unknown rank: the default, which is right for [N, units]
    if value.shape is not None and any(d != 1 for d in value.shape[axis + 1 :]):
        raise SurgeryError(
            f"a softmax over axis {axis} of {value.shape} cannot be written in operator set {version}; raise the "
            "model's to 13 with onnx.version_converter"
        )
    return axis
