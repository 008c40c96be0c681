"""Data parallelism on one machine: which steps gain if the examples of a batch are divided among threads.

The runtimes divide each operator among their threads, but not every one: Cast, Pad, Slice and some gradients run on
one. And what a thread reads has often been written by another, from whose cache it comes: between processors that share
none, that takes longer than the work. Here, each thread runs the whole step, forward and backward, on its own part of
the batch, its shard; the gradients of all are added up before the update.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import FLOATS
from surgery.autodiff.constants import constant_value, fold_shapes
from surgery.emit import Emitter
from surgery.io import infer_shapes
from surgery.layers import ancestors, descendants
from surgery.training.accumulation import float_input
from surgery.training.forward import Forward

__all__ = ["SHARE", "add_up", "cores", "divide", "gradient_input", "gradient_outputs", "share_input"]

SHARE = "shard/share"  # the name of the input
_MOST = 8  # shards; further cores go to the operators of each
_GRADIENTS = 2**26  # numbers in the gradients of all shards: adding up more takes what is gained
_WORTH = 2**18  # numbers in a shard that gradients go through, so that it pays to start a thread

_SIZES = (2, 7, 64)  # of batches: what is the same for all of them does not depend on their size

# Operators that treat each example alone wherever the batch is the first dimension of what they read and give.
# fmt: off
_MAPS = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool",
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN",
    "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid",
    "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
    "Abs", "Add", "Cast", "Ceil", "Cos", "Div", "Erf", "Exp", "Floor", "Identity", "Log", "Max", "Mean", "Min", "Mul",
    "Neg", "Pow", "Reciprocal", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Where",
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
    "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Reshape", "SpaceToDepth", "Split", "Squeeze", "Unsqueeze",
}
# fmt: on
_BY_AXIS = {"Concat": 1, "Gather": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1}  # default of `axis`
_FORM = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}  # the input that may depend on the number of examples
_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide(forward: Forward, batch_size: int, threads: int) -> int:
    """Returns the number of shards that pay for batches of `batch_size` on so many threads; 1 where none do.

    None do where a value may depend on several examples, as BatchNormalization by the batch's statistics, or an
    example's weight in the loss on others, either; nor where there is dropout, whose masks would depend on the number
    of processors.
    """
    parameters = sum(int(np.prod(p.shape.numpy())) for p in forward.parameters if p.shape is not None)
    shards = min(threads, _MOST, batch_size // 2, _GRADIENTS // max(1, parameters))
    if shards < 2 or forward.statistics or not all(_is_plain_mean(term.loss) for term in forward.terms):
        return 1
    numbers = _numbers_of_example(forward)
    return shards if numbers is not None and numbers * batch_size >= _WORTH * shards else 1


def _is_plain_mean(loss: object) -> bool:
    """Whether the loss of a batch is the mean of its examples' losses, all of the same weight."""
    return all(getattr(loss, name, None) is None for name in ("class_weights", "ignore_index"))


def _numbers_of_example(forward: Forward) -> int | None:
    """How many numbers gradients go through for an example; None where examples may depend on each other.

    What is frozen does not count: of inference, each thread would keep the packed weights once more and gain nothing.
    """
    needed, trained, total = ancestors(forward.logits), descendants(forward.parameters), 0
    of_batch = {v for v in forward.model.graph.inputs if v.name in forward.batch}
    if not all(value.shape is not None and len(value.shape) for value in of_batch):
        return None
    of_size: set[ir.Value] = set()  # what may depend on the number of examples, but on no example
    twins = {size: _of_size(forward, size) for size in _SIZES}
    for node in forward.model.graph:
        if node not in needed:
            continue
        if node.op_type in _RANDOM or _attribute(node, "training_mode", 0):
            return None
        if not (of_batch | of_size).intersection(node.inputs):
            continue
        form = _FORM.get(node.op_type)
        same = form is not None and node.outputs[0].dtype in FLOATS  # examples that are all alike, if a batch at all
        if node.op_type in ("Shape", "Size") or not (same or of_batch.intersection(node.inputs)):
            of_size.update(o for o in node.outputs if not _is_same(str(o.name), twins.values()))
            continue
        if not _is_map(node, of_batch) or any(v in of_size for i, v in enumerate(node.inputs) if i != form):
            return None
        for value in node.outputs:
            if value.uses() or value in forward.logits:
                dims = [(size, _dims(twin.get(str(value.name)))) for size, twin in twins.items()]
                if any(found[:1] != [size] or found[1:] != dims[0][1][1:] for size, found in dims):
                    return None
                total += int(np.prod(dims[0][1][1:])) if node in trained else 0
        of_batch.update(node.outputs)
    return total


def _of_size(forward: Forward, batch: int) -> dict[str, ir.Value]:
    """The values for batches of this size, by name, their shapes inferred."""
    model = forward.model.clone()
    sized = [*forward.batch, *(term.target for term in forward.terms)]
    for value in model.graph.inputs:
        if value.name in sized and value.shape is not None and len(value.shape):
            value.shape = ir.Shape([batch, *value.shape[1:]])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None  # inferred anew
    infer_shapes(model, strict=False)
    while fold_shapes(model.graph, ()):
        infer_shapes(model, strict=False)
    return dict(ir.convenience.create_value_mapping(model.graph))


def _dims(value: ir.Value | None) -> list[int]:
    """The dimensions, where all are known; otherwise none."""
    shape = None if value is None else value.shape
    return list(shape.numpy()) if shape is not None and shape.is_static() else []


def _is_same(name: str, twins: Iterable[Mapping[str, ir.Value]]) -> bool:
    """Whether a value is known to be the same for all sizes of the batch."""
    first, *others = (constant_value(twin[name], ()) if name in twin else None for twin in twins)
    return first is not None and all(other is not None and np.array_equal(first, other) for other in others)


def _is_map(node: ir.Node, of_batch: Collection[ir.Value]) -> bool:
    """Whether what an example becomes depends on no other, if the batch is the first dimension before and after."""
    rank = max(1, len(node.outputs[0].shape or ()))
    if node.domain:
        return False
    if node.op_type == "Transpose":
        return list(node.attributes.get_ints("perm", ()))[:1] == [0]
    if node.op_type == "Gather" and node.inputs[0] not in of_batch:
        return True
    if node.op_type == "Slice":
        axes = constant_value(node.inputs[3], ()) if len(node.inputs) > 3 and node.inputs[3] is not None else None
        return axes is not None and bool((axes % rank != 0).all())
    if node.op_type in _BY_AXIS:
        return _attribute(node, "axis", _BY_AXIS[node.op_type]) % rank != 0
    return node.op_type in _MAPS


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def share_input(op: Emitter) -> ir.Value:
    """Returns the graph's input for the share of the batch's examples that a shard has: what its mean loss counts."""
    return float_input(op, SHARE, ir.Shape(()))


def gradient_outputs(op: Emitter, gradients: Mapping[ir.Value, ir.Value]) -> dict[str, ir.Value]:
    """Returns the gradients, by the names of their parameters, each as a value of its own that a graph can give."""
    found: dict[str, ir.Value] = {}
    for parameter, value in gradients.items():
        own = value.producer() is not None and not value.is_graph_output() and value not in found.values()
        gradient = found[str(parameter.name)] = value if own else op.Identity(value)
        gradient.shape, gradient.type = parameter.shape, ir.TensorType(ir.DataType.FLOAT)
    return found


def gradient_input(parameter: str, shard: int) -> str:
    """The name of the input that takes a shard's gradient of a parameter."""
    return f"{parameter}/gradient/{shard}"


def add_up(op: Emitter, parameters: Sequence[ir.Value], shards: int) -> dict[ir.Value, ir.Value]:
    """Emits each parameter's gradient: the sum of those that the shards give."""
    found = {}
    for parameter in parameters:
        assert parameter.shape is not None
        names = [gradient_input(str(parameter.name), shard) for shard in range(shards)]
        found[parameter] = op.Sum(*(float_input(op, name, parameter.shape) for name in names))
    return found
