"""Gradients of arithmetic, each summed over the axes along which its operand was broadcast."""

from __future__ import annotations

from surgery.autodiff.backward import Context, Gradients, rule

__all__: list[str] = []


@rule("Add")
def add(c: Context) -> Gradients:
    return [c.unbroadcast(c.dy, c.x(i)) if c.wants(i) else None for i in (0, 1)]


@rule("Sub")
def sub(c: Context) -> Gradients:
    return [
        c.unbroadcast(c.dy, c.x(0)) if c.wants(0) else None,
        c.op.Neg(c.unbroadcast(c.dy, c.x(1))) if c.wants(1) else None,
    ]


@rule("Mul")
def mul(c: Context) -> Gradients:
    return [c.unbroadcast(c.op.Mul(c.dy, c.x(1 - i)), c.x(i)) if c.wants(i) else None for i in (0, 1)]


@rule("Neg")
def neg(c: Context) -> Gradients:
    return [c.op.Neg(c.dy)]


@rule("Identity", "Cast")
def identity(c: Context) -> Gradients:
    same = c.x().dtype == c.dy.dtype or c.x().dtype is None
    return [c.dy if same else c.op.Cast(c.dy, to=int(c.x().dtype or 1))]
