"""Makes of what tf2onnx writes a model as the other converters make it: names, sizes, padding, parameters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from converters.context import unique_name
from converters.tensorflow.padding import make_explicit
from converters.tensorflow.parameters import name_parameters
from converters.tensorflow.source import Source
from surgery.emit import initializer
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes

__all__ = ["clean"]

_SHOWN = 8
_NUMBER = re.compile(r"__\d+$")  # what tf2onnx makes names different with
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")  # of functions that were inlined
_COLORS = (1, 3, 4)
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
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
    _check_operators(model, source)
    LiftConstantsToInitializersPass(size_limit=0)(model)
    _forget_shapes(model.graph)
    IdentityEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    _name_dimensions(model.graph)
    infer_shapes(model)
    _keep_batch(model.graph)
    _forget_shapes(model.graph)
    infer_shapes(model)
    if make_explicit(model):
        RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    if _flatten_normalization(model.graph):
        RemoveUnusedNodesPass()(model)
        _forget_shapes(model.graph)
        infer_shapes(model)
    _check_outputs(model.graph, source)
    names = name_parameters(model, parameters)
    _name_nodes(model.graph, names)


def _check_operators(model: ir.Model, source: Source) -> None:
    """Refuses what tf2onnx has left as it is, since it does not know it."""
    kinds = {node.op_type for node in model.graph.all_nodes() if not onnx.defs.has(node.op_type, node.domain)}
    if kinds:
        raise SurgeryError(
            f"{source.path}: tf2onnx does not know the operators {', '.join(sorted(kinds)[:_SHOWN])}; end the network "
            "before them with --option outputs=…"
        )


def _check_outputs(graph: ir.Graph, source: Source) -> None:
    for value in graph.outputs:
        if value.shape is None:
            raise SurgeryError(
                f"{source.path}: how many dimensions output {value.name!r} has depends on the input's; say its shape "
                "without the batch, as --shape 224x224x3 (shape= in Python)"
            )


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
        if len(value.shape) == 3 and value.shape[2] in _COLORS and not isinstance(value.shape[1], int):
            sizes = ["height", "width"] if not number else [f"height_{value.name}", f"width_{value.name}"]
            value.shape = ir.Shape([*sizes, value.shape[2]])  # one image, not a batch of something
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


def _keep_batch(graph: ir.Graph) -> None:
    """Has a Reshape that keeps each example's numbers together keep the batch's axis, in place of finding it anew."""
    for node in graph:
        x, target = node.inputs[:2] if node.op_type == "Reshape" else (None, None)
        tensor = ir.convenience.get_const_tensor(target) if target is not None else None
        if x is None or x.shape is None or target is None or tensor is None or tensor.size < 1:
            continue
        sizes, dims = tensor.numpy().tolist(), list(x.shape)
        numbers = [d for d in dims[1:] if isinstance(d, int)]
        if sizes[0] != -1 or not dims or len(numbers) != len(dims) - 1 or math.prod(numbers) != math.prod(sizes[1:]):
            continue
        name = f"{node.name}/shape"
        while name in graph.initializers:
            name += "_"
        node.replace_input_with(1, initializer(graph, name, np.array([0, *sizes[1:]], np.int64)))
    for value in [v for v in graph.initializers.values() if not v.uses()]:
        del graph.initializers[str(value.name)]


def _flatten_normalization(graph: ir.Graph) -> bool:
    """Takes away the reshaping around batch normalization of [N, C] that was one of images of one place."""
    found = False
    for node in graph:
        if node.op_type != "BatchNormalization":
            continue
        x, y = node.inputs[0], node.outputs[0]
        while x is not None and _moves_nothing(x) and (maker := x.producer()) is not None:
            x = maker.inputs[0]
        while (
            len(y.uses()) == 1 and not y.is_graph_output() and _moves_nothing(y) and y.consumers()[0].op_type in _MOVES
        ):
            y = y.consumers()[0].outputs[0]
        if x is node.inputs[0] or y is node.outputs[0] or not (_is_flat(x) and _is_flat(y)):
            continue
        found = True
        node.replace_input_with(0, x)
        out = node.outputs[0]
        y.replace_all_uses_with(out, replace_graph_outputs=True)
    return found


def _moves_nothing(value: ir.Value) -> bool:
    """Whether a value is of one place and channels only, and made by what only shapes it."""
    maker = value.producer()
    if value.shape is None or maker is None or maker.op_type not in (*_MOVES, "BatchNormalization"):
        return False
    return len(value.shape) == 4 and sum(d == 1 for d in value.shape) >= 2


def _is_flat(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2


def _name_nodes(graph: ir.Graph, scopes: Mapping[ir.Node, str]) -> None:
    """Operators with parameters get the name of these' scope, others TensorFlow's, all different."""
    taken: Counter[str] = Counter()
    values = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node in graph:
        name = scopes.get(node) or _CALLS.sub("", _NUMBER.sub("", node.name or "")) or node.op_type
        if node.op_type in _MOVES and _NUMBER.search(node.name or ""):  # none of TensorFlow's
            name = f"{name}/{node.op_type.lower()}"
        elif node.op_type == "Dropout":  # TensorFlow has several operators in its scope
            name = name.rpartition("/")[0] or name
        node.name = unique_name(name, taken)
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}:{index}" if index or node.name in values else node.name
