"""Keep the norm of each unit's weights between two bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import onnx_ir as ir
from pydantic import Field, NonNegativeFloat, PositiveFloat

from surgery.errors import SurgeryError
from surgery.marks import Constraint
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.constraining import constrain
from surgery.selectors import Selector

__all__ = ["MinMaxNorm"]


@pass_dataclass
class MinMaxNorm(Pass):
    """Keeps the L2 norm of each unit's incoming weights between two values, after every update (Keras' ``MinMaxNorm``
    with the axis that fits the layer). Biases are left alone. Idempotent.

    Attributes:
        minimum: The lower bound.
        maximum: The upper bound.
        layers: Which layers; those of them that have no weights are left as they are.
        rate: Which share of the way to the bound an update goes.
    """

    minimum: NonNegativeFloat
    maximum: PositiveFloat
    layers: Selector = "all"
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0

    def edit(self, model: ir.Model) -> Iterator[Change]:
        if self.minimum > self.maximum:
            raise SurgeryError(f"min_max_norm: no norm is between {self.minimum:g} and {self.maximum:g}")

        def make(axes: tuple[int, ...]) -> Constraint:
            return Constraint("min_max_norm", self.maximum, axes, self.minimum, self.rate)

        yield from constrain(model, "min_max_norm", self.layers, make)
