"""Turn fully connected layers into convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.io import infer_shapes
from surgery.layers import Layer, layers
from surgery.passes.activations import ACTIVATION_OPS
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.dense import adapt_constraint, layer_stem, read_units
from surgery.passes.editing import (
    bypass,
    constant_of,
    drop_unused,
    forget_shapes,
    new_parameter,
    opset,
    register,
    replace_parameter,
)

__all__ = ["ToFullyConvolutional"]

_PASSING = ACTIVATION_OPS | {"Dropout", "Identity", "BatchNormalization"}


@pass_dataclass
class ToFullyConvolutional(Pass):
    """Makes convolutions of fully connected layers, so that the network takes images of any larger size and gives a
    map of predictions (Long et al. 2015; Caffe's net surgery). On images of the old size the numbers stay the same,
    with two more axes of length 1.

    The first layer behind a map becomes a convolution of the map's size, the ones behind it of size 1. Idempotent.
    """

    def edit(self, model: ir.Model) -> Iterator[Change]:
        found = False
        for node in list(model.graph):
            if node.op_type in ("Flatten", "Reshape") and _flattens(node):
                found = True
                yield from _convert(model, node)
        if not found and any(layer.op_type in ("Gemm", "MatMul") and layer.parameters for layer in layers(model)):
            raise SurgeryError("no fully connected layer stands behind a map of known size [N, C, H, W]")


def _flattens(node: ir.Node) -> bool:
    """Whether `node` makes a row of each map of known size, for fully connected layers."""
    source = node.inputs[0]
    before, after = source.shape if source is not None else None, node.outputs[0].shape
    return (
        before is not None
        and after is not None
        and len(before) == 4
        and len(after) == 2
        and all(isinstance(d, int) for d in before[1:])
        and (before[0] == after[0] or not isinstance(after[0], int))
        and _feeds_dense(node.outputs[0])
    )


def _feeds_dense(value: ir.Value) -> bool:
    users = value.consumers()
    return any(u.op_type in ("Gemm", "MatMul") or (u.op_type in _PASSING and _feeds_dense(u.outputs[0])) for u in users)


def _convert(model: ir.Model, flatten: ir.Node) -> Iterator[Change]:
    by_node = {node: layer for layer in layers(model) for node in layer.nodes}
    source = flatten.inputs[0]
    assert source is not None
    assert source.shape is not None
    kernel = [int(d) for d in source.shape[2:] if isinstance(d, int)]
    chain = _behind(flatten, by_node)
    for node in chain:
        _over_channels(model, node)
    flattened = bypass(flatten)
    forget_shapes([o for node in chain for o in node.outputs])
    for output in model.graph.outputs:  # of another rank
        if output.producer() in chain:
            output.shape = None
    maps = {flattened}  # what has not met a fully connected layer yet
    for node in chain:
        layer = by_node.get(node)
        if layer is not None and node is layer.node and "weight" in layer.parameters:
            size = kernel if node.inputs[0] in maps else [1, 1]
            _replace(model, layer, size)
            yield Change(layer.name, f"{layer.op_type} → Conv of size {size[0]} × {size[1]}")
        elif node.inputs[0] in maps:
            maps.add(node.outputs[0])
    infer_shapes(model)


def _behind(flatten: ir.Node, by_node: dict[ir.Node, Layer]) -> list[ir.Node]:
    """The operators on the rows, in graph order."""
    reached = set(flatten.outputs)
    chain = []
    for node in flatten.graph or ():
        if any(v in reached for v in node.inputs):
            layer = by_node.get(node)
            dense = layer is not None and node.op_type in ("Gemm", "MatMul") and "weight" in layer.parameters
            bias = layer is not None and node is layer.nodes[-1] and len(layer.nodes) > 1
            if not dense and not bias and node.op_type not in _PASSING:
                raise SurgeryError(
                    f"{node.op_type} {node.name!r} works on the rows behind {flatten.name!r}; only fully connected "
                    "layers, activations and dropout can be turned into what works on maps: cut it off first"
                )
            chain.append(node)
            reached |= set(node.outputs)
    return chain


def _over_channels(model: ir.Model, node: ir.Node) -> None:
    """Makes an activation of rows one of the channels of a map."""
    if node.op_type == "PRelu" and (slope := constant_of(node.inputs[1])) is not None and slope.size > 1:
        old = node.inputs[1]
        assert old is not None
        new = new_parameter(slope.reshape(-1, 1, 1), ir.DataType.from_numpy(slope.dtype), old)
        replace_parameter(node, 1, new, str(old.name))
    if node.op_type in ("Softmax", "LogSoftmax"):
        if opset(model) < 13:
            raise SurgeryError(
                f"{node.op_type} {node.name!r} over the channels of a map needs operator set 13; raise the model's "
                "with onnx.version_converter"
            )
        node.attributes["axis"] = ir.AttrInt64("axis", 1)


def _replace(model: ir.Model, layer: Layer, kernel: list[int]) -> None:
    """Puts a Conv where a Gemm or a MatMul with its Add was."""
    graph, node = model.graph, layer.node
    rows, bias = read_units(layer)
    old = layer.parameters
    dtype, stem = old["weight"].dtype or ir.DataType.FLOAT, layer_stem(layer)
    weight = new_parameter(rows.reshape(len(rows), -1, *kernel), dtype, old["weight"])
    values = [weight]
    if "bias" in old:
        values.append(new_parameter(bias, dtype, old["bias"]))
    if len(layer.nodes) > 1:
        bypass(layer.nodes[1], next(i for i, v in enumerate(layer.nodes[1].inputs) if v is node.outputs[0]))
    unused = list(node.inputs[1:])
    conv = ir.node("Conv", [node.inputs[0], *values], {"kernel_shape": kernel}, name=node.name)
    output = conv.outputs[0]
    output.dtype = dtype
    graph.insert_before(node, conv)
    before = node.outputs[0]
    output.name = before.name
    graph.outputs[:] = [output if o is before else o for o in graph.outputs]
    before.replace_all_uses_with(output)
    graph.remove(node, safe=True)
    drop_unused(graph, unused)
    for value, role in zip(values, ("weight", "bias"), strict=False):
        register(graph, value, f"{stem}.{role}")
    adapt_constraint(Layer(layer.index, layer.name, conv, (conv,), {"weight": weight}))
