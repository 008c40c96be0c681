"""Activation checkpointing (Chen et al. 2016, Training deep nets with sublinear memory cost): activations between
checkpoints are thrown away after the forward pass and computed again when the gradient gets there.

The network is cut into segments where a single activation goes from one to the next. When the gradient reaches a
segment, its operators are written once more. They read the segment's input through a Reshape whose shape depends on the
gradient: it costs nothing, and keeps the runtime from computing them early or taking them for the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from surgery.emit import Emitter

__all__ = ["Recomputation"]

# Another run would give other numbers: what they gave first is kept.
_RANDOM = {"Dropout", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


class Recomputation:
    """The operators that stand for those of the forward pass where their gradients are taken.

    Args:
        path: The operators that a gradient goes through, in order.
        op: Writes the operators.
    """

    def __init__(self, path: Sequence[ir.Node], op: Emitter) -> None:
        self._op = op
        self._segment_of: dict[ir.Node, list[ir.Node]] = {}
        self._twins: dict[ir.Node, ir.Node] = {}
        for segment in _segments(path)[:-1]:  # the last one's activations are needed right away
            self._segment_of.update(dict.fromkeys(segment, segment))

    def twin(self, node: ir.Node, gradient: ir.Value, wanted: set[ir.Value]) -> ir.Node:
        """The operator that stands for `node`, whose output has this `gradient`; its values join `wanted`."""
        if node in self._segment_of and node not in self._twins:
            self._write_again(self._segment_of[node], gradient, wanted)
        return self._twins.get(node, node)

    def _write_again(self, segment: list[ir.Node], gradient: ir.Value, wanted: set[ir.Value]) -> None:
        op = self._op
        inside = set(segment)
        again: dict[ir.Value, ir.Value] = {}

        def of(value: ir.Value | None) -> ir.Value | None:
            if value is None or value in again:
                return None if value is None else again[value]
            producer = value.producer()
            given = value.is_initializer() or (producer is None and value in wanted)  # a constant, or a parameter
            if given or producer in inside or value.dtype is None or not value.dtype.is_floating_point():
                return value
            shape = op.Add(op.Shape(value), op.Mul(op.Size(gradient), op.constant(0, ir.DataType.INT64)))
            again[value] = _like(op.Reshape(value, shape), value)
            if value in wanted:
                wanted.add(again[value])
            return again[value]

        for node in segment:
            if node.op_type in _RANDOM:
                self._twins[node] = node
                continue
            twin = ir.Node(
                node.domain,
                node.op_type,
                [of(value) for value in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=op.fresh(f"again/{node.name}"),
            )
            for index, (old, new) in enumerate(zip(node.outputs, twin.outputs, strict=True)):
                new.name = f"{twin.name}.{index}" if old.name else ""
                again[old] = _like(new, old)
                if old in wanted:
                    wanted.add(new)
            op.graph.append(twin)
            self._twins[node] = twin


def _like(new: ir.Value, old: ir.Value) -> ir.Value:
    new.shape, new.type = old.shape, old.type
    return new


def _size(node: ir.Node) -> int:
    """How many numbers an operator's outputs hold, as far as is known: for one example."""
    shapes = [o.shape for o in node.outputs if o.shape is not None]
    return sum(math.prod(d for d in shape if isinstance(d, int)) for shape in shapes)


def _segments(path: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Cuts `path` where a single activation crosses, into about √n segments of like size."""
    place = {node: index for index, node in enumerate(path)}
    last_use = {
        output: max((place[user] for user in output.consumers() if user in place), default=-1)
        for node in path
        for output in node.outputs
    }
    crossing = 0
    ending: dict[int, int] = {}
    cuts: list[int] = []  # after which operators a single activation crosses
    for index, node in enumerate(path):
        crossing -= ending.get(index, 0)
        for output in node.outputs:
            if last_use[output] > index:
                crossing += 1
                ending[last_use[output]] = ending.get(last_use[output], 0) + 1
        if crossing == 1:
            cuts.append(index)
    count = max(round(math.sqrt(len(cuts))), 1)
    share = sum(map(_size, path)) / (count + 1)
    segments: list[list[ir.Node]] = [[]]
    filled = 0
    for index, node in enumerate(path):
        segments[-1].append(node)
        filled += _size(node)
        if index in cuts[:-1] and filled >= share:
            segments.append([])
            filled = 0
    return [segment for segment in segments if segment]
