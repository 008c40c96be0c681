"""Make a hidden layer wider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import NonNegativeInt

from surgery.errors import SurgeryError
from surgery.io import infer_shapes
from surgery.layers import Layer, parameter_of
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.copying import Copies, Copying
from surgery.passes.editing import forget_shapes
from surgery.passes.initializers import Units
from surgery.selectors import Selector, select

__all__ = ["Widen"]


@pass_dataclass
class Widen(Pass):
    """Gives hidden layers more units; the network computes the same as before (Net2Wider; Chen et al. 2016, section
    2.2).

    The new units are copies of units drawn at random, and the weights of whatever reads them are divided among a unit
    and its copies: in unequal shares, so that each gets another gradient and they part in training, where the paper
    adds noise. Between the layer and those that read it may be BatchNormalization, activations, pooling, dropout,
    Flatten, Concat and depthwise convolutions. Idempotent.

    Attributes:
        layers: Which layers: Conv, Gemm or MatMul.
        units: How many units they are to have.
        seed: Of the draws.
    """

    shorthand: ClassVar[str | None] = None

    layers: Selector
    units: Units
    seed: NonNegativeInt = 0

    def edit(self, model: ir.Model) -> Iterator[Change]:
        for number, layer in enumerate(select(model, self.layers)):
            axis, count = _units(layer)
            if count == self.units:
                continue
            if count > self.units:
                raise SurgeryError(f"widen: layer {layer.name!r} has {count} units already, more than {self.units}")
            rng = np.random.default_rng([self.seed, number])
            source = np.concatenate([np.arange(count), rng.integers(0, count, self.units - count)])
            weight = rng.uniform(0.5, 1.5, self.units)
            share = weight / np.bincount(source, weight, count)[source]
            copying = Copying(layer)
            copies = Copies(source, share, axis)
            _copy_units(layer, copying, copies)
            copying.follow(layer.output, copies)
            copying.make()
            forget_shapes(layer.node.outputs)
            infer_shapes(model)  # the next one asks for them
            yield Change(layer.name, f"{self.units} units instead of {count}: {self.units - count} copies")
            for reader in copying.readers:
                yield Change(reader, f"weights for the copies of {layer.name}'s units")


def _units(layer: Layer) -> tuple[int, int]:
    """The axis of the layer's output that its units lie along, and how many there are."""
    shape = layer.output.shape
    weight = parameter_of(layer.node.inputs[1]) if len(layer.node.inputs) > 1 else None
    if layer.op_type not in ("Conv", "Gemm", "MatMul") or weight is None:
        raise SurgeryError(f"widen: layer {layer.name!r} is no Conv, Gemm or MatMul with weights of its own")
    if layer.node.attributes.get_int("group", 1) != 1:
        raise SurgeryError(f"widen: layer {layer.name!r} is a convolution of several groups")
    axis = 1 if layer.op_type == "Conv" or shape is None else len(shape) - 1
    count = shape[axis] if shape is not None and len(shape) > axis else None
    if not isinstance(count, int):
        raise SurgeryError(f"widen: the number of units of layer {layer.name!r} is not known")
    return axis, count


def _copy_units(layer: Layer, copying: Copying, copies: Copies) -> None:
    """Has the rows of the layer's own weights and biases copied."""
    node, weight = layer.node, layer.node.inputs[1]
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 2
    rows_first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    copying.repeat(weight, 0 if rows_first else rank - 1, copies)
    bias = layer.parameters.get("bias")
    if bias is None or bias.shape is None:
        return
    dims = bias.shape.numpy()
    axis = next((i for i, d in enumerate(dims) if d > 1), None)
    if axis is not None:
        copying.repeat(bias, axis, copies)
