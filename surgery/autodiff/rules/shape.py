"""Gradients of operators that move elements without changing them, and operators that stop a gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from surgery.autodiff.backward import Context, Gradients, no_gradient, rule

__all__ = ["filled", "flat_scatter", "positions"]

no_gradient("Shape", "Size", "Constant", "ConstantOfShape", "NonZero", "ArgMax", "ArgMin", "EyeLike")
no_gradient("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf")
no_gradient("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
no_gradient("Reshape", "Dropout", "Expand", inputs=[1, 2])


def filled(c: Context, shape: ir.Value, number: float = 0.0) -> ir.Value:
    """A tensor of one number, of the type of the gradient."""
    dtype = c.x().dtype or ir.DataType.FLOAT
    return c.op.ConstantOfShape(shape, value=ir.tensor(np.full(1, number, dtype.numpy())))


def positions(c: Context, shape: ir.Value) -> ir.Value:
    """A tensor of `shape` that says of each element where it is, counted over the whole tensor."""
    op = c.op
    size = op.ReduceProd(shape, keepdims=0)
    return op.Reshape(op.Range(op.constant(np.array(0)), size, op.constant(np.array(1))), shape)


def flat_scatter(c: Context, places: ir.Value, gradient: ir.Value, shape: ir.Value, reduction: str) -> ir.Value:
    """Zeros of a shape with `gradient` written (or added) at `places`, which are `positions`.

    By ScatterElements, since ScatterND loses additions to one place in ONNX Runtime 1.19 when it runs in threads.
    """
    op, flat = c.op, c.op.constant([-1])
    empty = filled(c, op.ReduceProd(shape, keepdims=1))
    full = op.ScatterElements(empty, op.Reshape(places, flat), op.Reshape(gradient, flat), axis=0, reduction=reduction)
    return op.Reshape(full, shape)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(c: Context) -> Gradients:
    sizes = c.dims(c.x()) if c.x().shape is not None else [None, None]
    if sizes.count(None) == 1 and 0 not in sizes:  # no Shape operator needed
        return [c.op.Reshape(c.dy, c.op.constant([-1 if d is None else d for d in sizes]))]
    return [c.op.Reshape(c.dy, c.shape_of(c.x()))]


@rule("Transpose")
def transpose(c: Context) -> Gradients:
    rank = c.rank(c.x())
    perm = c.attr("perm") or list(reversed(range(rank)))
    return [c.op.Transpose(c.dy, perm=[perm.index(i) for i in range(rank)])]


@rule("Concat")
def concat(c: Context) -> Gradients:
    """Cuts dy into the parts that were put together; only the wanted ones, where sizes are known beforehand."""
    op, parts = c.op, [c.x(i) for i in range(len(c.node.inputs))]
    axis = c.axis(c.y())
    sizes = [c.dims(x)[axis] for x in parts]
    wanted = [c.wants(i) for i in range(len(parts))]
    if len(parts) == 1:
        return [c.dy]
    if not all(wanted) and None not in sizes:
        ends = np.cumsum(np.array(sizes, np.int64))
        return [
            op.Slice(c.dy, np.array([end - size]), np.array([end]), np.array([axis])) if want else None
            for want, end, size in zip(wanted, ends, sizes, strict=True)
        ]
    lengths = [
        op.Shape(x, start=axis, end=axis + 1) if size is None else op.constant([size])
        for x, size in zip(parts, sizes, strict=True)
    ]
    split = op.Concat(*lengths, axis=0) if None in sizes else op.constant([s for s in sizes if s is not None])
    return [g if want else None for g, want in zip(_split(c, split, axis, len(parts)), wanted, strict=True)]


def _split(c: Context, sizes: ir.Value, axis: int, count: int) -> list[ir.Value]:
    return c.op.Split(c.dy, sizes, axis=axis, _outputs=count)


@rule("Split")
def split(c: Context) -> Gradients:
    axis = c.axis(c.x(), default=0)
    if len(c.node.outputs) == 1:
        return [c.dy]
    parts = [c.dy_of(i) for i in range(len(c.node.outputs))]
    whole = [filled(c, c.shape_of(c.y(i))) if g is None else g for i, g in enumerate(parts)]
    return [c.op.Concat(*whole, axis=axis)]


@rule("Slice")
def slice_(c: Context) -> Gradients:
    """Pads dy with zeros; with steps, writes it to the places that it was taken from."""
    op, x, starts = c.op, c.x(), _starts(c)
    if starts is None:
        shape = c.shape_of(x)
        taken = op.Slice(positions(c, shape), *c.node.inputs[1:])
        return [flat_scatter(c, taken, c.dy, shape, "none")]
    sizes, kept, rank = c.dims(x), c.dims(c.y()), c.rank(x)
    pads = [0] * 2 * rank
    for axis, start in starts.items():
        size, count = sizes[axis], kept[axis]
        if size is None or count is None:
            return [_padded_at_run_time(c, [starts.get(i, 0) for i in range(rank)])]
        pads[axis] = min(start, size) if start >= 0 else max(start + size, 0)
        pads[rank + axis] = size - pads[axis] - count
    return [op.Pad(c.dy, op.constant(pads))]


def _starts(c: Context) -> dict[int, int] | None:
    """Where a Slice starts on which axes; None if it has steps or is not known beforehand."""
    starts, ends = c.constant_of(1), c.constant_of(2)
    axes = c.constant_of(3) if c.has(3) or starts is None else np.arange(starts.size)
    steps = c.constant_of(4) if c.has(4) else np.ones(1, np.int64)
    if any(v is None for v in (starts, ends, axes, steps)) or np.any(steps != 1):
        return None
    return {int(axis) % c.rank(c.x()): int(start) for axis, start in zip(axes, starts, strict=True)}


def _padded_at_run_time(c: Context, starts: list[int]) -> ir.Value:
    op, shape, before = c.op, c.op.Shape(c.x()), c.op.constant(starts)
    if min(starts) < 0:
        before = op.Where(op.Less(before, op.constant(np.array(0))), op.Add(before, shape), before)
        before = op.Max(before, op.constant(np.array(0)))
    after = op.Sub(op.Sub(shape, before), op.Shape(c.dy))
    return op.Pad(c.dy, op.Concat(before, after, axis=0))


@rule("Expand")
def expand(c: Context) -> Gradients:
    return [c.unbroadcast(c.dy, c.x())]


@rule("Tile")
def tile(c: Context) -> Gradients:
    """Sums over the repeats, each an axis of its own."""
    op, sizes, repeats = c.op, c.dims(c.x()), c.constant_of(1)
    if repeats is not None and None not in sizes:
        pairs = op.constant([d or 0 for pair in zip(repeats.tolist(), sizes, strict=True) for d in pair])
    else:
        columns = [op.Unsqueeze(v, op.constant([1])) for v in (c.x(1), op.Shape(c.x()))]
        pairs = op.Reshape(op.Concat(*columns, axis=1), op.constant([-1]))
    axes = op.constant(list(range(0, 2 * len(sizes), 2)))
    return [op.ReduceSum(op.Reshape(c.dy, pairs), axes, keepdims=0)]


@rule("OneHot")
def one_hot(c: Context) -> Gradients:
    """Of the two values: what came from the second one, and the rest."""
    op, axis = c.op, c.attr("axis", -1)
    dtype = (c.dy.dtype or ir.DataType.FLOAT).numpy()
    hot = op.OneHot(c.x(0), c.x(1), op.constant(np.array([0, 1], dtype)), axis=axis)
    one = op.constant([1])
    on = op.Reshape(op.ReduceSum(op.Mul(c.dy, hot), keepdims=0), one)
    off = op.Sub(op.Reshape(op.ReduceSum(c.dy, keepdims=0), one), on)
    return [None, None, op.Concat(off, on, axis=0)]


@rule("Trilu")
def trilu(c: Context) -> Gradients:
    return [c.op.Trilu(c.dy, *c.node.inputs[1:], upper=c.attr("upper", 1))]


@rule("ReverseSequence")
def reverse_sequence(c: Context) -> Gradients:
    axes = {"batch_axis": c.attr("batch_axis", 1), "time_axis": c.attr("time_axis", 0)}
    return [c.op.ReverseSequence(c.dy, c.x(1), **axes)]
