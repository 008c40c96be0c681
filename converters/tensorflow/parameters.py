"""Gives initializers the names of the variables that they were: tf2onnx transposes them, and names them anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

__all__ = ["name_parameters"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# What variables of batch normalization are called, by the place where ONNX reads them.
_ROLES = {1: ("gamma", "scale"), 2: ("beta", "offset", "bias"), 3: ("mean",), 4: ("variance", "var")}

_STATISTICS = ("mean", "variance", "gamma", "beta")

_Print = tuple[int, int]


def _print(array: np.ndarray) -> _Print:
    """What an array has in common with its transposes: how many numbers, and the sum of their bits."""
    array = np.ascontiguousarray(array)
    bits = array.view(f"u{array.itemsize}") if array.ndim else array.reshape(1).view(f"u{array.itemsize}")
    return array.size, int(bits.sum(dtype=np.uint64))


def name_parameters(model: ir.Model, variables: Mapping[str, np.ndarray]) -> dict[ir.Node, str]:
    """Names the initializers of `model` as the `variables` whose numbers they have; those of one variable become one.

    Returns:
        The scope of the variables of each operator that has some: ``conv1`` for one with ``conv1/kernel``.
    """
    graph = model.graph
    by_print: dict[_Print, list[str]] = {}
    for name, array in variables.items():
        if array.size > 1:
            by_print.setdefault(_print(np.asarray(array)), []).append(name)
    found: dict[str, list[ir.Value]] = {}
    scopes: dict[ir.Node, str] = {}
    for value in _in_order(graph):
        assert value.const_value is not None
        candidates = by_print.get(_print(value.const_value.numpy()), [])
        if not candidates:
            continue
        node, index = next(iter(value.uses()))
        best = max(candidates, key=lambda name: (_fits(name, node, index), name not in found, _closeness(name, node)))
        scope = best.rpartition("/")[0]
        if index == 1 and scope:
            scopes[node] = scope if node.op_type != "Add" else f"{scope}/bias"
        # Numbers that only one variable has are that one's wherever they are; zeros may be many variables'.
        same = next((each for each in found.get(best, []) if len(candidates) == 1 and _equal(each, value)), None)
        if same is not None:
            value.replace_all_uses_with(same)
            del graph.initializers[str(value.name)]
            continue
        found.setdefault(best, []).append(value)
    _rename(graph, found)
    return scopes


def _in_order(graph: ir.Graph) -> list[ir.Value]:
    """The initializers that may be variables, in the order in which they are read."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        for value in node.inputs:
            tensor = value.const_value if value is not None and value.is_initializer() else None
            if value is not None and tensor is not None and tensor.dtype in _FLOATS and tensor.size > 1:
                found[value] = None
    return list(found)


def _fits(variable: str, node: ir.Node, index: int) -> bool:
    """Whether a variable is called as what an operator reads at this place."""
    last = variable.rpartition("/")[2]
    if node.op_type == "BatchNormalization":
        return any(word in last for word in _ROLES.get(index, ()))
    return not any(word in last for word in _STATISTICS)


def _closeness(variable: str, node: ir.Node) -> int:
    """How many parts of its path a variable has in common with an operator's."""
    return len(set(variable.split("/")) & set((node.name or "").split("/")))


def _equal(a: ir.Value, b: ir.Value) -> bool:
    assert a.const_value is not None
    assert b.const_value is not None
    x, y = a.const_value.numpy(), b.const_value.numpy()
    return x.shape == y.shape and np.array_equal(x, y, equal_nan=True)


def _by_name(values: list[ir.Value]) -> dict[str, list[ir.Value]]:
    """The values by their own names, without what TensorFlow adds to those of variables that are read."""
    names: dict[str, list[ir.Value]] = {}
    for value in values:
        names.setdefault(str(value.name).removesuffix(":0").removesuffix("/read"), []).append(value)
    return names


def _rename(graph: ir.Graph, found: Mapping[str, list[ir.Value]]) -> None:
    """Renames the values found, and out of their way what else has such a name."""
    taken = {str(v.name) for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    renamed = [value for values in found.values() for value in values]
    others = [value for value in graph.initializers.values() if value not in set(renamed)]
    wanted = [*found.items(), *_by_name(others).items()]
    renamed += others
    for number, value in enumerate(renamed):  # names must not clash on the way
        del graph.initializers[str(value.name)]
        value.name = f"parameter to be named {number}"
    taken |= set(graph.initializers)
    for name, values in wanted:
        for value in values:
            new = name
            number = 2
            while new in taken:
                new = f"{name}_{number}"
                number += 1
            taken.add(new)
            value.name = new
            if value.const_value is not None:
                value.const_value.name = new
            graph.register_initializer(value)
