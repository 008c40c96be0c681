"""Rewrites a TensorFlow graph (GraphDef) to what tf2onnx converts, and to what training needs.

Functions are inlined, variables become constants of their names, and what batch normalization and dropout are written
out as becomes operators again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from converters.tensorflow.source import VARIABLES, Source
from surgery.errors import SurgeryError

__all__ = ["DROPOUT", "KEEP", "find_ends", "freeze", "inline", "mask", "prune", "unmask"]

DROPOUT = "PreventGradient"
"""What stands for dropout until the graph is ONNX: an identity of TensorFlow's with a text, here the ratio."""

_NO_OUTPUT = re.compile(
    r"NoOp|Const|Placeholder|.*Assign.*|Save.*|Restore.*|.*Summary.*|Assert|Print|.*Apply[A-Z].*|Variable.*|VarHandleOp|"
    r"VarIsInitializedOp|IsVariableInitialized|.*Iterator.*|.*Dataset.*|.*Queue.*|Stage|Initialize.*|LookupTable.*|"
    r"HashTable.*|MergeV2Checkpoints|ShardedFilename|ReadVariableOp|DestroyResourceOp"
)
_TRAINS = re.compile(r"(Resource)?(Sparse)?Apply[A-Z].*")
_CHOICES = ("ArgMax", "ArgMin", "TopK", "TopKV2")  # only the accuracy needs them
KEEP = re.compile(r"(^|[/_])keep_?prob(ability)?s?", re.IGNORECASE)
_FLOATS = (1, 2, 14, 19)  # DataType: float32, float64, bfloat16, float16
_USUAL = {
    *("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "weights", "biases", "embeddings", "alpha"),
    *("depthwise_kernel", "pointwise_kernel", "recurrent_kernel"),
}
_RESOURCE = 20  # DataType
_SHOWN = 8


def _node(name: str) -> str:
    """The node of an input: ``a`` for ``a``, ``a:1`` and ``^a``."""
    return name.lstrip("^").partition(":")[0]


def prune(graph: Any, wanted: Iterable[str]) -> None:
    """Drops the nodes that `wanted` does not need, and what says in which order and where they run.

    In loops and branches of TensorFlow 1 order is meaning: what has no input but the order runs when that comes.
    """
    ordered = any(node.op in ("Enter", "Switch", "RefEnter", "RefSwitch") for node in graph.node)
    nodes = {node.name: node for node in graph.node}
    stack, kept = [name for name in wanted if name in nodes], set()
    while stack:
        name = stack.pop()
        if name in kept:
            continue
        kept.add(name)
        node = nodes[name]
        node.device = ""
        node.attr.pop("_class", None)
        read = [each for each in node.input if ordered or not each.startswith("^")]
        if len(read) != len(node.input):
            del node.input[:]
            node.input.extend(read)
        stack.extend(_node(each) for each in read if _node(each) in nodes)
    for index in reversed([i for i, node in enumerate(graph.node) if node.name not in kept]):
        del graph.node[index]


def inline(tf: Any, source: Source) -> None:
    """Writes out the functions that the graph calls."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer

    graph = source.graph
    functions = [function.node_def for function in graph.library.function]
    calls = [node for nodes in (graph.node, *functions) for node in nodes if node.op == "StatefulPartitionedCall"]
    if not calls and not any(node.op == "PartitionedCall" for node in graph.node):
        return
    for node in calls:
        node.op = "PartitionedCall"
    ends = [*source.inputs.values(), *source.outputs.values()]
    with tf.Graph().as_default():
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph, clear_devices=True)
    ends_collection = meta_graph_pb2.CollectionDef()
    ends_collection.node_list.value.extend(ends)
    meta.collection_def["train_op"].CopyFrom(ends_collection)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers.append("function")
    options.min_graph_nodes = -1
    options.meta_optimizer_iterations = options.ONE
    graph.CopyFrom(tf_optimizer.OptimizeGraph(config, meta))


def freeze(source: Source) -> dict[str, np.ndarray]:
    """Makes constants of the variables; returns them, and the constants of a graph that is frozen already, by name."""
    from tensorflow.python.framework.tensor_util import MakeNdarray, make_tensor_proto

    nodes = {node.name: node for node in source.graph.node}
    found: dict[str, np.ndarray] = {}
    missing = []
    for node in nodes.values():
        if node.op == "Const":
            value = node.attr["value"].tensor
            if value.dtype in _FLOATS:
                found[_parameter_name(node.name)] = MakeNdarray(value)
        if node.op not in VARIABLES:
            continue
        if node.name not in source.variables:
            missing.append(node.name)
            continue
        value = source.variables[node.name]
        shared = node.attr["shared_name"].s.decode()
        handle, dtype = node.op == "VarHandleOp", node.attr["dtype"].type
        found[shared if handle and shared else node.name] = value
        node.op = "Const"
        node.attr.clear()
        del node.input[:]
        node.attr["dtype"].type = dtype
        node.attr["value"].tensor.CopyFrom(make_tensor_proto(value, dtype=dtype))
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        raise SurgeryError(f"{source.path}: the files have no value for {len(missing)} of its variables ({shown})")
    for node in nodes.values():
        _read_constant(nodes, node)
    return {_without_number(name, found): value for name, value in found.items()}


def _read_constant(nodes: Mapping[str, Any], node: Any) -> None:
    """Makes of the readings of a variable such of a constant."""
    if node.op == "Identity" and node.attr["T"].type == _RESOURCE:
        maker, depth = nodes.get(_node(node.input[0])), len(nodes)
        while maker is not None and maker.op == "Identity" and depth:
            maker, depth = nodes.get(_node(maker.input[0])), depth - 1
        if maker is not None and maker.op == "Const":
            node.attr["T"].type = maker.attr["dtype"].type
    if node.op == "ReadVariableOp":
        node.op = "Identity"
        node.attr["T"].type = node.attr["dtype"].type
        del node.attr["dtype"]
    elif node.op == "ResourceGather":
        node.op = "Gather"
        node.attr["Tparams"].type = node.attr["dtype"].type
        for name in ("dtype", "batch_dims"):
            if name in node.attr:
                del node.attr[name]


def _without_number(name: str, names: Iterable[str]) -> str:
    """The name without a number that tells it from nothing: saving makes ``kernel_1`` of what was ``kernel``."""
    plain = re.sub(r"_\d+$", "", name)
    last = plain.rpartition("/")[2]
    return plain if last in _USUAL and plain not in names else name


def mask(graph: Any) -> dict[str, Any]:
    """Makes placeholders of the parameters; returns what `unmask` needs to bring them back.

    In between TensorFlow's optimizer can neither fold them into each other nor leave out those that are 0 or 1.
    """
    kept = {}
    for node in graph.node:
        if node.op != "Const" or node.input or node.attr["dtype"].type not in _FLOATS:
            continue
        tensor = type(node.attr["value"].tensor)()
        tensor.CopyFrom(node.attr["value"].tensor)
        if all(dim.size <= 1 for dim in tensor.tensor_shape.dim):
            continue
        kept[node.name] = tensor
        node.op = "Placeholder"
        node.attr.pop("value")
        node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
    return kept


def unmask(graph: Any, kept: Mapping[str, Any]) -> None:
    """Makes constants again of what `mask` has made placeholders."""
    for node in graph.node:
        if node.name in kept:
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = kept[node.name].dtype
            node.attr["value"].tensor.CopyFrom(kept[node.name])


def _parameter_name(node: str) -> str:
    """Returns the variable's name, from that of the constant that it was frozen to."""
    for end in ("/resource", "/ReadVariableOp", "/read"):
        node = node.removesuffix(end)
    return node


def find_ends(source: Source) -> None:
    """Finds inputs and outputs that are not named: placeholders, and what nothing reads.

    Of a graph that trains, an output is what comes last of all that depends on the first placeholder alone: what comes
    behind it compares it with the truth.
    """
    nodes = {node.name: node for node in source.graph.node}
    if not source.outputs:
        readers = Counter(_node(name) for node in nodes.values() for name in node.input)
        if any(_TRAINS.fullmatch(node.op) for node in nodes.values()):
            found = list(_frontier(nodes))
        else:
            ends = [name for name, node in nodes.items() if not readers[name] and not _NO_OUTPUT.fullmatch(node.op)]
            fed = {name for name, node in nodes.items() if node.op == "Placeholder" and not _is_text(node)}
            found = [name for name in ends if fed & _ancestors(nodes, [name])]
        if not found:
            raise SurgeryError(f"{source.path}: its outputs cannot be told; name them with --option outputs=[…]")
        source.outputs = {name: f"{name}:0" for name in found}
    if not source.inputs:
        kept = _ancestors(nodes, [_node(tensor) for tensor in source.outputs.values()])
        found = [
            name
            for name, node in nodes.items()
            if name in kept and node.op == "Placeholder" and not _is_switch(node) and not KEEP.search(name)
        ]
        source.inputs = {name: f"{name}:0" for name in found}
    if not source.inputs:
        raise SurgeryError(f"{source.path}: its inputs cannot be told; name them with --option inputs=[…]")


def _is_switch(node: Any) -> bool:
    """Whether a placeholder says whether the network trains: true or false, and no batch of such."""
    return node.attr["dtype"].type == 10 and not node.attr["shape"].shape.dim


def _is_text(node: Any) -> bool:
    """Whether a placeholder is a text: the name of a file to save to."""
    return bool(node.attr["dtype"].type == 7)


def _ancestors(nodes: Mapping[str, Any], ends: Iterable[str]) -> set[str]:
    found: set[str] = set()
    stack = list(ends)
    while stack:
        name = stack.pop()
        if name not in found and name in nodes:
            found.add(name)
            stack.extend(_node(each) for each in nodes[name].input if not each.startswith("^"))
    return found


def _frontier(nodes: Mapping[str, Any]) -> Iterator[str]:
    """What depends on the first placeholder alone, and is read by nothing that does; no choice among classes."""
    placeholders = [
        name for name, node in nodes.items() if node.op == "Placeholder" and not _is_switch(node) and not _is_text(node)
    ]
    if not placeholders:
        return
    readers: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for each in node.input:
            readers.setdefault(_node(each), []).append(name)
    first = _reached(readers, placeholders[:1])
    others = _reached(readers, [name for name in placeholders[1:] if not KEEP.search(name)])
    choices = _reached(readers, [name for name, node in nodes.items() if node.op in _CHOICES])
    alone = first - others - choices - {placeholders[0]}
    last = [name for name in nodes if name in alone and not alone.intersection(readers.get(name, []))]
    compared = [name for name in last if not others or others.intersection(readers.get(name, []))]
    # The loss may be of what softmax reads, with nothing but the accuracy behind softmax.
    yield from compared or [name for name in last if not _NO_OUTPUT.fullmatch(nodes[name].op)]


def _reached(readers: Mapping[str, list[str]], starts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    stack = list(starts)
    while stack:
        name = stack.pop()
        if name not in found and not name.startswith("gradients/"):
            found.add(name)
            stack.extend(readers.get(name, ()))
    return found
