"""Gradients of normalization.

All of them normalize by statistics of x over some axes, x̂ = (x − μ) / σ, whose gradient is
dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / σ (Ioffe and Szegedy 2015, Batch Normalization, section 3).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, fused_rule, rule
from surgery.errors import SurgeryError

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
    momentum, dtype = c.attr("momentum", 0.9), x.dtype or ir.DataType.FLOAT
    dscale = dbias = dx = None
    dmean, dvar = c.dy_of(1), c.dy_of(2)
    mean = c.reduce("ReduceMean", x, axes)
    centered = op.Sub(x, mean)
    count = op.Cast(op.Div(op.Size(x), op.Size(scale)), to=int(dtype))
    # dx = of_dy · dy + of_centered · (x − mean) + offset, each factor one for a channel.
    of_dy = of_centered = offset = None
    if c.dy_of(0) is not None:
        variance = c.reduce("ReduceMean", op.Mul(centered, centered), axes, keepdims=False)
        inverse = op.Reciprocal(op.Sqrt(op.Add(variance, c.attr("epsilon", 1e-5))))
        dbias = op.ReduceSum(c.dy, op.constant(axes), keepdims=0)
        dscale = op.Mul(op.ReduceSum(op.Mul(c.dy, centered), op.constant(axes), keepdims=0), inverse)
        of_dy = op.Mul(scale, inverse)
        share = op.Neg(op.Div(of_dy, count))
        of_centered, offset = op.Mul(op.Mul(share, dscale), inverse), op.Mul(share, dbias)
    if dmean is not None:
        term = op.Div(op.Mul(dmean, 1 - momentum), count)
        offset = term if offset is None else op.Add(offset, term)
    if dvar is not None:
        term = op.Div(op.Mul(dvar, 2 * (1 - momentum)), count)
        of_centered = term if of_centered is None else op.Add(of_centered, term)
    if c.wants(0):
        zero = op.Sub(scale, scale)
        flat, one = op.Reshape(mean, np.array([-1])), op.Add(zero, 1.0)
        # This operator in inference is the cheapest way to write factor · (x − mean) + offset.
        dx = op.BatchNormalization(x, of_centered or zero, offset or zero, flat, one, epsilon=0.0)
        if of_dy is not None:
            dx = op.Add(op.Mul(c.dy, _by_channel(c, of_dy)), dx)
    through = [op.Mul(d, momentum) if d is not None and c.wants(i) else None for d, i in ((dmean, 3), (dvar, 4))]
    return [dx, dscale if c.wants(1) else None, dbias if c.wants(2) else None, *through]


@fused_rule("BatchNormalization")
def batch_normalization_fused(c: Context) -> Gradients:
    """The training build's operators: the first keeps the statistics that the second needs."""
    if not c.attr("training_mode", 0) or c.x().dtype != ir.DataType.FLOAT or c.dy_of(0) is None:
        return NotImplemented
    if c.dy_of(1) is not None or c.dy_of(2) is not None:
        return NotImplemented
    node = c.node
    node.domain, node.op_type = "com.microsoft", "BatchNormInternal"
    c.op.graph.opset_imports.setdefault("com.microsoft", 1)
    mean, inverse = (c.extra_output(i, ir.DataType.FLOAT) for i in (3, 4))
    return c.op.BatchNormalizationGrad(
        c.dy, c.x(), c.x(1), mean, inverse, _domain="com.microsoft", _outputs=3, epsilon=c.attr("epsilon", 1e-5)
    )


def _standardized(c: Context, x: ir.Value, axes: list[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """x̂ = (x − μ) / σ and 1 / σ, by the statistics over `axes`."""
    op = c.op
    centered = op.Sub(x, c.reduce("ReduceMean", x, axes))
    variance = c.reduce("ReduceMean", op.Mul(centered, centered), axes)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return op.Mul(centered, inverse), inverse


def _through(c: Context, gradient: ir.Value, normal: ir.Value, inverse: ir.Value, axes: list[int]) -> ir.Value:
    """dx = (dx̂ − mean(dx̂) − x̂ mean(dx̂ x̂)) / σ."""
    op = c.op
    along = op.Mul(normal, c.reduce("ReduceMean", op.Mul(gradient, normal), axes))
    return op.Mul(op.Sub(op.Sub(gradient, c.reduce("ReduceMean", gradient, axes)), along), inverse)


def _only_first(c: Context) -> None:
    if c.dy_of(1) is not None or c.dy_of(2) is not None:
        raise SurgeryError(f"{c.node.op_type} {c.node.name!r}: no gradient through its statistics; do not use them")


@rule("LayerNormalization")
def layer_normalization(c: Context) -> Gradients:
    _only_first(c)
    op, x, dy, scale = c.op, c.x(), c.dy, c.x(1)
    axes = list(range(c.axis(x), c.rank(x)))
    if x.dtype == ir.DataType.FLOAT and c.attr("stash_type", 1) == 1:
        mean, inverse = (c.extra_output(i, ir.DataType.FLOAT) for i in (1, 2))
        normal = op.Mul(op.Sub(x, mean), inverse)
    else:  # the operator's own statistics would be rounded to float
        normal, inverse = _standardized(c, x, axes, c.attr("epsilon", 1e-5))
    return [
        _through(c, op.Mul(dy, scale), normal, inverse, axes) if c.wants(0) else None,
        c.unbroadcast(op.Mul(dy, normal), scale) if c.wants(1) else None,
        c.unbroadcast(dy, c.x(2)) if c.wants(2) else None,
    ]


@fused_rule("LayerNormalization")
def layer_normalization_fused(c: Context) -> Gradients:
    """The training build's operator, which takes no broadcast scale or bias."""
    _only_first(c)
    x, axis = c.x(), c.axis(c.x())
    normalized = c.dims(x)[axis:]
    whole = None not in normalized and all(c.dims(c.x(i)) == normalized for i in (1, 2) if c.has(i))
    if not whole or x.dtype != ir.DataType.FLOAT or c.attr("stash_type", 1) != 1:
        return NotImplemented
    mean, inverse = (c.extra_output(i, ir.DataType.FLOAT) for i in (1, 2))
    return c.op.LayerNormalizationGrad(c.dy, x, c.x(1), mean, inverse, _domain="com.microsoft", _outputs=3, axis=axis)


@rule("InstanceNormalization")
def instance_normalization(c: Context) -> Gradients:
    op, x, dy, rank = c.op, c.x(), c.dy, c.rank(c.x())
    inner, outer = list(range(2, rank)), np.array([0, *range(2, rank)])
    dx = dscale = None
    if c.wants(0) or c.wants(1):
        normal, inverse = _standardized(c, x, inner, c.attr("epsilon", 1e-5))
        dx = _through(c, op.Mul(dy, _by_channel(c, c.x(1))), normal, inverse, inner) if c.wants(0) else None
        dscale = op.ReduceSum(op.Mul(dy, normal), outer, keepdims=0) if c.wants(1) else None
    return [dx, dscale, op.ReduceSum(dy, outer, keepdims=0) if c.wants(2) else None]


@rule("GroupNormalization")
def group_normalization(c: Context) -> Gradients:
    """Scale and bias are one for each group before operator set 21, for each channel since."""
    op, rank, groups = c.op, c.rank(c.x()), c.attr("num_groups")
    split, shape = np.array([0, groups, -1]), c.shape_of(c.x())
    dy, per_group, axes = c.dy, c.opset < 21, np.array([0, *range(2, rank)])
    if per_group:
        dy, axes = op.Reshape(dy, split), np.array([0, 2])
    dx = dscale = None
    if c.wants(0) or c.wants(1):
        normal, inverse = _standardized(c, op.Reshape(c.x(), split), [2], c.attr("epsilon", 1e-5))
        if c.wants(0):
            if per_group:
                gradient = op.Mul(dy, op.Reshape(c.x(1), np.array([-1, 1])))
            else:
                gradient = op.Reshape(op.Mul(dy, _by_channel(c, c.x(1))), split)
            dx = op.Reshape(_through(c, gradient, normal, inverse, [2]), shape)
        if c.wants(1):
            dscale = op.ReduceSum(op.Mul(dy, normal if per_group else op.Reshape(normal, shape)), axes, keepdims=0)
    return [dx, dscale, op.ReduceSum(dy, axes, keepdims=0) if c.wants(2) else None]


@rule("MeanVarianceNormalization")
def mean_variance_normalization(c: Context) -> Gradients:
    """y = (x − μ) / (σ + 1e-9)."""
    axes = [int(a) for a in c.attr("axes") or [0, 2, 3]]
    normal, inverse = _standardized(c, c.x(), axes, 1e-18)
    return [_through(c, c.dy, normal, inverse, axes)]


@rule("LpNormalization")
def lp_normalization(c: Context) -> Gradients:
    """y = x / n with n = ‖x‖ₚ: dx = (dy − n′ Σ dy y) / n, where n′ is sign(x) for p = 1 and y for p = 2."""
    op, x, axes = c.op, c.x(), [c.axis(c.x())]
    square = c.attr("p", 2) == 2
    norm = op.Max(c.reduce("ReduceL2" if square else "ReduceL1", x, axes), 1e-30)
    inner = op.ReduceSum(op.Mul(c.dy, c.y()), op.constant(axes), keepdims=1)
    return [op.Div(op.Sub(c.dy, op.Mul(c.y() if square else op.Sign(x), inner)), norm)]


@rule("LRN")
def lrn(c: Context) -> Gradients:
    """y = x u^−β with u = k + α/n Σ x² over n channels: dx = dy u^−β − 2αβ/n x Σ dy y / u, by the mirrored window."""
    op, x, size = c.op, c.x(), c.attr("size")
    alpha, beta, bias = c.attr("alpha", 1e-4), c.attr("beta", 0.75), c.attr("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    shape = c.shape_of(x)

    def mean(value: ir.Value, before: int, after: int) -> ir.Value:
        """The mean over the window's channels, zeros beyond the first and the last."""
        plane = op.Unsqueeze(op.Reshape(value, np.array([0, 0, -1])), np.array([1]))
        pooled = op.AveragePool(plane, kernel_shape=[size, 1], pads=[before, 0, after, 0], count_include_pad=1)
        return op.Reshape(pooled, shape)

    u = op.Add(op.Mul(mean(op.Mul(x, x), before, after), alpha), bias)
    gathered = mean(op.Div(op.Mul(c.dy, c.y()), u), after, before)
    return [op.Sub(op.Mul(c.dy, op.Pow(u, -beta)), op.Mul(op.Mul(x, gathered), 2 * alpha * beta))]
