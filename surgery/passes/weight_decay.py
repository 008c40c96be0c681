"""Weight decay of their own for some layers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from pydantic import NonNegativeFloat

from surgery.errors import SurgeryError
from surgery.layers import STATISTICS
from surgery.marks import set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["WeightDecay"]


@pass_dataclass
class WeightDecay(Pass):
    """Multiplies the weight decay of some layers (Caffe's ``decay_mult``). Idempotent: it does not multiply again.

    Attributes:
        layers: Which layers; those of them that have no parameters are left as they are.
        multiplier: Of the training's `weight_decay`; 0 keeps it off these layers.
        bias: Of that of biases, where it is another one: usually 0.
    """

    layers: Selector
    multiplier: NonNegativeFloat = 1.0
    bias: NonNegativeFloat | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        owners = [layer for layer in select(model, self.layers) if layer.parameters]
        if not owners:
            raise SurgeryError(f"weight_decay: none of the selected layers has parameters ({self.layers!r})")
        for layer in owners:
            changed = []
            for role, parameter in layer.parameters.items():
                if role in STATISTICS:
                    continue
                decay = self.bias if role == "bias" and self.bias is not None else self.multiplier
                if set_marks(parameter, decay=decay):
                    changed.append(f"{role} × {decay:g}")
            if changed:
                yield Change(layer.name, "weight decay of " + ", ".join(changed))
