"""Heads and the like, seen as units: one row of weights and one bias for each, whatever operator computes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer, parameter_of
from surgery.marks import marks, set_marks
from surgery.passes.editing import (
    constant_of,
    forget_shapes,
    insert_behind,
    new_parameter,
    register,
    replace_parameter,
)
from surgery.passes.units import incoming_weights

__all__ = ["UNIT_OPS", "adapt_constraint", "layer_stem", "read_units", "write_units"]


UNIT_OPS = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose"})


def layer_stem(layer: Layer) -> str:
    """What the names of the layer's parameters begin with: ``fc`` of ``fc.weight`` or ``fc.bias``, else its name."""
    for role in ("weight", "bias"):
        name = layer.parameters[role].name if role in layer.parameters else None
        if name and name.endswith(f".{role}"):
            return name.removesuffix(f".{role}")
    return layer.name


def _check(layer: Layer) -> np.ndarray:
    """The weight as the operator sees it."""
    node = layer.node
    weight = constant_of(node.inputs[1])
    if weight is None or parameter_of(node.inputs[1]) is None or "weight_" in layer.parameters:
        raise SurgeryError(f"{node.op_type} {layer.name!r}: its weight is not a constant second input")
    if node.op_type in ("Gemm", "MatMul") and weight.ndim != 2:
        raise SurgeryError(f"{node.op_type} {layer.name!r}: its weight of shape {weight.shape} is not a matrix")
    if node.op_type not in UNIT_OPS:
        raise SurgeryError(f"layer {layer.name!r} is a {node.op_type}, not a {', '.join(sorted(UNIT_OPS))}")
    return weight


def _to_rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """A stored weight as `[units, inputs, *kernel]`."""
    if node.op_type == "ConvTranspose":  # [inputs, units / groups, *kernel], group by group
        groups, kernel = node.attributes.get_int("group", 1), weight.shape[2:]
        split = weight.reshape(groups, -1, weight.shape[1], *kernel)
        return split.swapaxes(1, 2).reshape(groups * weight.shape[1], -1, *kernel)
    return weight if _rows_first(node) else weight.T


def _from_rows(node: ir.Node, rows: np.ndarray) -> np.ndarray:
    if node.op_type == "ConvTranspose":
        groups, kernel = node.attributes.get_int("group", 1), rows.shape[2:]
        split = rows.reshape(groups, -1, rows.shape[1], *kernel)
        return split.swapaxes(1, 2).reshape(groups * rows.shape[1], -1, *kernel)
    return rows if _rows_first(node) else rows.T


def _rows_first(node: ir.Node) -> bool:
    return node.op_type == "Conv" or (node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)))


def read_units(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights `[units, inputs, *kernel]` and the biases `[units]` of a layer, in float64.

    Raises:
        SurgeryError: It is no Gemm, MatMul, Conv or ConvTranspose, or its weights are not constants.
    """
    node = layer.node
    rows = _to_rows(node, _check(layer).astype(np.float64))
    bias = np.zeros(len(rows))
    if (value := layer.parameters.get("bias")) is not None:
        data = constant_of(value)
        assert data is not None
        if data.size not in (1, len(rows)):
            raise SurgeryError(f"{node.op_type} {layer.name!r}: its bias of shape {data.shape} does not fit its units")
        bias = np.array(np.broadcast_to(data.astype(np.float64).reshape(-1), len(rows)))
    if node.op_type == "Gemm":
        rows = rows * node.attributes.get_float("alpha", 1.0)
        bias = bias * node.attributes.get_float("beta", 1.0)
    return rows, bias


def write_units(layer: Layer, rows: np.ndarray, bias: np.ndarray, name: str, *, keep_marks: bool = False) -> None:
    """Gives a layer of `UNIT_OPS` other weights and biases; the graph's shapes behind it are to be inferred anew.

    Args:
        layer: The layer; a stale view of the graph afterwards.
        rows: `[units, inputs, *kernel]`.
        bias: `[units]`; where the layer has none, one is added.
        name: The parameters are ``<name>.weight`` and ``<name>.bias``.
        keep_marks: Whether the new parameters have the marks of the old.
    """
    node = layer.node
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = layer.parameters["weight"]
    dtype = old.dtype or ir.DataType.FLOAT
    forget_shapes(node.outputs)
    weight = new_parameter(_from_rows(node, rows), dtype, old if keep_marks else None)
    replace_parameter(node, 1, weight, f"{name}.weight")
    if keep_marks:
        adapt_constraint(dataclasses.replace(layer, parameters={"weight": weight}))
    old_bias = layer.parameters.get("bias")
    like = old_bias if keep_marks else None
    if node.op_type == "Gemm":
        node.attributes.pop("alpha", None)
        node.attributes.pop("beta", None)
    if len(layer.nodes) > 1:  # an Add of its own
        assert old_bias is not None
        add = layer.nodes[1]
        spread = (-1, *[1] * (rows.ndim - 2))
        index = list(add.inputs).index(old_bias)
        replace_parameter(add, index, new_parameter(bias.reshape(spread), dtype, like), f"{name}.bias")
    elif node.op_type == "MatMul":
        value = new_parameter(bias, dtype, like)
        register(graph, value, f"{name}.bias")
        insert_behind(node.outputs[0], "Add", f"{node.name}/Add", inputs=[value])
    else:
        replace_parameter(node, 2, new_parameter(bias, dtype, like), f"{name}.bias")


def adapt_constraint(layer: Layer) -> None:
    """Makes the bounds of a layer's weights go along the axes of its units, after a change of layout."""
    for weight, axes in incoming_weights(layer):
        if (bound := marks(weight).constraint) is not None:
            set_marks(weight, constraint=dataclasses.replace(bound, axes=axes))
