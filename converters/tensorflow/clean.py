"""Makes of what tf2onnx writes a model as the other converters make it: names, sizes, padding, parameters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from converters.tensorflow.padding import make_explicit
from converters.tensorflow.parameters import name_parameters
from converters.tensorflow.source import Source
from surgery.io import IR_VERSION, infer_shapes

__all__ = ["clean"]

_NUMBER = re.compile(r"__\d+$")  # what tf2onnx makes names different with
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")  # of functions that were inlined
_SIZES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}  # by rank, with the batch


def clean(model: ir.Model, source: Source, parameters: Mapping[str, np.ndarray]) -> None:
    """Cleans `model` in place.

    Args:
        model: What tf2onnx wrote.
        source: The network as prepared.
        parameters: Its variables by name.
    """
    model.ir_version = IR_VERSION
    model.producer_name = "onnx-surgery"
    model.graph.doc_string = None
    model.doc_string = None
    LiftConstantsToInitializersPass(size_limit=0)(model)
    _forget_shapes(model.graph)
    IdentityEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    _name_dimensions(model.graph)
    infer_shapes(model)
    if make_explicit(model):
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    names = name_parameters(model, parameters)
    _name_nodes(model.graph, names)


def _forget_shapes(graph: ir.Graph) -> None:
    """What tf2onnx says of shapes has a name of its own for every free dimension."""
    for node in graph:
        for output in node.outputs:
            shape = output.shape
            output.shape = None
            if output.is_graph_output() and shape is not None:
                output.shape = ir.Shape([d if isinstance(d, int) else None for d in shape])


def _name_dimensions(graph: ir.Graph) -> None:
    """The batch is "N", an image's sizes are height and width."""
    for number, value in enumerate(graph.inputs):
        if value.shape is None:
            continue
        free = list(_SIZES.get(len(value.shape), ()))
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                if 0 < axis <= len(free):
                    free[axis - 1] = ""
            elif axis == 0:
                dims.append("N")
            else:
                name = free[axis - 1] if axis <= len(free) and free[axis - 1] else f"size{axis}"
                dims.append(name if not number else f"{name}_{value.name}")
        value.shape = ir.Shape(dims)


def _name_nodes(graph: ir.Graph, scopes: Mapping[ir.Node, str]) -> None:
    """Operators with parameters get the name of these' scope, others TensorFlow's, all different."""
    taken: Counter[str] = Counter()
    values = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node in graph:
        name = scopes.get(node) or _CALLS.sub("", _NUMBER.sub("", node.name or "")) or node.op_type
        node.name = _unique(name, taken)
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}:{index}" if index or node.name in values else node.name


def _unique(name: str, taken: Counter[str]) -> str:
    taken[name] += 1
    while taken[name] > 1:
        name = f"{name}_{taken[name]}"
        taken[name] += 1
    return name
