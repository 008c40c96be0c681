"""Which parameters and states a step may overwrite with their next values, which saves a second copy of them.

That of a parameter may be written where it is once every operator has read it. In the order of the graph that is so for
those that its gradient is computed from, the forward pass among them; the gradient of what a layer reads, which is
computed from the weight as well, may come later. The update then waits for it: its learning rate gets a term, always 0,
that is computed from its size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from surgery.emit import Emitter
from surgery.layers import descendants

__all__ = ["overwritable", "waits"]

# Operators that a runtime may leave out, so that what reads their output reads their input.
_VIEWS = frozenset(
    ("Cast", "CastLike", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
)
_WORTH = 2**16  # numbers in a parameter for which an update waits


def waits(op: Emitter, gradients: Mapping[ir.Value, ir.Value], batch: Iterable[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Emits zeros, by large parameters, that are computed when nothing will read the parameter any more.

    Args:
        op: Writes into the graph.
        gradients: The gradient of each parameter.
        batch: The inputs that take examples and targets.
    """
    of_batch = descendants(batch)
    found: dict[ir.Value, ir.Value] = {}
    for parameter, gradient in gradients.items():
        if parameter.shape is None or math.prod(parameter.shape.numpy()) < _WORTH:
            continue
        for node in _later(_readers(parameter, of_batch), gradient):
            if node in of_batch:
                zero = op.Cast(op.Less(op.Size(node.outputs[0]), 0), to=int(ir.DataType.FLOAT))
                found[parameter] = op.Add(found[parameter], zero) if parameter in found else zero
    return found


def overwritable(graph: ir.Graph, batch: Iterable[ir.Value], carried: Mapping[str, str]) -> set[str]:
    """Returns the names of those inputs of `carried` whose next value, an output, may be written over them.

    Args:
        graph: A step graph.
        batch: Its inputs that take examples and targets.
        carried: The names of inputs and those of the outputs with their next values.
    """
    inputs, outputs = ({str(v.name): v for v in values} for values in (graph.inputs, graph.outputs))
    of_batch = descendants(batch)
    found = set()
    for name, output in carried.items():
        after = outputs[output].producer()
        if after is not None and not _later(_readers(inputs[name], of_batch, after), outputs[output]):
            found.add(name)
    return found


def _readers(value: ir.Value, of_batch: Collection[ir.Node], end: ir.Node | None = None) -> set[ir.Node]:
    """The operators that may read the memory of `value`, up to `end`.

    Those behind the ones that depend on no batch count, too: a runtime may fuse these, as a Transpose of a weight with
    the MatMul behind it. So do those behind operators that may give the same memory in another shape.
    """
    found: set[ir.Node] = set()
    values, seen = [value], {value}
    while values:
        read = values.pop()
        for node in read.consumers():
            found.add(node)
            view = node.op_type in _VIEWS and node.inputs[0] is read
            if (view or node not in of_batch) and node is not end:
                values.extend(o for o in node.outputs if o not in seen)
                seen.update(node.outputs)
    return found


def _later(nodes: set[ir.Node], value: ir.Value) -> list[ir.Node]:
    """Those of `nodes` that `value` is not computed from, in a fixed order."""
    left, seen = dict.fromkeys(nodes), set()
    level = [value.producer()]
    while left and level:
        above = []
        for node in level:
            if node is not None and node not in seen:
                seen.add(node)
                left.pop(node, None)
                above += [v.producer() for v in node.inputs if v is not None]
        level = above
    return sorted(left, key=lambda node: str(node.name))
