"""Give layers normalizations again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import PositiveInt

from surgery.errors import SurgeryError
from surgery.layers import Layer
from surgery.marks import marks, set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.dense import UNIT_OPS, layer_stem, read_units
from surgery.passes.editing import bypass, drop_unused, insert_behind, new_parameter, opset, prune, register
from surgery.selectors import Selector, select

__all__ = ["Unfold"]

_EPSILON = 1e-5
_BATCH = 16  # examples at a time, where statistics are measured


@pass_dataclass
class Unfold(Pass):
    """Puts BatchNormalizations behind convolutions or fully connected layers, the inverse of fold_batchnorm: exporters
    fold them into the weights, which then cannot be trained as the network was (Ioffe and Szegedy 2015).

    Outputs stay the same; a layer's bias becomes its normalization's. With `data`, mean and variance are those of the
    layer's output on examples, so that training, which goes by the statistics of each batch, starts from the same
    function too; without, they are 0 and 1, which is for normalizations that stay frozen. That of a frozen layer is
    frozen too. Layers that have a BatchNormalization are left as they are. Idempotent.

    Attributes:
        layers: Which layers; operators without weights among them are left as they are.
        data: A .npz file or a folder of images to measure on.
        examples: How many of them, spread evenly: folders and files often have one class after the other.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector
    data: str | None = None
    examples: PositiveInt = 256

    def edit(self, model: ir.Model) -> Iterator[Change]:
        chosen = [layer for layer in select(model, self.layers) if _takes_one(layer)]
        if opset(model) < 11 and any(layer.op_type == "Gemm" for layer in chosen):
            raise SurgeryError(
                f"unfold: in operator set {opset(model)} a Gemm must have a bias; convert the model first"
            )
        measured = _measure(model, chosen, self.data, self.examples) if self.data and chosen else {}
        for layer in chosen:
            mean, variance = measured.get(layer.node, (None, None))
            _unfold(layer, mean, variance)
            on = f", measured on {self.data}" if measured else ""
            yield Change(layer.name, f"BatchNormalization behind it{on}")


def _takes_one(layer: Layer) -> bool:
    output = layer.output
    if layer.op_type not in UNIT_OPS or "weight" not in layer.parameters:
        return False
    if any(user.op_type == "BatchNormalization" for user in output.consumers()):
        return False
    return layer.op_type != "MatMul" or len(output.shape or ()) == 2  # else units are not axis 1


def _unfold(layer: Layer, mean: np.ndarray | None, variance: np.ndarray | None) -> None:
    graph, node = layer.node.graph, layer.node
    assert isinstance(graph, ir.Graph)
    rows, bias = read_units(layer)
    dtype = layer.parameters["weight"].dtype or ir.DataType.FLOAT
    shift = bias if mean is None else mean
    inner = np.zeros(len(rows)) if mean is None else mean - bias  # the mean without the bias
    spread = np.full(len(rows), 1 - _EPSILON) if variance is None else variance
    old = layer.parameters.get("bias")
    arrays = {"scale": np.sqrt(spread + _EPSILON), "bias": shift, "mean": inner, "var": spread}
    values = [new_parameter(array, dtype, old if role == "bias" else None) for role, array in arrays.items()]
    for role, value in zip(arrays, values, strict=True):
        register(graph, value, f"{layer_stem(layer)}.norm.{role}")
        if marks(layer.parameters["weight"]).frozen:
            set_marks(value, trainable=False)
    if len(layer.nodes) > 1:  # its bias is an Add of its own
        add = layer.nodes[1]
        bypass(add, index=list(add.inputs).index(node.outputs[0]))
    elif old is not None:
        node.resize_inputs(2)
        drop_unused(graph, [old])
    insert_behind(
        node.outputs[0],
        "BatchNormalization",
        f"{layer.name}/norm",
        inputs=values,
        attributes={"epsilon": _EPSILON},
    )


def _measure(
    model: ir.Model, layers: Sequence[Layer], data: str, examples: int
) -> dict[ir.Node, tuple[np.ndarray, np.ndarray]]:
    """The mean and the variance of each layer's output, by unit, over examples and places."""
    from surgery.data import open_data  # late: data are not needed to operate
    from surgery.runtime import providers, session

    names = [str(layer.output.name) for layer in layers]
    probe = model.clone()
    outputs = ir.convenience.create_value_mapping(probe.graph)
    probe.graph.outputs[:] = [outputs[name] for name in names]
    prune(probe)
    run = session(probe, providers("cpu"))
    source = open_data(Path(data), model)[0]
    batch_size = _fixed_batch(probe) or _BATCH
    count = min(examples, len(source))
    if _fixed_batch(probe):
        count -= count % batch_size
    if not count:
        raise SurgeryError(f"unfold: the model takes {batch_size} examples at a time, which {data} has not")
    source = source.subset(np.linspace(0, len(source) - 1, count).round().astype(int))
    sums: list[np.ndarray | float] = [0.0] * len(names)
    squares: list[np.ndarray | float] = [0.0] * len(names)
    counts = [0] * len(names)
    wanted = [str(v.name) for v in probe.graph.inputs]
    for inputs, *_ in source.batches(batch_size):
        batch = inputs if isinstance(inputs, dict) else {wanted[0]: inputs}
        for i, array in enumerate(run.run(names, {name: batch[name] for name in wanted})):
            units = np.moveaxis(array.astype(np.float64), 1, 0).reshape(array.shape[1], -1)
            sums[i] = sums[i] + units.sum(1)
            squares[i] = squares[i] + (units**2).sum(1)
            counts[i] += units.shape[1]
    found = {}
    for layer, total, square, count in zip(layers, sums, squares, counts, strict=True):
        mean = np.asarray(total) / count
        found[layer.node] = mean, np.maximum(np.asarray(square) / count - mean**2, 0)
    return found


def _fixed_batch(model: ir.Model) -> int | None:
    """How many examples the model takes, where it takes no other number of them."""
    sizes = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    return next((size for size in sizes if isinstance(size, int)), None)
