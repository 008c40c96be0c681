"""Gradients of gathering and scattering: what was taken from a place goes back to it, added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, rule
from surgery.autodiff.rules.activation import indicator, like
from surgery.autodiff.rules.shape import filled, flat_scatter, positions

__all__: list[str] = []


@rule("Gather")
def gather(c: Context) -> Gradients:
    """By ScatterElements also on the training build, whose GatherGrad was measured to be up to five times as slow."""
    op, x, indices = c.op, c.x(), c.x(1)
    axis, sizes = c.axis(x, 0), c.dims(x)
    constant, size = c.constant_of(1), sizes[axis]
    if constant is not None and constant.size == 1 and size:
        pads = [0] * 2 * len(sizes)
        pads[axis] = int(constant.item()) % size
        pads[len(sizes) + axis] = size - 1 - pads[axis]
        row = c.dy if constant.ndim == 1 else op.Reshape(c.dy, _with_axis(c, op.constant([1]), axis))
        return [op.Pad(row, op.constant(pads))]
    flat = op.constant([-1])
    count = op.Shape(op.Reshape(indices, flat))
    taken = _with_axis(c, count, axis)
    rows = op.Reshape(c.dy, taken)
    shape = [1] * len(sizes)
    shape[axis] = -1
    places = op.Expand(op.Reshape(indices, op.constant(shape)), taken)
    return [op.ScatterElements(filled(c, c.shape_of(x)), places, rows, axis=axis, reduction="add")]


def _with_axis(c: Context, count: ir.Value, axis: int) -> ir.Value:
    """The shape of x with `count`, of shape [1], along `axis`."""
    op, x = c.op, c.x()
    sizes = c.dims(x)
    parts = [
        op.constant([d or 0 for d in part]) if None not in part else None for part in (sizes[:axis], sizes[axis + 1 :])
    ]
    before = parts[0] if parts[0] is not None else op.Shape(x, end=axis)
    after = parts[1] if parts[1] is not None else op.Shape(x, start=axis + 1)
    return op.Concat(before, count, after, axis=0)


@rule("GatherElements")
def gather_elements(c: Context) -> Gradients:
    empty = filled(c, c.shape_of(c.x()))
    return [c.op.ScatterElements(empty, c.x(1), c.dy, axis=c.axis(c.x(), 0), reduction="add")]


@rule("GatherND")
def gather_nd(c: Context) -> Gradients:
    """Gathers, beside the elements, where they are in x counted over all of it; then adds dy at these places."""
    shape = c.shape_of(c.x())
    taken = c.op.GatherND(positions(c, shape), c.x(1), batch_dims=c.attr("batch_dims", 0))
    return [flat_scatter(c, taken, c.dy, shape, "add")]


@rule("TopK")
def top_k(c: Context) -> Gradients:
    places = c.extra_output(1, ir.DataType.INT64)
    return [c.op.ScatterElements(filled(c, c.shape_of(c.x())), places, c.dy, axis=c.axis(c.x(), -1))]


@dataclasses.dataclass
class _Places:
    """Where a scatter writes: how to read those places of a tensor, and how to write to a tensor there."""

    take: Callable[[ir.Value], ir.Value]
    put: Callable[..., ir.Value]  # (tensor, updates, reduction)


@rule("ScatterElements")
def scatter_elements(c: Context) -> Gradients:
    axis, indices = c.axis(c.x(), 0), c.x(1)
    return _scatter(
        c,
        _Places(
            lambda value: c.op.GatherElements(value, indices, axis=axis),
            lambda value, updates, how: c.op.ScatterElements(value, indices, updates, axis=axis, reduction=how),
        ),
    )


@rule("ScatterND")
def scatter_nd(c: Context) -> Gradients:
    indices = c.x(1)
    return _scatter(
        c,
        _Places(
            lambda value: c.op.GatherND(value, indices),
            lambda value, updates, how: c.op.ScatterND(value, indices, updates, reduction=how),
        ),
    )


def _scatter(c: Context, places: _Places) -> Gradients:
    how = c.attr("reduction", "none")
    if how in ("max", "min"):
        return _scatter_extreme(c, places)
    if how == "mul":
        return _scatter_product(c, places)
    data = updates = None
    if c.wants(0):
        data = c.dy if how == "add" else places.put(c.dy, filled(c, c.shape_of(c.x(2))), "none")
    if c.wants(2):
        updates = places.take(c.dy)
    return [data, None, updates]


def _scatter_extreme(c: Context, places: _Places) -> Gradients:
    """In equal shares to all that are largest, as PyTorch's scatter_reduce."""
    op = c.op
    data = indicator(c, op.Equal(c.x(), c.y()))
    updates = indicator(c, op.Equal(c.x(2), places.take(c.y())))
    share = op.Div(c.dy, op.Max(places.put(data, updates, "add"), like(c, 1)))
    return [
        op.Mul(share, data) if c.wants(0) else None,
        None,
        op.Mul(places.take(share), updates) if c.wants(2) else None,
    ]


def _scatter_product(c: Context, places: _Places) -> Gradients:
    """dy times the product of all other factors of the place, which is not 0 at the only zero."""
    op, x, factors = c.op, c.x(), c.x(2)
    data = None
    if c.wants(0):
        data = op.Mul(c.dy, places.put(filled(c, c.shape_of(x), 1), factors, "mul"))
    updates = None
    if c.wants(2):
        zero = op.Equal(factors, like(c, 0))
        is_zero = indicator(c, zero)
        others = op.Where(zero, like(c, 1), factors)
        product = op.Div(places.take(places.put(x, others, "mul")), others)
        zeros_beside = op.Sub(places.take(places.put(filled(c, c.shape_of(x)), is_zero, "add")), is_zero)
        rest = op.Where(op.Greater(zeros_beside, like(c, 0)), like(c, 0), product)
        updates = op.Mul(places.take(c.dy), rest)
    return [data, None, updates]
