"""What loops and branches of TensorFlow 1 have that tf2onnx does not know, rewritten to what it does.

TensorArrays that a loop fills and that are joined behind it: what the loop carries becomes what is joined so far; it
begins with nothing, and each round joins its part to it. Branches that are a constant: these get a Switch of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.tensorflow.source import Source

__all__ = ["HIDDEN", "anchor_constants", "carry_arrays"]

HIDDEN = "/of_any_length"
"""How the names of such placeholders end as are constants in the model."""
_FLOAT, _INT = 1, 3  # DataType


def carry_arrays(source: Source) -> None:
    """Rewrites the arrays of floats that are written once a round, in the rounds' order, and joined behind the loop."""
    graph = source.graph
    nodes = {node.name: node for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name.lstrip("^").partition(":")[0], []).append(node)
    for array in [node for node in graph.node if node.op == "TensorArrayV3"]:
        shape = array.attr["element_shape"].shape
        enters = [node for node in readers.get(array.name, []) if node.op == "Enter"]
        flow = [node for node in enters if node.input[0] == f"{array.name}:1"]
        joins = [node for node in readers.get(array.name, []) if node.op == "TensorArrayConcatV3"]
        writes = [w for node in enters for w in readers.get(node.name, []) if w.op == "TensorArrayWriteV3"]
        known = bool(shape.dim) and not shape.unknown_rank and all(dim.size > 0 for dim in shape.dim[1:])
        if not (len(flow) == len(joins) == len(writes) == 1 and known and array.attr["dtype"].type == _FLOAT):
            continue
        if not _counts(nodes, readers, writes[0].input[1]):
            continue
        sizes = [dim.size for dim in shape.dim[1:]]
        empty = _constant(graph, f"{array.name}/empty", np.zeros([0, *sizes], np.float32), _FLOAT)
        flow[0].input[0] = _of_any_length(graph, empty, _FLOAT, sizes)
        _join(graph, writes[0])
        _pass_on(joins[0])


def _counts(nodes: dict[str, Any], readers: dict[str, list[Any]], index: str) -> bool:
    """Whether an index is a loop's counter: what begins with 0 and has 1 added each round."""
    merge = nodes.get(index.partition(":")[0])
    for op in ("Identity", "Switch", "Merge"):
        if merge is None or merge.op != op:
            return False
        merge = nodes.get(merge.input[0].partition(":")[0]) if op != "Merge" else merge
    ends = [nodes.get(name.partition(":")[0]) for name in merge.input] if merge is not None else []
    start = nodes.get(ends[0].input[0].partition(":")[0]) if len(ends) == 2 and ends[0] is not None else None
    step = nodes.get(ends[1].input[0].partition(":")[0]) if len(ends) == 2 and ends[1] is not None else None
    if start is None or step is None or step.op not in ("Add", "AddV2") or index not in step.input:
        return False
    by = next((nodes.get(name.partition(":")[0]) for name in step.input if name != index), None)
    return _number(start) == 0 and _number(by) == 1


def _number(node: Any) -> float | None:
    from tensorflow.python.framework.tensor_util import MakeNdarray

    if node is None or node.op != "Const":
        return None
    value = MakeNdarray(node.attr["value"].tensor)
    return float(value) if value.ndim == 0 and value.dtype.kind in "if" else None


def _constant(graph: Any, name: str, value: np.ndarray, kind: int, behind: str = "") -> str:
    """Adds a constant, one in a loop where it is said what it is `behind`; returns its name."""
    from tensorflow.python.framework.tensor_util import make_tensor_proto

    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = kind
    node.attr["value"].tensor.CopyFrom(make_tensor_proto(value))
    if behind:
        node.input.append(f"^{behind.partition(':')[0]}")
    return name


def _of_any_length(graph: Any, name: str, kind: int, sizes: Sequence[int]) -> str:
    """Hides how long something empty is: what else comes in its place would be taken for that as well."""
    node = graph.node.add(name=f"{name}{HIDDEN}", op="PlaceholderWithDefault")
    node.input.append(name)
    node.attr["dtype"].type = kind
    for size in (-1, *sizes):
        node.attr["shape"].shape.dim.add(size=size)
    return str(node.name)


def _join(graph: Any, write: Any) -> None:
    """Makes of a write (array, index, value, flow) that of the value behind the flow."""
    value, flow = write.input[2], write.input[3]
    axis = _constant(graph, f"{write.name}/axis", np.array(0, np.int32), _INT, behind=flow)
    write.op = "ConcatV2"
    del write.input[:]
    write.input.extend([flow, value, axis])
    write.attr.clear()
    write.attr["N"].i = 2
    write.attr["T"].type, write.attr["Tidx"].type = _FLOAT, _INT


def _pass_on(join: Any) -> None:
    flow = join.input[1]
    join.op = "Identity"
    del join.input[:]
    join.input.append(flow)
    join.attr.clear()
    join.attr["T"].type = _FLOAT


def anchor_constants(source: Source) -> None:
    """Makes constants that are a branch's result go through a Switch, which tells tf2onnx whose they are."""
    graph = source.graph
    nodes = {node.name: node for node in graph.node}
    for merge in [node for node in graph.node if node.op == "Merge"]:
        for place, name in enumerate(merge.input):
            constant = nodes.get(name.partition(":")[0])
            if constant is None or constant.op != "Const" or len(constant.input) != 1:
                continue
            pivot = nodes.get(constant.input[0].lstrip("^").partition(":")[0])
            maker = pivot.input[0].partition(":")[0] if pivot is not None and pivot.op == "Identity" else ""
            switch = nodes.get(maker)
            if pivot is None or switch is None or switch.op != "Switch":
                continue
            new = graph.node.add(name=f"{constant.name}/switch{place}", op="Switch")
            sizes = [dim.size for dim in constant.attr["value"].tensor.tensor_shape.dim]
            kind = constant.attr["dtype"].type
            hidden = _of_any_length(graph, constant.name, kind, sizes[1:]) if sizes[:1] == [0] else constant.name
            new.input.extend([hidden, switch.input[1]])
            new.attr["T"].type = kind
            del constant.input[:]
            merge.input[place] = f"{new.name}:1" if pivot.input[0].endswith(":1") else new.name
