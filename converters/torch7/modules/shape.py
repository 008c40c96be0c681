"""Modules that change the shape, or take parts."""

from __future__ import annotations

import math

import onnx_ir as ir

from converters.options import Dim
from converters.torch7.context import Context, module
from converters.torch7.objects import Table

__all__: list[str] = []

_MOST_PERMUTATIONS = 100


def _product(dims: list[Dim]) -> int | None:
    """How many numbers axes of these sizes have; None where a size is not known."""
    return math.prod(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


def _view(c: Context, first: Dim | None, sizes: list[int]) -> ir.Value:
    """The numbers of each example (`first` is the batch), or of parts of one, as `sizes`, one of which may be −1."""
    dims = c.dims()
    batch = first is not None and first == dims[0]
    inside = _product(dims[1:])
    if inside is not None and batch and -1 not in sizes and math.prod(sizes) != inside:
        shown = "×".join(map(str, dims[1:]))
        raise c.error(f"makes {math.prod(sizes)} numbers of an example of {shown}; give the input's with `shape`")
    if -1 in sizes and batch:
        known = -math.prod(sizes)
        if inside is not None and (known == 0 or inside % known):
            raise c.error(f"makes a multiple of {known} numbers of an example of {inside}")
        free = inside // known if inside is not None else None
        wanted: list[Dim | None] = [first, *(free if d == -1 else d for d in sizes)]
    else:
        wanted = [first, *sizes]
    if batch and len(sizes) == 1:
        return c.shaped(c.op.Flatten(c.x, axis=1), wanted)
    if None in wanted and sum(not isinstance(d, int) for d in wanted) > 1 and not batch:
        raise c.error("needs to know its input's size; give the network's with `shape`, as 3x224x224")
    return c.reshape(c.x, wanted, {0: 0} if batch else {})


def _whole_view(c: Context, sizes: list[int]) -> ir.Value:
    """All numbers, of the whole batch, as `sizes`."""
    dims, total = c.dims(), _product(c.dims())
    if sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise c.error(f"its sizes are {sizes}, which cannot be")
    wanted: list[Dim | None] = [None if d == -1 else d for d in sizes]
    if sizes and sizes[0] == -1 and _product(dims[1:]) == math.prod(sizes[1:]):
        wanted[0] = dims[0]
    elif total is not None and -1 in sizes:
        known = -math.prod(sizes)
        if total % known:
            raise c.error(f"makes a multiple of {known} numbers of {total}")
        wanted = [total // known if d == -1 else d for d in sizes]
    elif total is not None and total != math.prod(sizes):
        raise c.error(f"makes {math.prod(sizes)} numbers of {total}")
    elif total is None and -1 not in sizes:
        raise c.error(f"makes a tensor of {'×'.join(map(str, sizes))} whatever the batch; give its size with `batch`")
    return c.reshape(c.x, wanted)


@module("View")
def view(c: Context) -> ir.Value:
    """View.lua: what is left over, or what lies before the last ``numInputDims``, is the batch.

    A −1 without ``numInputDims`` is of the whole batch in Torch. ``View(-1)`` alone is taken as meant: each example
    flat.
    """
    sizes, dims = c.integers("size"), c.dims()
    if not sizes or sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise c.error(f"its sizes are {sizes}, which cannot be")
    last = c.integer("numInputDims", least=1) if c.has("numInputDims") else None
    if last is None:
        if sizes == [-1]:
            return _view(c, dims[0], sizes)
        if -1 in sizes:
            return _whole_view(c, sizes)
        inside = _product(dims[1:])
        return _view(c, dims[0] if inside in (None, math.prod(sizes)) else None, sizes)
    if last >= len(dims):
        return _whole_view(c, sizes) if -1 in sizes else _view(c, None, sizes)
    inside = _product(dims[len(dims) - last :])
    alone = last == len(dims) - 1 and (-1 in sizes or inside in (None, math.prod(sizes)))
    if not alone and -1 in sizes:
        raise c.error(f"has a −1 for {last} of {len(dims)} dimensions, of which the others are not the batch alone")
    return _view(c, dims[0] if alone else None, sizes)


@module("Reshape")
def reshape(c: Context) -> ir.Value:
    sizes = c.integers("size")
    if not sizes or sizes.count(-1) > 1 or any(size < -1 or size == 0 for size in sizes):
        raise c.error(f"its sizes are {sizes}, which cannot be")
    if c.has("batchMode") and not c.flag("batchMode"):
        return _whole_view(c, sizes)
    return _view(c, c.dims()[0], sizes)


def _example(c: Context, field: str = "numInputDims") -> int | None:
    return c.integer(field, least=0) if c.has(field) else None


@module("Squeeze")
def squeeze(c: Context) -> ir.Value:
    """Drops an axis of size 1, or all of them but the batch's."""
    dims = c.dims()
    if c.has("dim"):
        axes = [c.axis(c.integer("dim"), example=_example(c))]
        if dims[axes[0]] != 1:
            return c.x if isinstance(dims[axes[0]], int) else _no_size(c, axes[0])
    else:
        axes = [i for i, d in enumerate(dims) if d == 1 and i]
    rest = [d for i, d in enumerate(dims) if i not in axes]
    return c.shaped(c.op.Squeeze(c.x, c.op.constant(axes)), rest) if axes else c.x


def _no_size(c: Context, axis: int) -> ir.Value:
    c.size(axis)
    raise AssertionError("unreachable")


@module("Unsqueeze")
def unsqueeze(c: Context) -> ir.Value:
    axis = c.axis(c.integer("pos", least=1), example=_example(c), extra=1)
    dims: list[Dim | None] = list(c.dims())
    return c.shaped(c.op.Unsqueeze(c.x, c.op.constant([axis])), [*dims[:axis], 1, *dims[axis:]])


@module("Transpose")
def transpose(c: Context) -> ir.Value:
    """Swaps pairs of axes, one pair after the other."""
    pairs = c.module.fields.get("permutations")
    swaps = pairs.items() if isinstance(pairs, Table) else []
    example = _example(c)
    offset = c.rank() - example if example is not None else 0
    order = list(range(c.rank()))
    for swap in swaps[:_MOST_PERMUTATIONS]:
        places = swap.items() if isinstance(swap, Table) else []
        if len(places) != 2 or not all(isinstance(p, int) and 1 <= p + offset <= c.rank() for p in places):
            raise c.error(f"swaps {places}, which are not two of {c.rank()} dimensions")
        a, b = (p + offset - 1 for p in places)
        order[a], order[b] = order[b], order[a]
    dims = c.dims()
    return c.shaped(c.op.Transpose(c.x, perm=order), [dims[i] for i in order])


@module("Select")
def select(c: Context) -> ir.Value:
    axis, index = c.axis(c.integer("dimension")), c.integer("index")
    rest = [d for i, d in enumerate(c.dims()) if i != axis]
    place = index - 1 if index > 0 else index
    if index == 0 or (isinstance(c.dims()[axis], int) and not -c.size(axis) <= place < c.size(axis)):
        raise c.error(f"takes number {index} of {c.dims()[axis]}")
    return c.shaped(c.op.Gather(c.x, c.op.constant(place, ir.DataType.INT64), axis=axis), rest)


@module("Narrow")
def narrow(c: Context) -> ir.Value:
    axis, index, length = c.axis(c.integer("dimension")), c.integer("index"), c.integer("length", 1)
    size = c.size(axis)
    if length < 0:
        length = size - index + length + 2
    if index < 0:
        index, length = 1, size - length
    if index < 1 or length < 1 or index + length - 1 > size:
        raise c.error(f"takes {length} from {index} on of {size}")
    ends = [c.op.constant([n]) for n in (index - 1, index - 1 + length, axis)]
    dims: list[Dim | None] = list(c.dims())
    dims[axis] = length
    return c.shaped(c.op.Slice(c.x, *ends), dims)


@module("Padding")
def padding(c: Context) -> ir.Value:
    """Pads one axis in front where ``pad`` is negative, else behind, with one number."""
    axis, pad = c.integer("dim", least=1) - 1, c.integer("pad")
    example = _example(c, "nInputDim")
    if example is not None and c.rank() != example:
        axis += 1
    if not 0 <= axis < c.rank():
        raise c.error(f"pads axis {axis} of {c.rank()}")
    if c.integer("index", 1) != 1:
        raise c.error("pads in the middle (its index is not 1), which cannot be converted")
    begin, end = [0] * c.rank(), [0] * c.rank()
    (begin if pad < 0 else end)[axis] = abs(pad)
    return _pad(c, begin, end, c.number("value", 0.0), "constant")


def _pad(c: Context, begin: list[int], end: list[int], value: float, mode: str) -> ir.Value:
    dims = c.dims()
    sizes = [
        d + a + b if isinstance(d, int) else (None if a or b else d) for d, a, b in zip(dims, begin, end, strict=True)
    ]
    known = [(d, a, b) for d, a, b in zip(dims, begin, end, strict=True) if isinstance(d, int)]
    if mode == "reflect" and any(max(a, b) >= d for d, a, b in known):
        raise c.error("reflects more than there is")
    pads = c.op.constant([*begin, *end])
    y = c.op.Pad(c.x, pads, value, mode=mode) if mode == "constant" else c.op.Pad(c.x, pads, mode=mode)
    return c.shaped(y, sizes)


def _sides(c: Context) -> tuple[list[int], list[int]]:
    c.need_rank(4)
    left = c.integer("pad_l")
    right, top, bottom = (c.integer(name, left) for name in ("pad_r", "pad_t", "pad_b"))
    return [0, 0, top, left], [0, 0, bottom, right]


@module("SpatialZeroPadding")
def zero_padding(c: Context) -> ir.Value:
    """Negative numbers cut off."""
    return _pad(c, *_sides(c), 0.0, "constant")


@module("SpatialReflectionPadding")
def reflection_padding(c: Context) -> ir.Value:
    return _pad(c, *_positive(c), 0.0, "reflect")


@module("SpatialReplicationPadding")
def replication_padding(c: Context) -> ir.Value:
    return _pad(c, *_positive(c), 0.0, "edge")


def _positive(c: Context) -> tuple[list[int], list[int]]:
    begin, end = _sides(c)
    if min(*begin, *end) < 0:
        raise c.error("has a negative padding, which only SpatialZeroPadding may have")
    return begin, end


@module("PixelShuffle")
def pixel_shuffle(c: Context) -> ir.Value:
    """r² channels become r × r places."""
    c.need_rank(4)
    factor = c.integer("upscaleFactor", least=1)
    channels, dims = c.size(1), c.dims()
    if channels % factor**2:
        raise c.error(f"{channels} channels do not divide into {factor}²")
    sizes = [d * factor if isinstance(d, int) else None for d in dims[2:]]
    return c.shaped(c.op.DepthToSpace(c.x, blocksize=factor, mode="CRD"), [dims[0], channels // factor**2, *sizes])


def _reduce(c: Context, op_type: str) -> ir.Value:
    """Over one axis, which is dropped unless it is the only one or ``squeeze`` says not to."""
    axis = c.axis(c.integer("dimension", 1), example=_example(c, "nInputDims"))
    dims: list[Dim | None] = list(c.dims())
    keep = not c.flag("squeeze", True) or len(dims) == 1
    y = getattr(c.op, op_type)(c.x, c.op.constant([axis]), keepdims=int(keep))
    return c.shaped(y, [*dims[:axis], *([1] if keep else []), *dims[axis + 1 :]])


@module("Mean")
def mean(c: Context) -> ir.Value:
    return _reduce(c, "ReduceMean")


@module("Sum")
def total(c: Context) -> ir.Value:
    return _reduce(c, "ReduceMean" if c.flag("sizeAverage") else "ReduceSum")


@module("Max")
def maximum(c: Context) -> ir.Value:
    return _reduce(c, "ReduceMax")


@module("Min")
def minimum(c: Context) -> ir.Value:
    return _reduce(c, "ReduceMin")
