"""What is different in each exporter's files, made the same: weights, their shapes, names."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

from surgery.io.tensors import ExternalTensor, InlineTensor

__all__ = ["clean", "weights_of"]


def clean(model: ir.Model) -> None:
    """Makes weights plain initializers of the shape in which they are used, and gives every operator a name."""
    RemoveInitializersFromInputsPass()(model)
    LiftConstantsToInitializersPass(size_limit=0)(model)
    _reshape_weights(model.graph)
    for value in weights_of(model):  # what the file says of a weight besides is of no account
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
    _name_nodes(model)
    _separate_statistics(model.graph)


def weights_of(model: ir.Model) -> list[ir.Value]:
    """The initializers of `model` that hold something, those of subgraphs included."""
    return [v for graph in model.graphs() for v in graph.initializers.values() if v.const_value is not None]


def _reshape_weights(graph: ir.Graph) -> None:
    """Gives weights the shape in which they are used, where a Reshape does (Caffe2's exporter writes such)."""
    for node in list(graph):
        if node.op_type != "Reshape" or len(node.inputs) != 2:
            continue
        weight, shape = node.inputs
        target = ir.convenience.get_const_tensor(shape) if shape is not None else None
        old = weight.const_value if weight is not None and weight.is_initializer() else None
        if weight is None or old is None or target is None or len(weight.uses()) != 1 or weight.is_graph_output():
            continue
        if node.outputs[0].is_graph_output() or "allowzero" in node.attributes:
            continue
        before = old.shape.numpy()
        dims = [before[i] if d == 0 and i < len(before) else int(d) for i, d in enumerate(target.numpy().tolist())]
        if -1 in dims:
            dims[dims.index(-1)] = math.prod(before) // max(1, -math.prod(dims))
        if any(d < 1 for d in dims) or math.prod(dims) != math.prod(before):
            continue  # an error in the file, for whoever runs it
        weight.const_value, weight.shape = _reshaped(old, ir.Shape(dims)), ir.Shape(dims)
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        if shape is not None and shape.is_initializer() and not shape.uses():
            graph.initializers.pop(str(shape.name))


def _reshaped(tensor: ir.TensorProtocol, shape: ir.Shape) -> ir.TensorProtocol:
    """`tensor` in another shape; one in a file stays there."""
    if isinstance(tensor, InlineTensor | ExternalTensor):
        return tensor.reshaped(shape)
    array = tensor.numpy().reshape([int(d) for d in shape if isinstance(d, int)])
    return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _name_nodes(model: ir.Model) -> None:
    """Names the operators that have no name by their first output: layers and selectors go by name."""
    for node in model.graph:
        if not node.name:
            node.name = next((o.name for o in node.outputs if o.name), node.op_type)


def _separate_statistics(graph: ir.Graph) -> None:
    """Gives each BatchNormalization statistics of its own: PyTorch's exporter makes equal tensors one, as 0 and 1."""
    for node in list(graph):
        if node.op_type != "BatchNormalization" or len(node.inputs) != 5:
            continue
        for index, role in ((3, "running_mean"), (4, "running_var")):
            value = node.inputs[index]
            maker = value.producer() if value is not None else None
            source = maker.inputs[0] if maker is not None and maker.op_type == "Identity" else value
            if value is None or source is None or source.const_value is None or not source.is_initializer():
                continue
            if all(user.op_type == node.op_type and i == index for user, i in source.uses()):
                continue
            name = f"{node.name}.{role}"
            while name in graph.initializers:
                name += "_"
            own = ir.Value(name=name, shape=source.shape, type=source.type)
            node.replace_input_with(index, own)
            if maker is not None and source is not value and not value.uses() and not value.is_graph_output():
                own.name = value.name  # the one it had in PyTorch
                graph.remove(maker, safe=True)
            own.const_value = ir.Tensor(
                source.const_value.numpy().copy(), dtype=source.const_value.dtype, name=own.name
            )
            graph.register_initializer(own)
