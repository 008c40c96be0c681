"""Gradient accumulation: one graph adds gradients up, another updates the parameters by their mean.

The mean is over examples, so that it is that of one large batch, whatever the sizes of the batches it is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter

__all__ = ["examples_in", "float_input", "means", "write_sums"]

_EXAMPLES = "accumulated"  # the state that counts them


def _sum_of(name: str) -> str:
    """The name of the sum of a parameter's gradients."""
    return f"{name}/accumulated"


def examples_in(op: Emitter, batch: str) -> ir.Value:
    """Emits the number of examples that the input `batch` has, as a float scalar."""
    value = next(v for v in op.graph.inputs if v.name == batch)
    count = op.Cast(op.Squeeze(op.Shape(value, start=0, end=1)), to=int(ir.DataType.FLOAT))
    count.shape = ir.Shape(())
    return count


def write_sums(
    op: Emitter, parameters: Sequence[ir.Value], gradients: Mapping[ir.Value, ir.Value], examples: ir.Value
) -> tuple[dict[str, ir.Value], dict[str, np.ndarray]]:
    """Emits the sums with one batch more; returns them and the empty ones, by the name of the input that has them.

    Args:
        op: Writes into the graph.
        parameters: What is trained.
        gradients: Of the loss's mean over the batch times `examples`.
        examples: How many examples the batch has.
    """
    result = {_EXAMPLES: op.Add(float_input(op, _EXAMPLES, ir.Shape(())), examples)}
    empty = {_EXAMPLES: np.zeros((), np.float32)}
    for parameter in parameters:
        name = _sum_of(str(parameter.name))
        result[name] = op.Add(float_input(op, name, parameter.shape), gradients[parameter])
        assert parameter.shape is not None
        empty[name] = np.zeros(parameter.shape.numpy(), np.float32)
    return result, empty


def means(op: Emitter, parameters: Sequence[ir.Value]) -> tuple[dict[ir.Value, ir.Value], dict[str, ir.Value]]:
    """Emits the mean gradient of each parameter, and the empty sums that the next group begins with, by name."""
    examples, zero = float_input(op, _EXAMPLES, ir.Shape(())), op.constant(np.float32(0))
    share = op.Div(op.constant(np.float32(1)), examples)
    found, empty = {}, {_EXAMPLES: op.Where(op.constant(np.array(True)), zero, share)}
    for parameter in parameters:
        name = _sum_of(str(parameter.name))
        found[parameter] = op.Mul(float_input(op, name, parameter.shape), share)
        # Of the mean, not the sum: so nothing reads the sum any more when its place is written to. Not by a product
        # with 0, which keeps what is no number.
        empty[name] = op.Where(op.constant(np.array(True)), zero, found[parameter])
    return found, empty


def float_input(op: Emitter, name: str, shape: ir.Shape | None) -> ir.Value:
    """Adds an input of this name to the graph."""
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    op.graph.inputs.append(value)
    return value
