"""Why a value has no gradient."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from surgery.autodiff.backward import FLOATS, differentiable
from surgery.layers import ancestors

__all__ = ["why_no_gradient"]


def why_no_gradient(value: ir.Value, of: Iterable[ir.Value]) -> str:
    """Says in words why the values `of` have no gradient with respect to `value`, and what to do about it."""
    ends = list(of)
    names = ", ".join(repr(v.name) for v in ends)
    needed = ancestors(ends)
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        for node, index in current.uses():
            if node not in needed:
                continue
            passing = [o for o in node.outputs if o.dtype is None or o.dtype in FLOATS]
            if not differentiable(node, index) or not passing:
                return (
                    f"{value.name!r} would get no gradient: {node.op_type} {node.name!r}, between it and {names}, has "
                    "no derivative; freeze what comes before it or cut it off"
                )
            stack.extend(o for o in passing if o not in seen)
            seen.update(passing)
    return f"{names} does not depend on {value.name!r}; freeze it or leave it out"
