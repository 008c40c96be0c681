"""Whether what a model's operators read is there: no runtime and no pass can do anything with a graph of loose ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError

__all__ = ["check_wiring"]

_ONNX = ("", "ai.onnx")


def check_wiring(model: ir.Model, path: Path) -> None:
    """Refuses operators that read what nothing gives, and outputs that nothing gives, in subgraphs and functions too.

    Operators that are in the file before what they read, which ONNX forbids and runtimes put up with, are sorted.

    Args:
        model: The model.
        path: Its file, for messages.

    Raises:
        SurgeryError: There is a loose end or a cycle, or a name that is not valid text.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
        for node in graph.all_nodes():
            _check_node(node, opset, path)
        if not _is_sorted(graph, set()):
            try:
                graph.sort()
            except ValueError as error:
                raise SurgeryError(
                    f"{path}: its operators read each other in a circle; export the model again"
                ) from error
        _check_values(graph, set(), path)


def _check_node(node: ir.Node, opset: int, path: Path) -> None:
    texts = [node.name, node.op_type, node.domain, *(v.name for v in (*node.inputs, *node.outputs) if v is not None)]
    if not all(text is None or isinstance(text, str) for text in texts):  # protobuf hands on what it cannot decode
        raise SurgeryError(f"{path}: {_called(node)} has a name that is not valid UTF-8; export the model again")
    least = _least_inputs(node, opset)
    if not node.outputs or None in [*node.inputs, *[None] * least][:least]:
        raise SurgeryError(f"{path}: {_called(node)} lacks an input or its output; export the model again")


def _least_inputs(node: ir.Node, opset: int) -> int:
    """How many inputs an operator needs, by its specification."""
    with contextlib.suppress(onnx.defs.SchemaError, TypeError):  # the latter for versions that are no int32
        return onnx.defs.get_schema(node.op_type, opset, "").min_input if node.domain in _ONNX else 0
    return 0


def _check_values(graph: ir.Graph, outer: set[ir.Value], path: Path) -> None:
    for node, known in _scopes(graph, outer):
        missing = next((v for v in node.inputs if v is not None and v not in known), None)
        if missing is not None:
            raise SurgeryError(
                f"{path}: {_called(node)} reads {missing.name!r}, which nothing gives; export the model again"
            )
        for inner in _subgraphs(node):
            _check_values(inner, known, path)
    given = _known_at_the_end(graph, outer)
    for value in graph.outputs:
        if value not in given:
            raise SurgeryError(f"{path}: nothing gives the output {value.name!r}; export the model again")


def _is_sorted(graph: ir.Graph, outer: set[ir.Value]) -> bool:
    """Whether what operators read comes before them, loose ends aside."""
    return all(
        all(v is None or v in known or v.producer() is None for v in node.inputs)
        and all(_is_sorted(inner, known) for inner in _subgraphs(node))
        for node, known in _scopes(graph, outer)
    )


def _scopes(graph: ir.Graph, outer: set[ir.Value]) -> Iterator[tuple[ir.Node, set[ir.Value]]]:
    """Each operator, with the values that it may read."""
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        yield node, known
        known.update(node.outputs)


def _known_at_the_end(graph: ir.Graph, outer: set[ir.Value]) -> set[ir.Value]:
    return outer | set(graph.inputs) | set(graph.initializers.values()) | {o for node in graph for o in node.outputs}


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"
