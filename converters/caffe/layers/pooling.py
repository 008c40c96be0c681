"""Pooling; the arithmetic is in converters/pooling.py."""

from __future__ import annotations

import math

import onnx_ir as ir

from converters.caffe.caffe_pb2 import PoolingParameter, SPPParameter
from converters.caffe.context import Context, layer
from converters.pooling import Window, average_pool, end_padding, max_pool, window_attributes, window_counts

__all__: list[str] = []


def _windows(c: Context) -> list[Window]:
    """One for each spatial axis; none where the pooling is global."""
    param = c.layer.pooling_param
    c.need_rank(4, 4)
    if param.global_pooling:
        return []
    windows = []
    for axis in ("h", "w"):
        kernel, stride, pad = (
            getattr(param, f"{name}_{axis}") if param.HasField(f"{name}_{axis}") else getattr(param, both)
            for name, both in (("kernel", "kernel_size"), ("stride", "stride"), ("pad", "pad"))
        )
        if kernel < 1 or stride < 1:
            raise c.error("needs a kernel_size (or kernel_h and kernel_w) and strides of 1 or more")
        if pad >= kernel:
            raise c.error(f"its padding, {pad}, must be less than its kernel, {kernel}")
        windows.append(Window(kernel, stride, pad, param.round_mode == PoolingParameter.CEIL))
    return windows


@layer("Pooling")
def pooling(c: Context) -> ir.Value | list[ir.Value]:
    """Maximum, average, or stochastic pooling, which at inference weighs each number by itself: Σx² / Σx.

    A second top of MAX pooling is where each maximum was: row · width + column.
    """
    param = c.layer.pooling_param
    windows = _windows(c)
    if len(c.layer.top) == 2 and param.pool == PoolingParameter.MAX and windows:
        return _max_pool_with_places(c, windows)
    c.need(1)
    if not windows:
        return _global(c)
    if param.pool == PoolingParameter.MAX:
        return max_pool(c, c.x, windows)
    if param.pool == PoolingParameter.AVE:
        return average_pool(c, c.x, windows)
    if any(w.pad for w in windows):
        raise c.error("stochastic pooling has no padding")
    squares = average_pool(c, c.shaped(c.op.Mul(c.x, c.x), c.dims()), windows)
    plain = average_pool(c, c.x, windows)
    return c.shaped(c.op.Div(squares, plain), c.dims(plain))


def _global(c: Context) -> ir.Value:
    param = c.layer.pooling_param
    if param.pool == PoolingParameter.MAX:
        y = c.op.GlobalMaxPool(c.x)
    elif param.pool == PoolingParameter.AVE:
        y = c.op.GlobalAveragePool(c.x)
    else:
        y = c.op.Div(c.op.GlobalAveragePool(c.op.Mul(c.x, c.x)), c.op.GlobalAveragePool(c.x))
    return c.shaped(y, [*c.dims()[:2], 1, 1])


def _max_pool_with_places(c: Context, windows: list[Window]) -> list[ir.Value]:
    """ONNX counts places over the whole tensor, Caffe over the plane."""
    op, end = c.op, end_padding(c, c.x, windows)
    if isinstance(end, ir.Value) or any(e >= w.kernel for e, w in zip(end, windows, strict=True)):
        raise c.error("the places of its maxima need a known input size; give it with `shape`")
    dims = [*c.dims()[:2], *window_counts(c, c.x, windows)]
    plane = c.size(2) * c.size(3)
    y, places = op.MaxPool(
        c.x, **window_attributes(windows, [*(w.pad for w in windows), *end]), _name=c.name, _outputs=2
    )
    places.dtype = ir.DataType.INT64
    mask = op.Cast(op.Mod(places, op.constant(plane)), to=ir.DataType.FLOAT)
    return [c.shaped(y, dims), c.shaped(mask, dims)]


@layer("SPP")
def spatial_pyramid(c: Context) -> ir.Value:
    """Spatial pyramid pooling (He et al. 2014): 1, 4, 16, … windows over the whole, flattened and joined."""
    c.need(1)
    c.need_rank(4, 4)
    param, height, width = c.layer.spp_param, c.size(2), c.size(3)
    if not 1 <= param.pyramid_height <= 16:
        raise c.error(f"pyramid_height is {param.pyramid_height} and must be from 1 to 16")
    levels = []
    for level in range(param.pyramid_height):
        bins = 2**level
        windows = []
        for size in (height, width):
            kernel = -(-size // bins)
            pad = (kernel * bins - size + 1) // 2
            if pad >= kernel:
                raise c.error(f"level {level} of the pyramid has {bins} windows for {size} places; that is too many")
            windows.append(Window(kernel, kernel, pad))
        if param.pool == SPPParameter.MAX:
            pooled = max_pool(c, c.x, windows)
        elif param.pool == SPPParameter.AVE:
            pooled = average_pool(c, c.x, windows)
        else:
            raise c.error("stochastic pooling has no padding, which a pyramid needs")
        sizes = [c.size(axis, pooled) for axis in (1, 2, 3)]
        levels.append(c.shaped(c.op.Flatten(pooled, axis=1), [c.dims()[0], math.prod(sizes)]))
    total = sum(c.size(1, each) for each in levels)
    return c.shaped(c.op.Concat(*levels, axis=1), [c.dims()[0], total]) if len(levels) > 1 else levels[0]
