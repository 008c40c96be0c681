"""Gradients of operators that move elements without changing them, and operators that stop a gradient."""

from __future__ import annotations

from surgery.autodiff.backward import Context, Gradients, no_gradient, rule

__all__: list[str] = []

no_gradient("Shape", "Size", "Constant", "ConstantOfShape", "Range", "NonZero", "ArgMax", "ArgMin", "OneHot", "EyeLike")
no_gradient("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf")
no_gradient("Reshape", "Dropout", "Expand", inputs=[1, 2])


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(c: Context) -> Gradients:
    return [c.op.Reshape(c.dy, c.shape_of(c.x()))]


@rule("Transpose")
def transpose(c: Context) -> Gradients:
    rank = c.rank(c.x())
    perm = c.attr("perm") or list(reversed(range(rank)))
    return [c.op.Transpose(c.dy, perm=[perm.index(i) for i in range(rank)])]
