"""Finds what batch normalization and dropout are written out as in a TensorFlow graph, and makes operators of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from converters.tensorflow.graph import DROPOUT, KEEP
from converters.tensorflow.source import Source
from surgery.errors import SurgeryError

__all__ = ["restore_batch_normalization", "restore_dropout", "settle_batch_normalization", "settle_switches"]

_RANDOM = ("RandomUniform", "StatelessRandomUniform", "StatelessRandomUniformV2")
_ADD, _SELECT = ("Add", "AddV2"), ("Select", "SelectV2")
_FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_USUAL_RATIO = 0.5  # where the graph leaves it to an input
_FLOAT, _INT = 1, 3  # DataType


class _Nodes:
    """The nodes of a graph by name, and ways to follow what they read."""

    def __init__(self, graph: Any) -> None:
        self.by_name = {node.name: node for node in graph.node}

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.by_name.values()))

    def maker(self, name: str, depth: int = 8) -> Any:
        """The node that makes a tensor, behind identities; None where there is none."""
        node = self.by_name.get(name.partition(":")[0])
        while node is not None and node.op in ("Identity", "StopGradient") and node.input and depth:
            node, depth = self.by_name.get(node.input[0].partition(":")[0]), depth - 1
        return node

    def inputs(self, node: Any) -> list[Any]:
        """The nodes that make what a node reads."""
        return [self.maker(name) for name in node.input]

    def number(self, name: str) -> float | None:
        """The value of a scalar that is a constant, or is computed from such."""
        node = self.maker(name)
        if node is None:
            return None
        if node.op == "Const":
            from tensorflow.python.framework.tensor_util import MakeNdarray

            value = node.attr["value"].tensor
            return float(MakeNdarray(value).ravel()[0]) if value.dtype == _FLOAT and _is_one(value) else None
        operands = [self.number(each) for each in node.input] if node.op in ("Sub", "RealDiv") else []
        if len(operands) != 2 or operands[0] is None or operands[1] is None or not operands[1]:
            return None
        return operands[0] - operands[1] if node.op == "Sub" else operands[0] / operands[1]

    def is_random(self, name: str, depth: int = 5) -> bool:
        """Whether a tensor is a uniform random one, scaled or shifted perhaps."""
        node = self.maker(name)
        if node is None or not depth:
            return False
        if node.op in _RANDOM:
            return True
        return node.op in ("Mul", "Sub", *_ADD) and any(self.is_random(each, depth - 1) for each in node.input)


def _is_one(tensor: Any) -> bool:
    return all(dim.size == 1 for dim in tensor.tensor_shape.dim)


def restore_dropout(source: Source) -> None:
    """Makes of dropout, as TensorFlow 1 and 2 write it out, an operator that stands for it until the graph is ONNX.

    Its forms: x / keep · ⌊keep + random⌋, and x · scale where random ≥ rate, else 0.
    """
    nodes = _Nodes(source.graph)
    for node in nodes:
        found = _dropout(nodes, node)
        if found is None:
            continue
        x, ratio = found
        kind = node.attr["T"].type
        node.op = DROPOUT
        del node.input[:]
        node.input.append(x)
        node.attr.clear()
        node.attr["T"].type = kind
        node.attr["message"].s = repr(ratio if 0 <= ratio < 1 else _USUAL_RATIO).encode()


def _dropout(nodes: _Nodes, node: Any) -> tuple[str, float] | None:
    """What a node drops from, and at which ratio."""
    if node.op == "Mul":
        pairs = [(node.input[0], node.input[1]), (node.input[1], node.input[0])]
    elif node.op in _SELECT:
        pairs = [(node.input[1], node.input[0])]
    else:
        return None
    for scaled, mask in pairs:
        ratio, maker = _mask(nodes, mask), nodes.maker(scaled)
        if ratio is None or maker is None or maker.op not in ("RealDiv", "Mul") or len(maker.input) != 2:
            continue
        first, second = maker.input
        backwards = maker.op == "Mul" and nodes.number(first) is not None and nodes.number(second) is None
        return second if backwards else first, ratio
    return None


def _mask(nodes: _Nodes, name: str) -> float | None:
    """The ratio of a mask; None where it is none."""
    node = nodes.maker(name)
    if node is None:
        return None
    if node.op == "Floor":
        total = nodes.maker(node.input[0])
        if total is None or total.op not in _ADD:
            return None
        kept = [each for each in total.input if not nodes.is_random(each)]
        if len(kept) != 1:
            return None
        keep = nodes.number(kept[0])
        return _USUAL_RATIO if keep is None else 1 - keep
    if node.op == "Cast":
        node = nodes.maker(node.input[0])
    if node is None or node.op != "GreaterEqual" or not nodes.is_random(node.input[0]):
        return None
    rate = nodes.number(node.input[1])
    return _USUAL_RATIO if rate is None else rate


def settle_switches(source: Source) -> None:
    """Makes constants of inputs that are none of the network's.

    Whether it trains is false, what dropout keeps is all, and what has a default is that.
    """
    from tensorflow.python.framework.tensor_util import make_tensor_proto

    inputs = {tensor.partition(":")[0] for tensor in source.inputs.values()}
    for node in source.graph.node:
        if node.name in inputs:
            continue
        if node.op == "PlaceholderWithDefault":
            kind = node.attr["dtype"].type
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = kind
        elif node.op == "Placeholder":
            switch = node.attr["dtype"].type == 10 and not node.attr["shape"].shape.dim
            if not switch and not KEEP.search(node.name):
                raise SurgeryError(
                    f"{source.path}: the outputs need {node.name!r}, which is none of the inputs; add it to them"
                )
            kind = node.attr["dtype"].type
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = kind
            node.attr["value"].tensor.CopyFrom(make_tensor_proto(False if switch else 1.0, dtype=kind))


def settle_batch_normalization(source: Source) -> None:
    """Makes batch normalization that is in training use its moving statistics, found by their names."""
    nodes = _Nodes(source.graph)
    for node in nodes:
        if node.op not in _FUSED or ("is_training" in node.attr and not node.attr["is_training"].b):
            continue
        scale = nodes.maker(node.input[2])
        scope = scale.name.rpartition("/")[0] if scale is not None else ""
        statistics = [f"{scope}/moving_mean", f"{scope}/moving_variance"]
        if any(name not in nodes.by_name for name in statistics):
            raise SurgeryError(
                f"{source.path}: batch normalization {node.name!r} normalizes by each batch's own statistics, and "
                f"{statistics[0]!r} is not there; save the network as it is when it infers"
            )
        node.attr["is_training"].b = False
        node.input[3], node.input[4] = statistics


def restore_batch_normalization(tf: Any, source: Source) -> None:
    """Makes an operator of (x · m) + (β − mean · m), m = γ / √(variance + ε), for [N, C] and [N, height, width, C]."""
    nodes = _Nodes(source.graph)
    matches = [(node, match) for node in nodes if node.op in _ADD and (match := _normalization(nodes, node))]
    if not matches:
        return
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(source.graph, name="")
    for node, (x, parameters, eps) in matches:
        tensor = graph.get_tensor_by_name(x if ":" in x else f"{x}:0")
        if tensor.dtype != tf.float32 or tensor.shape.rank not in (2, 4):
            continue
        if tensor.shape.rank == 2:  # as images of one place, which `clean` undoes
            channels = nodes.by_name[parameters[0]].attr["value"].tensor.tensor_shape.dim[0].size
            image = _reshape(source.graph, f"{node.name}/image", x, [-1, 1, 1, channels])
            fused = source.graph.node.add(name=f"{node.name}/fused")
            x = image.name
        else:
            fused = node
            fused.attr.clear()
            del fused.input[:]
        fused.op = "FusedBatchNormV3"
        fused.input.extend([x, *parameters])
        fused.attr["T"].type = fused.attr["U"].type = _FLOAT
        fused.attr["epsilon"].f = eps
        fused.attr["is_training"].b = False
        fused.attr["data_format"].s = b"NHWC"
        if fused is not node:
            _reshape(source.graph, node.name, fused.name, [-1, channels], node)


def _reshape(graph: Any, name: str, x: str, sizes: list[int], node: Any = None) -> Any:
    """Adds a Reshape, or makes one of `node`."""
    from tensorflow.python.framework.tensor_util import make_tensor_proto

    shape = graph.node.add(name=f"{name}/shape", op="Const")
    shape.attr["dtype"].type = _INT
    shape.attr["value"].tensor.CopyFrom(make_tensor_proto(np.array(sizes, np.int32)))
    node = graph.node.add(name=name) if node is None else node
    node.op = "Reshape"
    del node.input[:]
    node.input.extend([x, shape.name])
    node.attr.clear()
    node.attr["T"].type, node.attr["Tshape"].type = _FLOAT, _INT
    return node


def _normalization(nodes: _Nodes, node: Any) -> tuple[str, list[str], float] | None:
    """What a node normalizes, its γ, β, mean and variance, and ε."""
    for scaled, shift in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        product, rest = nodes.maker(scaled), nodes.maker(shift)
        if product is None or rest is None or product.op != "Mul" or rest.op != "Sub":
            continue
        other = nodes.maker(rest.input[1])
        if other is None or other.op != "Mul":
            continue
        for x, factor in ((product.input[0], product.input[1]), (product.input[1], product.input[0])):
            for mean, again in ((other.input[0], other.input[1]), (other.input[1], other.input[0])):
                found = _factor(nodes, factor) if factor == again else None
                constant = [nodes.maker(each) for each in (mean, rest.input[0])]
                if found is not None and all(each is not None and each.op == "Const" for each in constant):
                    scale, variance, eps = found
                    return x, [scale, constant[1].name, constant[0].name, variance], eps
    return None


def _factor(nodes: _Nodes, name: str) -> tuple[str, str, float] | None:
    """γ, the variance and ε of γ / √(variance + ε)."""
    node = nodes.maker(name)
    if node is None or node.op != "Mul":
        return None
    for root, scale in ((node.input[0], node.input[1]), (node.input[1], node.input[0])):
        inverse, gamma = nodes.maker(root), nodes.maker(scale)
        if inverse is None or inverse.op != "Rsqrt" or gamma is None or gamma.op != "Const":
            continue
        total = nodes.maker(inverse.input[0])
        if total is None or total.op not in _ADD:
            continue
        for variance, eps in ((total.input[0], total.input[1]), (total.input[1], total.input[0])):
            maker, number = nodes.maker(variance), nodes.number(eps)
            if maker is not None and maker.op == "Const" and number is not None:
                return gamma.name, maker.name, float(np.float32(number))
    return None
