"""Keep the norm of each unit's weights at one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from surgery.marks import Constraint
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.constraining import constrain
from surgery.selectors import Selector

__all__ = ["UnitNorm"]


@pass_dataclass
class UnitNorm(Pass):
    """Brings the L2 norm of each unit's incoming weights to 1 after every update (Keras' ``UnitNorm`` with the axis
    that fits the layer). Biases are left alone. Idempotent.

    Attributes:
        layers: Which layers; those of them that have no weights are left as they are.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector

    def edit(self, model: ir.Model) -> Iterator[Change]:
        yield from constrain(model, "unit_norm", self.layers, lambda axes: Constraint("unit_norm", axes=axes))
