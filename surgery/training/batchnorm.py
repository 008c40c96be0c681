"""BatchNormalization's statistics, measured on other data than the network was trained on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from surgery import runtime
from surgery.autodiff.opset import raise_opset
from surgery.data import Dataset
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.layers import parameter_of
from surgery.training.forward import free_batch

__all__ = ["reestimated"]

_BATCH = 32


def reestimated(model: ir.Model, data: Dataset, providers: list[str]) -> ir.Model:
    """Returns a copy of `model` whose BatchNormalizations have the means and variances of `data`.

    As in training, each batch is normalized by its own statistics meanwhile, and dropout is off (as PyTorch's
    ``update_bn``; adaptive batch normalization, Li et al. 2017). The means and the variances are those over all
    examples, in double precision: not averages of the batches' variances, which lack what is between batches.

    Raises:
        SurgeryError: The model has no BatchNormalization with statistics of its own.
    """
    model = model.clone()
    probe = model.clone()
    InlinePass()(probe)
    graph = probe.graph
    raise_opset(graph)
    free_batch(graph)
    infer_shapes(probe)
    norms = [n for n in graph if n.op_type == "BatchNormalization" and not n.domain and _names(n)]
    if not norms:
        raise SurgeryError("reestimate_batchnorm: the model has no BatchNormalization with statistics to measure")
    names = [found for node in norms if (found := _names(node)) is not None]
    op = Emitter(graph, "statistics/")
    measured: list[ir.Value] = []
    for node in norms:
        measured += _sums(op, node)
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        node.resize_outputs(3)
        for index in (1, 2):
            node.outputs[index].name = node.outputs[index].name or op.fresh("running")
    graph.outputs[:] = measured
    RemoveUnusedNodesPass()(probe)
    graph.sort()
    probe.ir_version = IR_VERSION
    session = runtime.session(probe, providers)
    outputs, inputs = [str(v.name) for v in graph.outputs], [str(v.name) for v in graph.inputs]
    total = [np.float64(0)] * len(outputs)
    for examples, _ in data.batches(_BATCH):
        given = examples if isinstance(examples, dict) else {inputs[0]: examples}
        found = session.run(outputs, {name: given[name] for name in inputs})
        total = [a + b for a, b in zip(total, found, strict=True)]
    for (mean, var), count, sums, squares in zip(names, total[::3], total[1::3], total[2::3], strict=True):
        average = sums / count
        _set(model, mean, average)
        _set(model, var, np.maximum(squares / count - average**2, 0))
    return model


def _names(node: ir.Node) -> tuple[str, str] | None:
    """The initializers that are its mean and variance."""
    values = [parameter_of(v) for v in node.inputs[3:5]]
    return (str(values[0].name), str(values[1].name)) if None not in values else None  # type: ignore[union-attr]


def _sums(op: Emitter, node: ir.Node) -> list[ir.Value]:
    """Emits how many numbers a channel has, their sums and those of their squares."""
    value = node.inputs[0]
    assert value is not None
    if value.shape is None:
        raise SurgeryError(f"reestimate_batchnorm: the shape of what {node.name!r} reads is not known")
    axes = op.constant([axis for axis in range(len(value.shape)) if axis != 1])
    wide = op.Cast(value, to=int(ir.DataType.DOUBLE))
    sums, squares = (op.ReduceSum(v, axes, keepdims=0) for v in (wide, op.Mul(wide, wide)))
    return [op.Div(op.Size(value), op.Size(sums)), sums, squares]


def _set(model: ir.Model, name: str, array: np.ndarray) -> None:
    value = model.graph.initializers[name]
    dtype = value.dtype or ir.DataType.FLOAT
    value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
