"""Control flow written out: the branch of an If that is always taken, Loop and Scan as one copy after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.autodiff.constants import constant_value
from surgery.emit import initializer
from surgery.errors import SurgeryError

__all__ = ["Splicer", "inline_if", "unroll_loop", "unroll_scan"]

_MOST = 10_000  # copies of a loop's body; more is taken for a loop without end


class Splicer:
    """Puts operators into a graph in front of one of its operators, under names that nothing else has.

    Args:
        graph: The graph.
        varying: The names of initializers that will change.

    Attributes:
        latest: What the outputs of the operator that was replaced last are now.
        splits: The parts of each SplitToSequence that a Split was put in place of.
    """

    def __init__(self, graph: ir.Graph, varying: Collection[str]) -> None:
        self.graph, self._varying = graph, varying
        self.latest: list[ir.Value] = []
        self.splits: dict[ir.Node, list[ir.Value]] = {}
        self._taken = {v.name for v in graph.inputs} | set(graph.initializers)
        for node in graph.all_nodes():
            self._taken |= {node.name} | {o.name for o in node.outputs}
        for sub in graph.subgraphs():
            self._taken |= {v.name for v in sub.inputs} | set(sub.initializers)

    def fresh(self, stem: str) -> str:
        """`stem`, with a number if it is taken."""
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """The array that `value` holds in every run; None if that is unknown."""
        return None if value is None else constant_value(value, self._varying)

    def constant(self, array: np.ndarray) -> ir.Value:
        """An initializer."""
        return initializer(self.graph, self.fresh("constant"), array)

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """An initializer of int64."""
        return self.constant(np.array(numbers, np.int64))

    def emit(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], count: int = 1, **attributes: Any
    ) -> list[ir.Value]:
        """Inserts an operator and returns its outputs."""
        node = ir.node(
            op_type,
            inputs,
            attributes,
            num_outputs=count,
            name=self.fresh(f"{before.name or before.op_type}/{op_type}"),
        )
        for output in node.outputs:
            output.name = self.fresh(str(node.name))
        self.graph.insert_before(before, node)
        return list(node.outputs)

    def lift(self, body: ir.Graph) -> None:
        """Makes the initializers of `body` those of the graph, so that copies of the body share them."""
        for value in list(body.initializers.values()):
            body.initializers.pop(str(value.name))
            value.name = self.fresh(str(value.name)) if value.name in self.graph.initializers else value.name
            self.graph.register_initializer(value)

    def insert(self, before: ir.Node, body: ir.Graph, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
        """Moves the operators of `body`, which is used up, to the graph; returns the values of its outputs."""
        outputs = list(body.outputs)
        body.outputs.clear()
        given = dict(zip(body.inputs, inputs, strict=True))
        for parameter, value in given.items():
            if value is not None:
                parameter.replace_all_uses_with(value)
        nodes = list(body)
        body.remove(nodes)
        for node in nodes:
            node.name = self.fresh(f"{before.name or before.op_type}/{node.name or node.op_type}")
            for output in node.outputs:
                if output.name:
                    output.name, output.shape = self.fresh(f"{before.name or before.op_type}/{output.name}"), None
            self.graph.insert_before(before, node)
        return [given.get(o) or o for o in outputs]

    def replace(self, node: ir.Node, values: Sequence[ir.Value]) -> None:
        """Removes `node`; `values` take the place and the names of its outputs."""
        self.latest = []
        for old, new in zip(node.outputs, values, strict=True):
            if not old.name:
                continue
            copy = ir.node("Identity", [new], name=self.fresh(f"{node.name}/Identity"))
            self.graph.insert_before(node, copy)
            copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = old.name, old.type, old.shape
            copy.outputs[0].metadata_props.update(old.metadata_props)
            old.replace_all_uses_with(copy.outputs[0], replace_graph_outputs=True)
            self.latest.append(copy.outputs[0])
        self.graph.remove(node, safe=True)


def _body(node: ir.Node, name: str) -> ir.Graph:
    return node.attributes[name].as_graph()


def _data_dependent(node: ir.Node, why: str) -> SurgeryError:
    return SurgeryError(
        f"{node.op_type} {node.name!r} cannot be differentiated: {why}; freeze every layer up to it "
        f"(freeze: {{until: {node.name}}}) or cut it off"
    )


def inline_if(splicer: Splicer, node: ir.Node) -> bool:
    """Puts the branch of an If that is always taken in its place; returns whether that is known."""
    condition = splicer.known(node.inputs[0])
    if condition is None:
        return False
    branch = _body(node, "then_branch" if condition.item() else "else_branch")
    splicer.lift(branch)
    splicer.replace(node, splicer.insert(node, branch, []))
    return True


def unroll_loop(splicer: Splicer, node: ir.Node) -> None:
    """Writes a Loop out, one copy of its body for each round.

    Raises:
        SurgeryError: How often it runs depends on data.
    """
    trips, condition = (splicer.known(v) for v in node.inputs[:2])
    if node.inputs[0] is not None and trips is None:
        raise _data_dependent(node, f"how often it runs, {node.inputs[0].name!r}, depends on data")
    if len(node.inputs) > 1 and node.inputs[1] is not None and condition is None:
        raise _data_dependent(node, f"its condition {node.inputs[1].name!r} depends on data")
    body = _body(node, "body")
    splicer.lift(body)
    carried: list[ir.Value] = [v for v in node.inputs[2:] if v is not None]
    collected: list[list[ir.Value]] = [[] for _ in node.outputs[len(carried) :]]
    goes_on, count = condition is None or bool(condition.item()), 0
    while goes_on and (trips is None or count < trips.item()):
        inputs = [splicer.constant(np.array(count)), splicer.constant(np.array(True)), *carried]
        outputs = splicer.insert(node, body.clone(allow_outer_scope_values=True), inputs)
        again = splicer.known(outputs[0])
        if again is None:
            raise _data_dependent(node, f"whether it goes on, {body.outputs[0].name!r}, depends on data")
        goes_on, count = bool(again.item()), count + 1
        carried = outputs[1 : 1 + len(carried)]
        for parts, output in zip(collected, outputs[1 + len(carried) :], strict=True):
            parts.append(output)
        if count > _MOST:
            raise _data_dependent(node, f"it runs more than {_MOST} times")
    splicer.replace(node, [*carried, *(_stack(splicer, node, parts, 0) for parts in collected)])


def unroll_scan(splicer: Splicer, node: ir.Node) -> None:
    """Writes a Scan out, one copy of its body for each element.

    Raises:
        SurgeryError: How many elements there are is not known beforehand.
    """
    body = _body(node, "body")
    splicer.lift(body)
    scanned = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - scanned
    carried: list[ir.Value] = [v for v in node.inputs[:states] if v is not None]
    sources = [v for v in node.inputs[states:] if v is not None]
    axes = _ints(node, "scan_input_axes", scanned)
    lengths = [v.shape[a] for v, a in zip(sources, axes, strict=True) if v.shape is not None]
    length = next((n for n in lengths if isinstance(n, int)), None)
    if length is None:
        raise _data_dependent(
            node, f"the length of {sources[0].name!r} is unknown (give the model's inputs fixed sizes)"
        )
    backwards = _ints(node, "scan_input_directions", scanned)
    elements = [
        _unstack(splicer, node, source, axis, length, bool(back))
        for source, axis, back in zip(sources, axes, backwards, strict=True)
    ]
    count = len(node.outputs) - states
    collected: list[list[ir.Value]] = [[] for _ in range(count)]
    for step in range(length):
        inputs = [*carried, *(own[step] for own in elements)]
        outputs = splicer.insert(node, body.clone(allow_outer_scope_values=True), inputs)
        carried = outputs[:states]
        for parts, output in zip(collected, outputs[states:], strict=True):
            parts.append(output)
    results = [
        _stack(splicer, node, parts[::-1] if back else parts, axis)
        for parts, axis, back in zip(
            collected, _ints(node, "scan_output_axes", count), _ints(node, "scan_output_directions", count), strict=True
        )
    ]
    splicer.replace(node, [*carried, *results])


def _ints(node: ir.Node, name: str, count: int) -> list[int]:
    attribute = node.attributes.get(name)
    return [0] * count if attribute is None else list(attribute.as_ints())


def _unstack(
    splicer: Splicer, before: ir.Node, value: ir.Value, axis: int, length: int, backwards: bool
) -> list[ir.Value]:
    """The elements of `value` along an axis."""
    parts = [value]
    if length > 1:
        sizes = splicer.ints([1] * length)
        parts = splicer.emit(before, "Split", [value, sizes], length, axis=axis)
    at = splicer.ints([axis])
    elements = [splicer.emit(before, "Squeeze", [part, at])[0] for part in parts]
    return elements[::-1] if backwards else elements


def _stack(splicer: Splicer, before: ir.Node, parts: list[ir.Value], axis: int) -> ir.Value:
    """The elements as one tensor, along a new axis."""
    if not parts:
        raise _data_dependent(before, "it runs not even once, so that the shape of what it collects is unknown")
    at = splicer.ints([axis])
    rows = [splicer.emit(before, "Unsqueeze", [part, at])[0] for part in parts]
    return splicer.emit(before, "Concat", rows, axis=axis)[0]
