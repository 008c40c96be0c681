"""Fold normalizations into the layers before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer, layers
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.dense import UNIT_OPS, layer_stem, read_units, write_units
from surgery.passes.editing import bypass, constant_of
from surgery.selectors import Selector, select

__all__ = ["FoldBatchnorm"]


@pass_dataclass
class FoldBatchnorm(Pass):
    """Folds BatchNormalizations into the convolutions or fully connected layers right before them, whose weights and
    biases take up their scale and shift (Ioffe and Szegedy 2015, section 3.1). Outputs stay the same; what is folded
    can no longer be trained as a normalization. Idempotent.

    Attributes:
        layers: Which layers; those of them that are no normalization behind such a layer are left as they are.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector = "all"

    def edit(self, model: ir.Model) -> Iterator[Change]:
        selected = {layer.node for layer in select(model, self.layers) if layer.op_type == "BatchNormalization"}
        for layer in layers(model):
            users = layer.output.consumers()
            if (
                layer.op_type in UNIT_OPS
                and "weight" in layer.parameters
                and len(users) == 1
                and users[0] in selected
                and not layer.output.is_graph_output()
                and (layer.op_type != "MatMul" or len(layer.output.shape or ()) == 2)  # else units are not axis 1
            ):
                _fold(layer, users[0])
                yield Change(str(users[0].name), f"folded into {layer.name}")


def _fold(layer: Layer, norm: ir.Node) -> None:
    arrays = [constant_of(v) for v in norm.inputs[1:5]]
    if any(a is None for a in arrays) or norm.attributes.get_int("training_mode", 0) == 1:
        raise SurgeryError(f"BatchNormalization {norm.name!r} uses the statistics of each batch; it cannot be folded")
    scale, shift, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    rows, bias = read_units(layer)
    rows *= factor.reshape(-1, *[1] * (rows.ndim - 1))
    write_units(layer, rows, (bias - mean) * factor + shift, layer_stem(layer), keep_marks=True)
    bypass(norm)
