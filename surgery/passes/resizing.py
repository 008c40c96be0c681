"""What passes that change the size of inputs share: propagating it, and shapes that are written into the graph."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from surgery.passes.editing import add_constant, constant_of, drop_unused, forget_shapes

__all__ = ["free_reshapes", "set_shape"]


def set_shape(model: ir.Model, values: dict[ir.Value, ir.Shape]) -> None:
    """Sets the shapes of inputs and forgets all that was inferred from them."""
    free_reshapes(model)
    forget_shapes(values)
    for value, shape in values.items():
        value.shape = shape


def free_reshapes(model: ir.Model) -> None:
    """Rewrites constant Reshapes so that they mean the same for other sizes.

    One that keeps the first dimension says so (0) instead of naming it; one that makes a row of each example leaves
    its length open (-1).
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Reshape" else None
        target = constant_of(node.inputs[1]) if source is not None else None
        if source is None or source.shape is None or target is None or "allowzero" in node.attributes:
            continue
        new = _freed([d if isinstance(d, int) else None for d in source.shape], target.tolist())
        if new != target.tolist():
            old = node.inputs[1]
            node.replace_input_with(1, add_constant(model.graph, np.array(new, np.int64), f"{node.name}.shape"))
            drop_unused(model.graph, [old])


def _freed(before: list[int | None], target: list[int]) -> list[int]:
    if not before or not target:
        return target
    # The first dimension is kept if the target says so, or leaves it open while the others hold a whole example.
    example = _product(before[1:])
    inner = _product([before[i] if d == 0 and i < len(before) else d for i, d in enumerate(target)][1:])
    whole = example is not None and inner == example
    if not (target[0] == 0 or target[0] == before[0] or (target[0] == -1 and whole)):
        return target
    return [0, -1] if len(target) == 2 and whole else [0, *target[1:]]


def _product(dims: list[int | None]) -> int | None:
    """The product of `dims`, None where one is open."""
    known = [d for d in dims if d is not None and d >= 0]
    return math.prod(known) if len(known) == len(dims) else None
