"""L1 and L2 regularization of some layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import onnx_ir as ir
from pydantic import NonNegativeFloat

from surgery.errors import SurgeryError
from surgery.layers import STATISTICS
from surgery.marks import set_marks
from surgery.passes.base import Change, Pass, given, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["Regularize"]


@pass_dataclass
class Regularize(Pass):
    """Regularizes some layers by themselves, besides the training's `weight_decay`: the gradient of
    l1·‖w‖₁ + ½·l2·‖w‖² is added to the loss's. Idempotent; 0 ends it.

    Attributes:
        layers: Which layers; those of them that have no weights are left as they are.
        l1: As Keras' ``L1(l1)``.
        l2: As Keras' ``L2(l2 / 2)``.
        bias: The biases as well.
    """

    together: ClassVar[dict[str, Any]] = {"anyOf": [given("l1"), given("l2")]}

    layers: Selector
    l1: NonNegativeFloat | None = None
    l2: NonNegativeFloat | None = None
    bias: bool = False

    def edit(self, model: ir.Model) -> Iterator[Change]:
        changes = {name: value for name, value in (("l1", self.l1), ("l2", self.l2)) if value is not None}
        if not changes:
            raise SurgeryError("regularize: says neither l1 nor l2")
        weighted = [layer for layer in select(model, self.layers) if "weight" in layer.parameters]
        if not weighted:
            raise SurgeryError(f"regularize: none of the selected layers has weights ({self.layers!r})")
        words = ", ".join(f"{name} {value:g}" for name, value in changes.items())
        for layer in weighted:
            roles = [r for r in layer.parameters if r not in STATISTICS and (self.bias or "bias" not in r)]
            changed = [role for role in roles if set_marks(layer.parameters[role], **changes)]
            if changed:
                yield Change(layer.name, f"{words} ({', '.join(changed)})")
