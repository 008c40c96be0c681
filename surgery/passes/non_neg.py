"""Keep weights from becoming negative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.marks import Constraint, set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["NonNeg"]


@pass_dataclass
class NonNeg(Pass):
    """Makes weights that an update turned negative 0 (Keras' ``NonNeg``). Idempotent.

    Attributes:
        layers: Which layers; those of them that have no weights are left as they are.
        bias: The biases as well.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector
    bias: bool = False

    def edit(self, model: ir.Model) -> Iterator[Change]:
        weighted = [layer for layer in select(model, self.layers) if "weight" in layer.parameters]
        if not weighted:
            raise SurgeryError(f"non_neg: none of the selected layers has weights ({self.layers!r})")
        for layer in weighted:
            roles = [role for role in layer.parameters if "weight" in role or (self.bias and "bias" in role)]
            changed = [r for r in roles if set_marks(layer.parameters[r], constraint=Constraint("non_neg"))]
            if changed:
                yield Change(layer.name, f"non_neg ({', '.join(changed)})")
