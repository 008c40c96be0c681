"""What passes do to a graph: insert and bypass operators, add and drop parameters, keep names unique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from surgery.layers import descendants
from surgery.marks import described, set_labels, set_preprocessing

__all__ = [
    "add_constant",
    "bypass",
    "constant_of",
    "drop_unused",
    "forget_shapes",
    "insert_behind",
    "new_parameter",
    "opset",
    "prune",
    "register",
    "replace_parameter",
    "unique",
]


def opset(model: ir.Model) -> int:
    """The version of the default operator set."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def unique(graph: ir.Graph, name: str) -> str:
    """Returns `name`, with a number behind it where an operator or a value of `graph` has it already."""
    taken: set[str | None] = set()
    for part in (graph, *graph.subgraphs()):  # the names of a subgraph must not be those of what is around it
        taken |= {n.name for n in part} | {o.name for n in part for o in n.outputs}
        taken |= {v.name for v in part.inputs} | set(part.initializers)
    count, result = 1, name
    while result in taken:
        count += 1
        result = f"{name}_{count}"
    return result


def new_parameter(array: np.ndarray, dtype: ir.DataType, like: ir.Value | None = None) -> ir.Value:
    """Returns a value that holds `array` as `dtype`, not yet part of a graph, with the marks of `like`."""
    data = np.array(array, dtype.numpy(), order="C")
    value = ir.Value(shape=ir.Shape(data.shape), type=ir.TensorType(dtype), const_value=ir.Tensor(data, dtype=dtype))
    if like is not None:
        value.metadata_props.update({k: v for k, v in like.metadata_props.items() if k.startswith("surgery.")})
    return value


def register(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Makes `value`, from `new_parameter`, an initializer of `graph`, named `name` if that is free."""
    value.name = unique(graph, name)
    if value.const_value is not None:
        value.const_value.name = value.name
    graph.register_initializer(value)


def add_constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """Adds an initializer that holds `array` and returns it."""
    value = new_parameter(array, ir.DataType.from_numpy(array.dtype))
    register(graph, value, name)
    return value


def replace_parameter(node: ir.Node, index: int, value: ir.Value, name: str) -> None:
    """Makes `value`, from `new_parameter`, input `index` of `node`; the old one goes where nothing else needs it."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    drop_unused(graph, [old])
    register(graph, value, name)


def drop_unused(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Removes those of `values` that are initializers, or computed from them only, and that nothing needs any more."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output():
            continue
        if value.is_initializer():
            graph.initializers.pop(value.name or "", None)
        elif (node := value.producer()) is not None and _is_constant(value):
            sources = list(node.inputs)
            graph.remove(node, safe=True)
            drop_unused(graph, sources)


def _is_constant(value: ir.Value | None) -> bool:
    """Whether `value` depends on no input of the network."""
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and all(_is_constant(v) for v in node.inputs)


def prune(model: ir.Model) -> list[str]:
    """Removes what no output needs: operators, weights, inputs (one stays), labels and preprocessing.

    Returns:
        The names of the inputs that went.
    """
    graph = model.graph
    RemoveUnusedNodesPass()(model)
    unused = [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]
    unused = unused if len(unused) < len(graph.inputs) else unused[1:]
    graph.inputs[:] = [v for v in graph.inputs if v not in unused]
    for name in described(model, "labels") - {o.name for o in graph.outputs}:
        set_labels(model, name, None)
    for name in described(model, "preprocessing") - {i.name for i in graph.inputs}:
        set_preprocessing(model, name, None)
    return [str(v.name) for v in unused]


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The contents of an initializer, of a Constant's output, or of a Transpose of these; None for anything else."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type in ("Transpose", "Identity"):
        source = constant_of(node.inputs[0])
        if source is None or node.op_type == "Identity":
            return source
        return source.transpose(node.attributes.get_ints("perm", tuple(range(source.ndim))[::-1]))
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def insert_behind(
    value: ir.Value,
    op_type: str,
    name: str,
    *,
    inputs: Sequence[ir.Value] = (),
    attributes: Mapping[str, Any] | None = None,
    domain: str = "",
    outputs: bool = True,
) -> ir.Node:
    """Inserts an operator that all users of `value` read instead; a graph output keeps its name.

    Args:
        value: Its first input.
        op_type: Its type.
        name: Its name, if that is free.
        inputs: Its other inputs, which must not come later in the graph.
        attributes: Its attributes.
        domain: The domain of its type.
        outputs: Whether it becomes the graph's output too, where `value` is one.
    """
    graph, users = _graph_of(value), list(value.uses())
    node = ir.node(op_type, [value, *inputs], attributes, domain=domain, name=unique(graph, name))
    output = node.outputs[0]
    output.name = unique(graph, name)
    output.type = value.type
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph.node(0), node)
    else:
        graph.insert_after(producer, node)
    for user, index in users:
        user.replace_input_with(index, output)
    if outputs and value.is_graph_output() and producer is not None:
        output.name, value.name = value.name, unique(graph, f"{value.name}/{op_type}")
        graph.outputs[:] = [output if o is value else o for o in graph.outputs]
    return node


def _graph_of(value: ir.Value) -> ir.Graph:
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    assert isinstance(graph, ir.Graph)
    return graph


def bypass(node: ir.Node, index: int = 0) -> ir.Value:
    """Removes `node`, whose users read its input `index` instead; a graph output keeps its name.

    Returns:
        What its users read now.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    source, output = node.inputs[index], node.outputs[0]
    assert source is not None
    others = [v for v in node.inputs if v is not source]
    if output.is_graph_output() and (source.is_graph_output() or source.producer() is None):
        identity = ir.node("Identity", [source], name=unique(graph, f"{node.name}/Identity"))
        identity.outputs[0].name, identity.outputs[0].type = unique(graph, f"{output.name}/Identity"), source.type
        graph.insert_before(node, identity)
        source = identity.outputs[0]
    was_output, name = output.is_graph_output(), output.name
    graph.outputs[:] = [source if o is output else o for o in graph.outputs]
    output.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    if was_output:
        source.name = name
    drop_unused(graph, others)
    return source


def forget_shapes(values: Iterable[ir.Value]) -> None:
    """Forgets the shapes of `values` and of all that is computed from them, to be inferred anew.

    Graph outputs, which must have a shape whether or not it can be inferred, keep their rank and symbolic dimensions.
    """
    values = list(values)
    for value in [*values, *(o for node in descendants(values) for o in node.outputs)]:
        if value.is_graph_output() and value.shape is not None:
            value.shape = ir.Shape([None if isinstance(d, int) else d for d in value.shape])
        else:
            value.shape = None
