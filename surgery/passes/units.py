"""Along which axes of a weight one unit's incoming weights lie."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer, parameter_of, stored_axes

__all__ = ["incoming_weights"]


def incoming_weights(layer: Layer) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
    """Yields the weights of a layer, each with the axes that one unit's incoming weights lie along.

    Raises:
        SurgeryError: They lie along none, or it is not known along which.
    """
    for index, value in enumerate(layer.node.inputs):
        parameter = parameter_of(value)
        if parameter in [p for role, p in layer.parameters.items() if "weight" in role]:
            assert value is not None
            assert parameter is not None
            assert parameter.shape is not None
            yield parameter, stored_axes(value, _axes(layer, index, len(parameter.shape)))


def _axes(layer: Layer, index: int, rank: int) -> tuple[int, ...]:
    node = layer.node
    match node.op_type:
        case "Conv":  # [units, inputs, *kernel]
            return tuple(range(1, rank))
        case "ConvTranspose":  # [inputs, units / groups, *kernel]
            return _transposed_axes(layer, rank)
        case "Gemm":  # X·W or X·Wᵀ; as the first operand, W·X
            transposed = bool(node.attributes.get_int("transA" if index == 0 else "transB", 0))
            return (1,) if (index == 0) != transposed else (0,)
        case "MatMul":  # [..., inputs, units]; as the first operand [..., units, inputs]
            return (max(rank - 2, 0),) if index == 1 else (rank - 1,)
        case "Gather":  # an embedding: one row for each word
            return tuple(range(1, rank))
        case "LSTM" | "GRU" | "RNN":  # [directions, gates · units, inputs]
            return (2,)
        case "Einsum":
            return _einsum_axes(layer, index)
        case _:
            raise SurgeryError(
                f"{node.op_type} {layer.name!r}: which axis of its weights counts units is not known; leave it out"
            )


def _transposed_axes(layer: Layer, rank: int) -> tuple[int, ...]:
    groups = layer.node.attributes.get_int("group", 1)
    inputs = layer.parameters["weight"].shape
    assert inputs is not None
    if groups == 1:
        return (0, *range(2, rank))
    if groups == inputs[0]:  # depthwise: each unit sees one input
        return tuple(range(2, rank))
    raise SurgeryError(
        f"the weights of a unit of ConvTranspose {layer.name!r} with {groups} groups lie along no axis; leave it out"
    )


def _einsum_axes(layer: Layer, index: int) -> tuple[int, ...]:
    """The axes of a weight that the equation sums over."""
    equation = layer.node.attributes["equation"].as_string().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        raise SurgeryError(f"equation {equation!r} of Einsum {layer.name!r} does not say which axis counts units")
    return tuple(i for i, label in enumerate(terms.split(",")[index]) if label not in result)
