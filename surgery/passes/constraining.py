"""What the passes that constrain weights share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.marks import Constraint, set_marks
from surgery.passes.base import Change
from surgery.passes.units import incoming_weights
from surgery.selectors import Selector, select

__all__ = ["constrain"]


def constrain(
    model: ir.Model, name: str, layers: Selector, make: Callable[[tuple[int, ...]], Constraint]
) -> Iterator[Change]:
    """Puts the constraint that `make` makes, of the axes of one unit's incoming weights, on the layers' weights.

    Args:
        model: The model.
        name: The pass, for messages.
        layers: Which layers; those of them that have no weights are left as they are.
        make: Makes the constraint.
    """
    weighted = [layer for layer in select(model, layers) if "weight" in layer.parameters]
    if not weighted:
        raise SurgeryError(f"{name}: none of the selected layers has weights ({layers!r})")
    constrained: dict[ir.Value, tuple[int, ...]] = {}
    for layer in weighted:
        for weight, axes in incoming_weights(layer):
            if constrained.setdefault(weight, axes) != axes:
                raise SurgeryError(
                    f"layers share the weight {weight.name!r} but not its units' axis; leave {layer.name!r} out"
                )
            constraint = make(axes)
            if set_marks(weight, constraint=constraint):
                yield Change(layer.name, f"{constraint} over axes {', '.join(map(str, axes))} of weight")
