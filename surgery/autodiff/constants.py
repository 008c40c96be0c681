"""Values that are the same in every run, worked out ahead of it."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from surgery.emit import initializer
from surgery.io import IR_VERSION

__all__ = ["constant_value", "fold_shapes"]

# What differs from run to run whatever its inputs, and what tells no more than a shape, which is looked at before.
_UNKNOWN = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_UNKNOWN |= {"Shape", "Size"}
_COUNTS = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}
_MOST = 1024  # numbers in a shape, or in what one is computed from


def fold_shapes(graph: ir.Graph, varying: Collection[str]) -> bool:
    """Makes initializers of the whole numbers and truth values that can be worked out, so that more shapes are known.

    Args:
        graph: The graph.
        varying: The names of initializers that will change.

    Returns:
        Whether there were any.
    """
    changed = False
    for node in graph:
        output = node.outputs[0]
        if node.op_type == "Constant" or output.dtype not in _COUNTS or len(node.outputs) > 1 or not output.uses():
            continue
        if any(v is not None and v.shape is not None and _size(v.shape) > _MOST for v in [*node.inputs, output]):
            continue
        array = None if output.is_graph_output() else constant_value(output, varying)
        if array is None:
            continue
        output.replace_all_uses_with(initializer(graph, f"{output.name}/constant", array))
        changed = True
    return changed


def _size(shape: ir.Shape) -> int:
    return math.prod(d for d in shape if isinstance(d, int))


def constant_value(value: ir.Value, varying: Collection[str]) -> np.ndarray | None:
    """The array that `value` holds in every run, as far as initializers and known shapes say; None if unknown.

    Args:
        value: A value of a graph.
        varying: The names of initializers that will change.
    """
    known: dict[ir.Value, np.ndarray] = {}
    stack = [value]
    while stack:
        current = stack[-1]
        if current in known:
            stack.pop()
            continue
        if current.name in varying:
            return None
        array, node = _leaf(current), current.producer()
        if array is not None:
            known[current] = array
        elif (
            node is None or node.domain or node.op_type in _UNKNOWN or any(a.is_ref() for a in node.attributes.values())
        ):
            return None
        else:
            sources = [v for v in node.inputs if v is not None]
            unknown = [v for v in sources if v not in known]
            if not sources or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
                return None
            stack.extend(unknown)
            if not unknown:
                known.update(_evaluate(node, known))
                if current not in known:
                    return None
    return known[value]


def _leaf(value: ir.Value) -> np.ndarray | None:
    """The array of a constant, of a known shape, or of one known dimension of a shape."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy()
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "Shape":
        return _shape(node, None)
    if node.op_type == "Size":
        shape = _shape(node, None)
        return None if shape is None else np.array(shape.prod(), np.int64)
    if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[1] is not None:
        source = node.inputs[0].producer()
        index = ir.convenience.get_const_tensor(node.inputs[1])
        if source is not None and source.op_type == "Shape" and index is not None:
            return _shape(source, index.numpy())
    return None


def _shape(node: ir.Node, index: np.ndarray | None) -> np.ndarray | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    rank = len(value.shape)
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    dims = list(value.shape)[slice(start.as_int() if start else 0, end.as_int() if end else rank)]
    picked = dims if index is None else [dims[int(i)] for i in index.flat]
    sizes = [d for d in picked if isinstance(d, int)]
    if len(sizes) != len(picked):
        return None
    return np.array(sizes, np.int64).reshape(-1 if index is None else index.shape)


def _evaluate(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> dict[ir.Value, np.ndarray]:
    """What `node` gives, by ONNX's reference implementation; nothing where that has none."""
    names = {v: f"x{i}" for i, v in enumerate(node.inputs) if v is not None}
    outputs = [o for o in node.outputs if o.name]
    proto = onnx.helper.make_node(
        node.op_type, ["" if v is None else names[v] for v in node.inputs], [str(o.name) for o in node.outputs]
    )
    proto.attribute.extend(ir.to_proto(a) for a in node.attributes.values())
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(known[v].dtype), None)
            for v, name in names.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(str(o.name)) for o in outputs],
    )
    version = node.graph.opset_imports.get("", 1) if node.graph is not None else 1
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=IR_VERSION)
    try:
        results = ReferenceEvaluator(model).run(None, {name: known[v] for v, name in names.items()})
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError):
        return {}
    pairs = zip(outputs, results, strict=True)
    return {o: np.asarray(r) for o, r in pairs if isinstance(r, np.ndarray | np.generic)}
