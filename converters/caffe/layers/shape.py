"""Layers that only move numbers."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import onnx_ir as ir

from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []

_MOST = 2**26  # numbers in a table that a layer makes


@layer("Split")
def split(c: Context) -> list[ir.Value]:
    """One value under several names."""
    return [c.x] * len(c.layer.top)


@layer("Concat")
def concat(c: Context) -> ir.Value:
    param = c.layer.concat_param
    axis = c.axis(param.axis if param.HasField("axis") or not param.HasField("concat_dim") else param.concat_dim)
    dims = c.dims()
    sizes = []
    for bottom in c.bottoms:
        own = c.dims(bottom)
        if len(own) != len(dims) or any(
            isinstance(a, int) and isinstance(b, int) and a != b and i != axis
            for i, (a, b) in enumerate(zip(own, dims, strict=True))
        ):
            shown = [" ".join(str(d) for d in each) for each in (dims, own)]
            raise c.error(f"its bottoms differ elsewhere than in axis {axis}: [{shown[0]}] and [{shown[1]}]")
        sizes.append(own[axis])
    known = all(isinstance(s, int) for s in sizes)
    total: Dim | None = sum(int(s) for s in sizes) if known else sizes[0] if len(sizes) == 1 else None
    return c.shaped(c.op.Concat(*c.bottoms, axis=axis), [*dims[:axis], total, *dims[axis + 1 :]])


@layer("Slice")
def slice_layer(c: Context) -> list[ir.Value]:
    """Cuts along an axis at ``slice_point``, or into equal parts."""
    param, tops = c.layer.slice_param, len(c.layer.top)
    axis = c.axis(param.axis if param.HasField("axis") or not param.HasField("slice_dim") else param.slice_dim)
    dims = c.dims()
    if not tops:
        raise c.error("has no top")
    if tops == 1 and not param.slice_point:
        return [c.x]
    if param.slice_point:
        points = [0, *param.slice_point, c.size(axis)]
        sizes = [b - a for a, b in itertools.pairwise(points)]
        if len(sizes) != tops or min(sizes) < 1:
            raise c.error(f"cuts {c.size(axis)} at {list(param.slice_point)} into {tops} tops; that does not work out")
    elif isinstance(dims[axis], int):
        if c.size(axis) % tops:
            raise c.error(f"cannot cut {c.size(axis)} into {tops} equal parts")
        sizes = [c.size(axis) // tops] * tops
    else:
        parts = c.op.Split(c.x, axis=axis, num_outputs=tops, _outputs=tops)
        return [c.shaped(part, [*dims[:axis], None, *dims[axis + 1 :]]) for part in parts]
    parts = c.op.Split(c.x, c.op.constant(sizes), axis=axis, _outputs=tops)
    return [c.shaped(p, [*dims[:axis], size, *dims[axis + 1 :]]) for p, size in zip(parts, sizes, strict=True)]


@layer("Flatten")
def flatten(c: Context) -> ir.Value:
    """Makes one axis of those from ``axis`` to ``end_axis``."""
    c.need(1)
    param, dims = c.layer.flatten_param, c.dims()
    start, end = c.axis(param.axis), c.axis(param.end_axis) + 1
    if end <= start:
        raise c.error(f"flattens from axis {start} to axis {end - 1}")
    merged = dims[start:end]
    size: Dim | None = math.prod(merged) if all(isinstance(d, int) for d in merged) else None
    size = merged[0] if len(merged) == 1 else size
    new = [*dims[:start], size, *dims[end:]]
    if start == 1 and end == len(dims):
        return c.shaped(c.op.Flatten(c.x, axis=1), new)
    kept = {i: i for i in range(start)} | {i - (end - start - 1): i for i in range(end, len(dims))}
    return c.reshape(c.x, new, kept)


@layer("Reshape")
def reshape(c: Context) -> ir.Value:
    """The new shape's 0 copies an axis, -1 is what is left; the batch's size stands for a batch of any size."""
    c.need(1)
    param, dims = c.layer.reshape_param, c.dims()
    start = c.axis(param.axis, extra=1)
    end = len(dims) if param.num_axes == -1 else start + param.num_axes
    if param.num_axes < -1 or end > len(dims):
        raise c.error(f"reshapes {param.num_axes} axes from axis {start}; its bottom has {len(dims)}")
    wanted = list(param.shape.dim)
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise c.error(f"its shape {wanted} is not one; -1 may stand once")
    new: list[Dim | None] = list(dims[:start])
    kept = {i: i for i in range(start)}
    for offset, size in enumerate(wanted):
        source = start + offset
        is_batch = source == 0 and dims and isinstance(dims[0], str) and c.builder.batch_size(dims[0]) == size
        if size == 0 or is_batch:
            if source >= end:
                raise c.error(f"its shape {wanted} copies axis {source}, which is not among those it reshapes")
            kept[len(new)] = source
            new.append(dims[source])
        else:
            new.append(None if size == -1 else size)
    for source in range(end, len(dims)):
        kept[len(new)] = source
        new.append(dims[source])
    return c.reshape(c.x, _inferred(c, dims, new), kept)


def _inferred(c: Context, old: list[Dim], new: list[Dim | None]) -> list[Dim | None]:
    """`new` with its None worked out, as far as it can be; checked against `old`."""
    names = Counter(d for d in old if isinstance(d, str))
    names.subtract(d for d in new if isinstance(d, str))
    left = list((+names).elements())
    have = math.prod(d for d in old if isinstance(d, int))
    need = math.prod(d for d in new if isinstance(d, int))
    shown = ["×".join("?" if d is None else str(d) for d in dims) for dims in (old, new)]
    if None not in new:
        if left:
            raise c.error(
                f"reshapes {shown[0]} to {shown[1]}, which fixes {', '.join(left)}; give the batch's size with `batch`"
            )
        if have != need:
            raise c.error(f"cannot reshape {shown[0]} to {shown[1]}: {have} numbers are not {need}")
        return new
    if have % need and not left:
        raise c.error(f"cannot reshape {shown[0]} to {shown[1]}: {have} numbers do not divide by {need}")
    rest: Dim | None = have // need if not left else left[0] if len(left) == 1 and have == need else None
    return [rest if d is None else d for d in new]


@layer("Permute")
def permute(c: Context) -> ir.Value:
    """Another order of the axes; those not named follow in theirs (SSD's)."""
    c.need(1)
    order = list(c.layer.permute_param.order)
    if len(set(order)) != len(order) or any(axis >= c.rank() for axis in order):
        raise c.error(f"its order {order} is not one of {c.rank()} axes")
    order += [axis for axis in range(c.rank()) if axis not in order]
    return c.shaped(c.op.Transpose(c.x, perm=order), [c.dims()[axis] for axis in order])


@layer("Crop")
def crop(c: Context) -> ir.Value:
    """Cuts the first bottom to the second's sizes, from ``offset`` on, in the axes from ``axis``."""
    c.need(2)
    param, dims, reference = c.layer.crop_param, c.dims(), c.bottoms[1]
    start = c.axis(param.axis)
    if len(dims) != c.rank(reference):
        raise c.error(f"its bottoms have {len(dims)} and {c.rank(reference)} dimensions")
    axes = list(range(start, len(dims)))
    offsets = list(param.offset) or [0]
    if len(offsets) not in (1, len(axes)):
        raise c.error(f"has {len(offsets)} offsets for {len(axes)} axes")
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets
    sizes = c.dims(reference)[start:]
    for axis, offset, size in zip(axes, offsets, sizes, strict=True):
        whole = dims[axis]
        if isinstance(whole, int) and isinstance(size, int) and offset + size > whole:
            raise c.error(f"cuts {size} from {offset} on out of axis {axis}, which has {whole}")
    begin = c.op.constant(offsets)
    if all(isinstance(size, int) for size in sizes):
        ends = c.op.constant([o + int(s) for o, s in zip(offsets, sizes, strict=True)])
    else:
        ends = c.op.Add(c.op.Shape(reference, start=start), begin)
    return c.shaped(c.op.Slice(c.x, begin, ends, c.op.constant(axes)), [*dims[:start], *sizes])


@layer("Tile")
def tile(c: Context) -> ir.Value:
    c.need(1)
    param, dims = c.layer.tile_param, c.dims()
    axis = c.axis(param.axis)
    if param.tiles < 1:
        raise c.error("tiles must be 1 or more")
    repeats = [1] * len(dims)
    repeats[axis] = param.tiles
    size = dims[axis]
    return c.shaped(
        c.op.Tile(c.x, c.op.constant(repeats)),
        [*dims[:axis], size * param.tiles if isinstance(size, int) else None, *dims[axis + 1 :]],
    )


@layer("ShuffleChannel")
def shuffle_channel(c: Context) -> ir.Value:
    """Deals the channels of each group out in turn (ShuffleNet's)."""
    c.need(1)
    channels, group = c.size(1), c.layer.shuffle_channel_param.group
    if group < 1 or channels % group:
        raise c.error(f"{channels} channels do not divide into {group} groups")
    order = np.arange(channels).reshape(group, -1).T.reshape(-1)
    return c.op.Gather(c.x, order, axis=1)


@layer("BatchReindex")
def batch_reindex(c: Context) -> ir.Value:
    """Takes the examples that the second bottom counts."""
    c.need(2)
    c.need_rank(1)
    c.need_rank(1, 1, c.bottoms[1])
    index = c.op.Cast(c.bottoms[1], to=ir.DataType.INT64)
    return c.shaped(c.op.Gather(c.x, index, axis=0), [c.dims(c.bottoms[1])[0], *c.dims()[1:]])


@layer("Filter")
def filter_layer(c: Context) -> list[ir.Value]:
    """Keeps the examples for which the last bottom is not 0."""
    if len(c.bottoms) < 2:
        raise c.error("needs a bottom to filter and one that selects")
    *bottoms, selector = c.bottoms
    for x in c.bottoms:
        c.need_rank(1, value=x)
    chosen = c.op.Cast(c.op.Reshape(selector, c.op.constant([-1])), to=ir.DataType.BOOL)
    count = c.builder.unknown_dim()
    return [c.shaped(c.op.Compress(x, chosen, axis=0), [count, *c.dims(x)[1:]]) for x in bottoms]


@layer("Im2col")
def im2col(c: Context) -> ir.Value:
    """Every window's numbers as channels: a convolution with a one in each place of the kernel in turn."""
    from converters.caffe.layers.convolution import output_sizes, window

    c.need(1)
    kernel, pad, stride, dilation = window(c)
    channels, area = c.size(1), math.prod(kernel)
    if channels * area * area > _MOST:
        raise c.error(f"a kernel of {'×'.join(map(str, kernel))} over {channels} channels is too large")
    ones = np.tile(np.eye(area, dtype=np.float32).reshape(area, 1, *kernel), (channels, *[1] * (len(kernel) + 1)))
    y = c.op.Conv(
        c.x,
        c.constant("window", ones),
        kernel_shape=kernel,
        pads=pad * 2,
        strides=stride,
        dilations=dilation,
        group=channels,
    )
    sizes = output_sizes(c.dims()[2:], kernel, pad, stride, dilation)
    return c.shaped(y, [c.dims()[0], channels * area, *sizes])
