"""Learning rates of their own for some layers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from pydantic import NonNegativeFloat

from surgery.errors import SurgeryError
from surgery.layers import STATISTICS
from surgery.marks import set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["LearningRate"]


@pass_dataclass
class LearningRate(Pass):
    """Multiplies the learning rate of some layers (Caffe's ``lr_mult``). Idempotent: it does not multiply again.

    Attributes:
        layers: Which layers; those of them that have no parameters are left as they are.
        multiplier: Of the learning rate; 0 leaves the layer as it is, like `freeze`, running statistics included.
        bias: Of the learning rate of biases, where that is another one (Caffe's networks use twice the weights').
    """

    layers: Selector
    multiplier: NonNegativeFloat
    bias: NonNegativeFloat | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        owners = [layer for layer in select(model, self.layers) if layer.parameters]
        if not owners:
            raise SurgeryError(f"learning_rate: none of the selected layers has parameters ({self.layers!r})")
        for layer in owners:
            changed = []
            for role, parameter in layer.parameters.items():
                rate = self.bias if role == "bias" and self.bias is not None else self.multiplier
                if role in STATISTICS:  # no gradient changes them: they follow the batches or stay
                    rate = float(rate != 0)
                if set_marks(parameter, learning_rate=rate) and role not in STATISTICS:
                    changed.append(f"{role} × {rate:g}")
            if changed:
                yield Change(layer.name, "learning rate of " + ", ".join(changed))
