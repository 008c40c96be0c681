"""Bound the norm of each unit's weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir
from pydantic import PositiveFloat

from surgery.errors import SurgeryError
from surgery.marks import Constraint, set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.units import incoming_weights
from surgery.selectors import Selector, select

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
        weighted = [layer for layer in select(model, self.layers) if "weight" in layer.parameters]
        if not weighted:
            raise SurgeryError(f"max_norm: none of the selected layers has weights ({self.layers!r})")
        bounded: dict[ir.Value, tuple[int, ...]] = {}
        for layer in weighted:
            for weight, axes in incoming_weights(layer):
                if bounded.setdefault(weight, axes) != axes:
                    raise SurgeryError(
                        f"layers share the weight {weight.name!r} but not its units' axis; leave {layer.name!r} out"
                    )
                if set_marks(weight, constraint=Constraint("max_norm", self.value, axes)):
                    yield Change(layer.name, f"max_norm {self.value:g} over axes {', '.join(map(str, axes))} of weight")
