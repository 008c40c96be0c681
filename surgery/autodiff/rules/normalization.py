"""Gradients of normalization.

All of them normalize by statistics of x over some axes, x̂ = (x − μ) / σ, whose gradient is
dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / σ (Ioffe and Szegedy 2015, Batch Normalization, section 3).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule

__all__: list[str] = []


def _by_channel(c: Context, value: ir.Value) -> ir.Value:
    """[C] as [C, 1, …], to broadcast over [N, C, …]."""
    rank = c.rank(c.x())
    return value if rank == 2 else c.op.Reshape(value, np.array([-1] + [1] * (rank - 2)))


@rule("BatchNormalization")
def batch_normalization(c: Context) -> Gradients:
    """By its own statistics (training_mode 1) or by those it is given: then dx = dy · scale / σ."""
    return _by_batch(c) if c.attr("training_mode", 0) else _by_running(c)


def _by_running(c: Context) -> Gradients:
    op, x, dy, (scale, mean, var) = c.op, c.x(), c.dy, (c.x(i) for i in (1, 3, 4))
    axes = np.array([0, *range(2, c.rank(x))])
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, c.attr("epsilon", 1e-5))))
    factor = op.Mul(scale, inverse)
    dx = op.Mul(dy, _by_channel(c, factor)) if c.wants(0) else None
    dscale = dbias = dmean = dvar = None
    if c.wants(2) or c.wants(3):
        dbias = op.ReduceSum(dy, axes, keepdims=0)
        dmean = op.Neg(op.Mul(dbias, factor)) if c.wants(3) else None
    if c.wants(1) or c.wants(4):
        centered = op.Sub(x, _by_channel(c, mean))
        dscale = op.Mul(op.ReduceSum(op.Mul(dy, centered), axes, keepdims=0), inverse)
        dvar = op.Mul(op.Mul(dscale, factor), op.Mul(inverse, -0.5)) if c.wants(4) else None
    return [dx, dscale, dbias, dmean, dvar]


def _by_batch(c: Context) -> Gradients:
    """By the batch's own statistics; outputs 1 and 2 are momentum · running + (1 − momentum) · the batch's."""
    op, x, scale = c.op, c.x(), c.x(1)
    axes = [0, *range(2, c.rank(x))]
    momentum = c.attr("momentum", 0.9)
    dscale = dbias = dx = None
    dmean, dvar = c.dy_of(1), c.dy_of(2)
    centered = op.Sub(x, c.reduce("ReduceMean", x, axes))
    if c.dy_of(0) is not None:
        variance = c.reduce("ReduceMean", op.Mul(centered, centered), axes, keepdims=False)
        inverse = op.Reciprocal(op.Sqrt(op.Add(variance, c.attr("epsilon", 1e-5))))
        dbias = op.ReduceSum(c.dy, op.constant(axes), keepdims=0)
        dscale = op.Mul(op.ReduceSum(op.Mul(c.dy, centered), op.constant(axes), keepdims=0), inverse)
    if c.wants(0):
        count = op.Cast(op.Div(op.Size(x), op.Size(scale)), to=int(x.dtype or ir.DataType.FLOAT))
        terms = []
        if dscale is not None and dbias is not None:
            factor = op.Mul(scale, inverse)
            terms.append(op.Mul(c.dy, _by_channel(c, factor)))
            share = op.Neg(op.Div(factor, count))
            of_mean, of_centered = op.Mul(share, dbias), op.Mul(op.Mul(share, dscale), inverse)
            terms.append(op.Mul(centered, _by_channel(c, of_centered)))
            terms.append(_by_channel(c, of_mean))
        if dmean is not None:
            terms.append(_by_channel(c, op.Div(op.Mul(dmean, 1 - momentum), count)))
        if dvar is not None:
            share = op.Div(op.Mul(dvar, 2 * (1 - momentum)), count)
            terms.append(op.Mul(centered, _by_channel(c, share)))
        dx = _total(c, terms)
    through = [op.Mul(d, momentum) if d is not None and c.wants(i) else None for d, i in ((dmean, 3), (dvar, 4))]
    return [dx, dscale if c.wants(1) else None, dbias if c.wants(2) else None, *through]


def _total(c: Context, terms: list[ir.Value]) -> ir.Value:
    total = terms[0]
    for term in terms[1:]:
        total = c.op.Add(total, term)
    return total
