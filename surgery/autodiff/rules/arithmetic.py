"""Gradients of arithmetic, each summed over the axes along which its operand was broadcast."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, no_gradient, rule
from surgery.autodiff.rules.activation import indicator, like

__all__: list[str] = []

# Steps: the derivative is zero wherever there is one.
no_gradient("Ceil", "Floor", "Round", "Sign")


@rule("Add", "Sum")
def add(c: Context) -> Gradients:
    return [c.unbroadcast(c.dy, c.x(i)) if c.wants(i) else None for i in range(len(c.node.inputs))]


@rule("Mean")
def mean(c: Context) -> Gradients:
    count = len(c.node.inputs)
    share = c.op.Mul(c.dy, like(c, 1 / count))
    return [c.unbroadcast(share, c.x(i)) if c.wants(i) else None for i in range(count)]


@rule("Sub")
def sub(c: Context) -> Gradients:
    return [
        c.unbroadcast(c.dy, c.x(0)) if c.wants(0) else None,
        c.op.Neg(c.unbroadcast(c.dy, c.x(1))) if c.wants(1) else None,
    ]


@rule("Mul")
def mul(c: Context) -> Gradients:
    return [c.unbroadcast(c.op.Mul(c.dy, c.x(1 - i)), c.x(i)) if c.wants(i) else None for i in (0, 1)]


@rule("Div")
def div(c: Context) -> Gradients:
    """∂(a/b)/∂b = −(a/b)/b."""
    share = c.op.Div(c.dy, c.x(1))
    return [
        c.unbroadcast(share, c.x(0)) if c.wants(0) else None,
        c.op.Neg(c.unbroadcast(c.op.Mul(share, c.y()), c.x(1))) if c.wants(1) else None,
    ]


@rule("Mod")
def mod(c: Context) -> Gradients:
    """a − b · trunc(a/b), of floats (`fmod` is 1)."""
    db = None
    if c.wants(1):
        quotient = c.op.Div(c.x(0), c.x(1))
        whole = c.op.Mul(c.op.Sign(quotient), c.op.Floor(c.op.Abs(quotient)))
        db = c.op.Neg(c.unbroadcast(c.op.Mul(c.dy, whole), c.x(1)))
    return [c.unbroadcast(c.dy, c.x(0)) if c.wants(0) else None, db]


@rule("Pow")
def power(c: Context) -> Gradients:
    """∂xᵉ/∂x = e xᵉ⁻¹, and 0 for e = 0 even at x = 0; ∂xᵉ/∂e = xᵉ ln x, and 0 where x = 0 ≤ e (as PyTorch has it)."""
    op, x, e = c.op, c.x(0), c.x(1)
    if e.dtype != x.dtype:
        e = op.CastLike(e, x)
    dx = de = None
    if c.wants(0):
        number = c.constant_of(1)
        if number is not None and number.size == 1:
            dx = _constant_power(c, float(number.item()))
        else:
            zero = op.Equal(e, like(c, 0))
            slope = op.Mul(e, op.Pow(x, op.Sub(e, like(c, 1))))
            dx = op.Mul(c.dy, op.Where(zero, like(c, 0), slope))
        dx = c.unbroadcast(dx, x)
    if c.wants(1):
        flat = op.And(op.Equal(x, like(c, 0)), op.GreaterOrEqual(e, like(c, 0)))
        slope = op.Where(flat, like(c, 0), op.Mul(c.y(), op.Log(x)))
        de = c.unbroadcast(op.Mul(c.dy, slope), c.x(1))
    return [dx, de]


def _constant_power(c: Context, e: float) -> ir.Value:
    op, x = c.op, c.x()
    if e == 0:
        return op.Mul(c.dy, op.Mul(c.y(), like(c, 0)))
    if e == 1:
        return c.dy
    if e == 0.5:
        return op.Div(op.Mul(c.dy, like(c, 0.5)), c.y())
    slope = x if e == 2 else op.Pow(x, like(c, e - 1))
    return op.Mul(op.Mul(c.dy, like(c, e)), slope)


@rule("Max", "Min")
def extreme(c: Context) -> Gradients:
    """Goes to the operand that was taken; in equal shares where several were."""
    op, operands = c.op, [c.x(i) for i in range(len(c.node.inputs))]
    if len(operands) == 1:
        return [c.dy]
    taken = [indicator(c, op.Equal(x, c.y())) for x in operands]
    share = op.Div(c.dy, op.Sum(*taken))
    return [
        c.unbroadcast(op.Mul(share, t), x) if c.wants(i) else None
        for i, (x, t) in enumerate(zip(operands, taken, strict=True))
    ]


@rule("Where")
def where(c: Context) -> Gradients:
    op, zero = c.op, like(c, 0)
    return [
        None,
        c.unbroadcast(op.Where(c.x(0), c.dy, zero), c.x(1)) if c.wants(1) else None,
        c.unbroadcast(op.Where(c.x(0), zero, c.dy), c.x(2)) if c.wants(2) else None,
    ]


@rule("Identity", "Cast", "CastLike")
def identity(c: Context) -> Gradients:
    same = c.x().dtype == c.dy.dtype or c.x().dtype is None
    return [c.dy if same else c.op.Cast(c.dy, to=int(c.x().dtype or 1))]


def _elementwise(op_type: str, gradient: Callable[[Context], ir.Value]) -> None:
    """Registers the rule of a function of one number."""

    def function(c: Context) -> Gradients:
        return [gradient(c)]

    rule(op_type)(function)


def _one_plus_square(c: Context, value: ir.Value) -> ir.Value:
    return c.op.Add(like(c, 1), c.op.Mul(value, value))


def _one_minus_square(c: Context, value: ir.Value) -> ir.Value:
    return c.op.Sub(like(c, 1), c.op.Mul(value, value))


_elementwise("Neg", lambda c: c.op.Neg(c.dy))
_elementwise("Abs", lambda c: c.op.Mul(c.dy, c.op.Sign(c.x())))
_elementwise("Reciprocal", lambda c: c.op.Neg(c.op.Mul(c.dy, c.op.Mul(c.y(), c.y()))))
_elementwise("Sqrt", lambda c: c.op.Div(c.op.Mul(c.dy, like(c, 0.5)), c.y()))
_elementwise("Exp", lambda c: c.op.Mul(c.dy, c.y()))
_elementwise("Log", lambda c: c.op.Div(c.dy, c.x()))
_elementwise("Sin", lambda c: c.op.Mul(c.dy, c.op.Cos(c.x())))
_elementwise("Cos", lambda c: c.op.Neg(c.op.Mul(c.dy, c.op.Sin(c.x()))))
_elementwise("Tan", lambda c: c.op.Mul(c.dy, _one_plus_square(c, c.y())))
_elementwise("Asin", lambda c: c.op.Div(c.dy, c.op.Sqrt(_one_minus_square(c, c.x()))))
_elementwise("Acos", lambda c: c.op.Neg(c.op.Div(c.dy, c.op.Sqrt(_one_minus_square(c, c.x())))))
_elementwise("Atan", lambda c: c.op.Div(c.dy, _one_plus_square(c, c.x())))
_elementwise("Sinh", lambda c: c.op.Mul(c.dy, c.op.Cosh(c.x())))
_elementwise("Cosh", lambda c: c.op.Mul(c.dy, c.op.Sinh(c.x())))
_elementwise("Asinh", lambda c: c.op.Div(c.dy, c.op.Sqrt(_one_plus_square(c, c.x()))))
_elementwise("Acosh", lambda c: c.op.Div(c.dy, c.op.Sqrt(c.op.Neg(_one_minus_square(c, c.x())))))
_elementwise("Atanh", lambda c: c.op.Div(c.dy, _one_minus_square(c, c.x())))
