"""A small network for those who have none: standardized features, a hidden layer, an output."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter, initializer
from surgery.io import IR_VERSION, infer_shapes
from surgery.passes.initializers import initialize

__all__ = ["perceptron"]

_OPSET = 21


def perceptron(
    examples: np.ndarray, units: int, activation: Literal["softmax", "linear"], seed: int, hidden: int = 100
) -> ir.Model:
    """Returns a multi-layer perceptron with random weights.

    Args:
        examples: `[N, features]`; their mean and standard deviation are taken out first, as part of the network.
        units: At the output.
        activation: At the output.
        seed: Of the weights.
        hidden: Units of the hidden layer, with ReLU.
    """
    features = examples.shape[1]
    x = ir.val("features", ir.DataType.FLOAT, ("N", features))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": _OPSET}, name="perceptron")
    op = Emitter(graph)

    def dense(value: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
        first = {"weight": initialize("glorot", shape, seed, name), "bias": np.zeros(shape[0])}
        parameters = [initializer(graph, f"{name}.{role}", a.astype(np.float32)) for role, a in first.items()]
        return op.Gemm(value, *parameters, transB=1, _name=name)

    mean, spread = (f(examples.astype(np.float64), axis=0) for f in (np.mean, np.std))
    spread[spread < 1e-12] = 1  # a feature that never changes
    value = op.Sub(x, op.constant(mean.astype(np.float32)))
    value = op.Div(value, op.constant(spread.astype(np.float32)), _name="standardized")
    value = dense(value, "hidden", (hidden, features))
    value = dense(op.Relu(value, _name="hidden/relu"), "head", (units, hidden))
    if activation == "softmax":
        value = op.Softmax(value, axis=1, _name="softmax")
    value.name, value.type = "output", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)
    model = ir.Model(graph, ir_version=IR_VERSION)
    infer_shapes(model)
    return model
