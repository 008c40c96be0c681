"""What PyTorch's exporters leave: copies, casts, computed constants, names without meaning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from surgery.emit import initializer
from surgery.marks import set_marks

__all__ = ["clean"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack"  # what the exporter calls the place of sizes that it computes
_STATISTICS = ("running_mean", "running_var")
_FOLDED = 2**16  # numbers; bigger constants are computed where they are used
_OWNERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization")


def clean(model: ir.Model, parameters: set[str], frozen: set[str], dims: Mapping[str, Mapping[int, str]]) -> ir.Model:
    """Makes `model` what a person would have written, in place, and returns it.

    Args:
        model: As exported.
        parameters: The names of what PyTorch trains; other weights are not trainable.
        frozen: Those of them that have ``requires_grad`` False.
        dims: The names of the inputs' free dimensions: by the input's name, axis → name. "batch" for any input's first.
    """
    graph = model.graph
    _separate(graph)
    names = set(graph.initializers)
    _fold(model, parameters)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in list(graph):
        if node.op_type == "Dropout":
            node.resize_inputs(2)
            node.resize_outputs(1)
        elif node.op_type == "Conv":
            _drop_zero_bias(node, parameters)
        elif node.op_type == "Reshape":
            _simplify_reshape(graph, node)
        elif node.op_type == "ReduceMean":
            _pool(graph, node)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)
    _drop_unused(graph)
    for name, value in graph.initializers.items():
        floating = value.dtype is not None and value.dtype.is_floating_point()
        constant = name in names and name not in parameters and name.rpartition(".")[2] not in _STATISTICS
        if floating and (name in frozen or constant):
            set_marks(value, trainable=False)
    _name(graph)
    _name_dims(graph, dims)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in ir.convenience.create_value_mapping(graph).values():
        for key in [key for key in value.metadata_props if key.startswith("pkg.")]:
            del value.metadata_props[key]
    return model


def _separate(graph: ir.Graph) -> None:
    """Gives equal weights, which the exporter makes one with copies, back their own numbers and names."""
    for node in list(graph):
        source, copy = (node.inputs[0], node.outputs[0]) if node.op_type == "Identity" else (None, None)
        if source is None or copy is None or source.const_value is None or copy.is_graph_output():
            continue
        if not source.is_initializer():
            continue
        name = str(copy.name)
        tensor = ir.Tensor(source.const_value.numpy().copy(), dtype=source.const_value.dtype, name=name)
        own = ir.Value(name=name, shape=source.shape, type=source.type, const_value=tensor)
        copy.replace_all_uses_with(own)
        graph.remove(node, safe=True)
        graph.register_initializer(own)


def _fold(model: ir.Model, parameters: set[str]) -> None:
    """Computes what depends on constants only, but not what is made of parameters: training changes those."""

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type in ("Shape", "Size"):
            return None
        return False if any(value is not None and value.name in parameters for value in node.inputs) else None

    FoldConstantsPass(
        shape_inference=True, input_size_limit=_FOLDED, output_size_limit=_FOLDED, should_fold=should_fold
    )(model)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def _drop_zero_bias(node: ir.Node, parameters: set[str]) -> None:
    """A convolution without a bias comes with one of zeros that is no parameter."""
    bias = node.inputs[2] if len(node.inputs) == 3 else None
    if bias is None or bias.name in parameters:
        return
    data = _constant(bias)
    if data is not None and not data.any():
        node.resize_inputs(2)


def _simplify_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Writes a target shape of one computed size and known ones, as ``flatten`` makes it, as a constant, or Flatten."""
    x, target = node.inputs
    maker = target.producer() if target is not None else None
    if x is None or maker is None or maker.op_type != "Concat":
        return
    sizes = [_constant(value) for value in maker.inputs]
    computed = [value for value, size in zip(maker.inputs, sizes, strict=True) if size is None]
    known = [int(size.item()) for size in sizes if size is not None and size.size == 1]
    if len(computed) != 1 or len(known) != len(sizes) - 1 or min(known, default=1) < 1:
        return
    if computed[0] is None or computed[0].shape is None or list(computed[0].shape) != [1]:
        return
    at = next(index for index, size in enumerate(sizes) if size is None)
    shape = [*known[:at], -1, *known[at:]]
    features = list(x.shape)[1:] if x.shape is not None and len(x.shape) > 1 else [None]
    if at == 0 and len(shape) == 2 and math.prod(d if isinstance(d, int) else 0 for d in features) == shape[1]:
        _replace(graph, node, ir.node("Flatten", [x], {"axis": 1}))
        return
    node.replace_input_with(1, initializer(graph, f"{node.outputs[0].name}/shape", np.array(shape, np.int64)))
    node.attributes.pop("allowzero", None)


def _replace(graph: ir.Graph, node: ir.Node, other: ir.Node) -> None:
    """Puts `other` in the place of `node`."""
    other.metadata_props.update(node.metadata_props)
    old, new = node.outputs[0], other.outputs[0]
    other.name, new.name, new.shape, new.type = node.name, old.name, old.shape, old.type
    graph.insert_before(node, other)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _pool(graph: ir.Graph, node: ir.Node) -> None:
    """A mean over height and width that keeps them is a global average pooling."""
    x, axes = node.inputs[0], _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or x.shape is None or len(x.shape) != 4 or axes is None or not node.attributes.get_int("keepdims", 1):
        return
    if sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
        return
    _replace(graph, node, ir.node("GlobalAveragePool", [x]))


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _name(graph: ir.Graph) -> None:
    """Names operators by the paths of their modules, and what they make by them."""
    paths = {node: _path(node) for node in graph}
    inner = {path.rpartition(".")[0] for path in paths.values()}
    inner |= {path[: path.index(".", at)] for path in paths.values() for at in range(len(path)) if path[at:].count(".")}
    taken: Counter[str] = Counter()
    for path in dict.fromkeys(paths.values()):
        nodes = [node for node, other in paths.items() if other == path]
        owners = [node for node in nodes if node.op_type in _OWNERS] or nodes[-1:]
        calls = nodes if len({node.op_type for node in nodes}) == 1 else owners[:1]  # of a module used several times
        for node in nodes:
            kind = node.op_type.lower()
            node.name = path if path and path not in inner and node in calls else f"{path}/{kind}" if path else kind
            taken[node.name] += 1
            if taken[node.name] > 1:
                node.name = f"{node.name}_{taken[node.name]}"
    used = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        for index, output in enumerate(node.outputs):
            name = node.name if index == 0 else f"{node.name}/{index}"
            while name in used:
                name = f"{name}/out"
            used.add(str(name))
            output.name = name


def _name_dims(graph: ir.Graph, dims: Mapping[str, Mapping[int, str]]) -> None:
    """Gives free dimensions, which the exporter calls s77, the names that they have in `dims`."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or []):
            name = dims.get(str(value.name), {}).get(axis) or ("batch" if axis == 0 else None)
            if not isinstance(dim, int) and name:
                names.setdefault(str(dim.value), name)
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([d if isinstance(d, int) else names.get(str(d.value), d) for d in value.shape])


def _path(node: ir.Node) -> str:
    """The path of the module that `node` comes from, as in the state_dict's names; empty for the network's own code."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and node.op_type in _OWNERS and "." in str(value.name):
            return str(value.name).rpartition(".")[0]
    scopes = node.metadata_props.get(_SCOPES)
    if scopes is not None:
        found = [part.strip().strip("'\"") for part in scopes.strip("[]").split(",")]
        return found[-2] if len(found) > 1 and not found[-2].startswith(_NO_MODULE) else ""
    return ".".join(part for part in str(node.name).split("/")[1:-1])
