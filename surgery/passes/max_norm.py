"""Bound the norm of each unit's weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir
from pydantic import PositiveFloat

from surgery.marks import Constraint
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.constraining import constrain
from surgery.selectors import Selector

__all__ = ["MaxNorm"]


@pass_dataclass
class MaxNorm(Pass):
    """Keeps the L2 norm of each unit's incoming weights at or below a value, after every update (Srivastava et al.
    2014, section 5.1; Keras' ``MaxNorm`` with the axis that fits the layer). Biases are not bounded. Idempotent.

    Attributes:
        value: The bound; the paper uses 3 to 4.
        layers: Which layers; those of them that have no weights are left as they are.
    """

    shorthand: ClassVar[str | None] = "value"

    value: PositiveFloat
    layers: Selector = "all"

    def edit(self, model: ir.Model) -> Iterator[Change]:
        yield from constrain(model, "max_norm", self.layers, lambda axes: Constraint("max_norm", self.value, axes))
