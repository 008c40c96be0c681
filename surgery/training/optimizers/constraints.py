"""Constraints: the point of a set that is nearest to a parameter, or what Keras takes for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter
from surgery.marks import Constraint

__all__ = ["project"]

_SMALLEST = 1e-30  # of a squared norm, which is divided by


def project(op: Emitter, value: ir.Value, constraint: Constraint) -> ir.Value:
    """Emits `value` brought within `constraint`, whose docstring has the formulas."""
    one = op.constant(np.float32(1))
    if constraint.type == "non_neg":
        return op.Relu(value)
    squares = op.ReduceSum(op.Mul(value, value), op.constant(list(constraint.axes)), keepdims=1)
    norm = op.Sqrt(op.Max(squares, op.constant(np.float32(_SMALLEST))))
    if constraint.type == "max_norm":
        return op.Mul(value, op.Min(op.Div(op.constant(np.float32(constraint.value)), norm), one))
    if constraint.type == "unit_norm":
        return op.Div(value, norm)
    low, high = (op.constant(np.float32(bound)) for bound in (constraint.minimum, constraint.value))
    factor = op.Div(op.Min(op.Max(norm, low), high), norm)
    if constraint.rate != 1:
        rate = constraint.rate
        factor = op.Add(op.Mul(factor, rate), op.constant(np.float32(1 - rate)))
    return op.Mul(value, factor)
