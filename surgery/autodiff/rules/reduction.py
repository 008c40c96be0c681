"""Gradients of reductions: dy goes back to all that was reduced."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule
from surgery.autodiff.rules.activation import indicator, like

__all__: list[str] = []

Reduction = Callable[[Context, ir.Value], ir.Value]


def _reduction(*op_types: str) -> Callable[[Reduction], Reduction]:
    """Registers a rule that takes the reduced axes as a tensor and gives the gradient of the input."""

    def register(function: Reduction) -> Reduction:
        def whole(c: Context) -> Gradients:
            axes = _axes(c)
            return [c.dy if axes is None else function(c, axes)]

        rule(*op_types)(whole)
        return function

    return register


def _axes(c: Context) -> ir.Value | None:
    """The axes that were reduced; None for none at all (`noop_with_empty_axes`: the output is the input)."""
    axes = c.attr("axes")
    if c.has(1):
        constant = c.constant_of(1)
        if constant is None:
            return c.x(1)
        axes = constant.tolist()
    if not axes:
        return None if c.attr("noop_with_empty_axes", 0) else c.op.constant(list(range(c.rank(c.x()))))
    return c.op.constant([int(a) for a in axes])


def _known(axes: ir.Value) -> list[int] | None:
    constant = ir.convenience.get_const_tensor(axes)
    return None if constant is None else constant.numpy().tolist()


def _back(c: Context, value: ir.Value, axes: ir.Value) -> ir.Value:
    """`value`, of the output's shape, with the reduced axes as ones."""
    return value if c.attr("keepdims", 1) else c.op.Unsqueeze(value, axes)


@_reduction("ReduceSum")
def reduce_sum(c: Context, axes: ir.Value) -> ir.Value:
    return c.op.Expand(_back(c, c.dy, axes), c.shape_of(c.x()))


@_reduction("ReduceMean")
def reduce_mean(c: Context, axes: ir.Value) -> ir.Value:
    op, known = c.op, _known(axes)
    sizes = [None] if known is None else [c.dims(c.x())[a] for a in known]
    if None in sizes:
        count = op.Div(op.Size(c.x()), op.Size(c.dy))
        share = op.Div(c.dy, op.CastLike(count, c.dy))
    else:
        share = op.Mul(c.dy, like(c, 1 / math.prod(d or 1 for d in sizes)))
    return op.Expand(_back(c, share, axes), c.shape_of(c.x()))


@_reduction("ReduceMax", "ReduceMin")
def reduce_extreme(c: Context, axes: ir.Value) -> ir.Value:
    """In equal shares to all that are largest, as PyTorch's amax."""
    taken = indicator(c, c.op.Equal(c.x(), _back(c, c.y(), axes)))
    share = c.op.Div(_back(c, c.dy, axes), c.op.ReduceSum(taken, axes, keepdims=1))
    return c.op.Mul(share, taken)


@_reduction("ReduceProd")
def reduce_prod(c: Context, axes: ir.Value) -> ir.Value:
    """dy times the product of the others, which is not 0 at the only zero."""
    op, x, known = c.op, c.x(), _known(axes)
    zero = op.Equal(x, like(c, 0))
    others = op.Where(zero, like(c, 1), x)
    product = (
        op.ReduceProd(others, axes, keepdims=1)
        if known is None
        else c.reduce("ReduceProd", others, known, keepdims=True)
    )
    is_zero = indicator(c, zero)
    zeros_beside = op.Sub(op.ReduceSum(is_zero, axes, keepdims=1), is_zero)
    rest = op.Where(op.Greater(zeros_beside, like(c, 0)), like(c, 0), op.Div(product, others))
    return op.Mul(_back(c, c.dy, axes), rest)


@_reduction("ReduceL1")
def reduce_l1(c: Context, axes: ir.Value) -> ir.Value:
    return c.op.Mul(_back(c, c.dy, axes), c.op.Sign(c.x()))


@_reduction("ReduceL2")
def reduce_l2(c: Context, axes: ir.Value) -> ir.Value:
    """dy x / ‖x‖, and 0 at x = 0."""
    op = c.op
    safe = op.Where(op.Equal(c.y(), like(c, 0)), like(c, 1), c.y())
    return op.Mul(_back(c, op.Div(c.dy, safe), axes), c.x())


@_reduction("ReduceSumSquare")
def reduce_sum_square(c: Context, axes: ir.Value) -> ir.Value:
    return c.op.Mul(_back(c, c.op.Mul(c.dy, like(c, 2)), axes), c.x())


@_reduction("ReduceLogSum")
def reduce_log_sum(c: Context, axes: ir.Value) -> ir.Value:
    return c.op.Expand(_back(c, c.op.Div(c.dy, c.op.Exp(c.y())), axes), c.shape_of(c.x()))


@_reduction("ReduceLogSumExp")
def reduce_log_sum_exp(c: Context, axes: ir.Value) -> ir.Value:
    """dy · softmax(x)."""
    return c.op.Mul(_back(c, c.dy, axes), c.op.Exp(c.op.Sub(c.x(), _back(c, c.y(), axes))))


@rule("CumSum")
def cum_sum(c: Context) -> Gradients:
    return [c.op.CumSum(c.dy, c.x(1), exclusive=c.attr("exclusive", 0), reverse=1 - c.attr("reverse", 0))]
