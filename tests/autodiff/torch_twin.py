"""Runs ONNX graphs of the classic convolutional networks in PyTorch, operator by operator, so that autograd applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["kinks", "run"]

Inputs = list[Tensor | None]


def run(
    model: ir.Model,
    values: Mapping[str, Tensor],
    output: str,
    *,
    training: bool = False,
    sides: Mapping[str, np.ndarray] | None = None,
) -> Tensor:
    """Computes `output` from the values of inputs and initializers, in their type.

    Args:
        model: The network.
        values: The value of each input, and of the initializers that are not to be taken from the model.
        output: The name of a value.
        training: BatchNormalization uses the batch's statistics.
        sides: Values that a runtime computed, by `kinks`. Relu and MaxPool then choose as they did there: in a deep
            network some unit is always so near to a kink that rounding decides, and the gradient by its choice.
    """
    known: dict[str, Any] = {
        name: torch.tensor(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    known.update(values)
    for node in model.graph:
        inputs = [None if v is None else known[str(v.name)] for v in node.inputs]
        attributes = {name: a.value for name, a in node.attributes.items()}
        if node.op_type == "BatchNormalization":
            attributes["training"] = training
        name = str(node.outputs[0].name)
        if sides is not None and node.op_type == "Relu":
            known[name] = inputs[0] * torch.tensor(sides[name] > 0)
        elif sides is not None and node.op_type == "MaxPool":
            known[name] = _pool_as_there(inputs[0], torch.tensor(sides[str(node.inputs[0].name)]), attributes)
        else:
            known[name] = _OPERATORS[node.op_type](inputs, attributes)
        if name == output:
            break
    return known[output]


def kinks(graph: ir.Graph) -> list[ir.Value]:
    """The values that tell on which side of its kinks a network ran."""
    relus = [node.outputs[0] for node in graph if node.op_type == "Relu"]
    pooled = [node.inputs[0] for node in graph if node.op_type == "MaxPool"]
    return list(dict.fromkeys(v for v in [*relus, *pooled] if v is not None))


def _pool_as_there(x: Tensor, there: Tensor, a: dict[str, Any]) -> Tensor:
    """The elements of `x` that are the largest in `there`."""
    pooled, places = F.max_pool2d(
        _padded(there, a, -torch.inf), a["kernel_shape"], a.get("strides", 1), return_indices=True
    )
    return _padded(x, a, -torch.inf).flatten(2).gather(2, places.flatten(2)).view(pooled.shape)


def _padded(x: Tensor, attributes: dict[str, Any], value: float) -> Tensor:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.pad(x, (left, right, top, bottom), value=value)


def _conv(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x, w, *bias = inputs
    assert x is not None
    stride, dilation = a.get("strides", 1), a.get("dilations", 1)
    return F.conv2d(_padded(x, a, 0), w, bias[0] if bias else None, stride, 0, dilation, a.get("group", 1))


def _max_pool(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    assert inputs[0] is not None
    return F.max_pool2d(_padded(inputs[0], a, -torch.inf), a["kernel_shape"], a.get("strides", 1))


def _average_pool(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x = inputs[0]
    assert x is not None
    sums = F.avg_pool2d(_padded(x, a, 0), a["kernel_shape"], a.get("strides", 1), divisor_override=1)
    counted = _padded(torch.ones_like(x), a, 1.0 if a.get("count_include_pad") else 0.0)
    return sums / F.avg_pool2d(counted, a["kernel_shape"], a.get("strides", 1), divisor_override=1)


def _batch_norm(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x, scale, bias, mean, var = inputs
    assert x is not None
    if a["training"]:
        mean = var = None
    return F.batch_norm(x, mean, var, scale, bias, a["training"], eps=a.get("epsilon", 1e-5))


def _lrn(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    size = a["size"]
    assert inputs[0] is not None
    return F.local_response_norm(inputs[0], size, a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


def _gemm(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x, w, b = inputs
    assert x is not None
    assert w is not None
    return (x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w) + b


def _reshape(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x, shape = inputs
    assert x is not None
    assert shape is not None
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape.tolist())])


def _unsqueeze(inputs: Inputs, a: dict[str, Any]) -> Tensor:
    x, axes = inputs
    assert axes is not None
    for axis in axes.tolist():
        assert x is not None
        x = x.unsqueeze(axis)
    assert x is not None
    return x


_OPERATORS: dict[str, Callable[[Any, dict[str, Any]], Tensor]] = {
    "Add": lambda x, a: x[0] + x[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Conv": _conv,
    "Dropout": lambda x, a: x[0],
    "Flatten": lambda x, a: x[0].flatten(a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, a: x[0].mean((2, 3), keepdim=True),
    "LRN": _lrn,
    "MaxPool": _max_pool,
    "Mul": lambda x, a: x[0] * x[1],
    "Relu": lambda x, a: x[0].relu(),
    "Reshape": _reshape,
    "Shape": lambda x, a: torch.tensor(x[0].shape),
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "Sum": lambda x, a: sum(x),
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
