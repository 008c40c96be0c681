"""Pooling (THNN's SpatialDilatedMaxPooling.c, SpatialAveragePooling.c); the arithmetic is in converters/pooling.py."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from converters.pooling import Window, average_pool, max_pool
from converters.torch7.context import Context, module

__all__: list[str] = []

_MOST_WINDOWS = 1000


def _windows(c: Context, dilated: bool = False) -> list[Window]:
    """One for each spatial axis. imagine-nn's poolings are Caffe's, which round up."""
    c.need_rank(4)
    ceil = c.flag("ceil_mode", c.package == "inn")
    pads = [c.integer(f"pad{axis}", 0, least=0) for axis in "HW"]
    windows = []
    for axis, pad in zip("HW", pads, strict=True):
        kernel = c.integer(f"k{axis}", least=1)
        if pad >= kernel:
            raise c.error(f"its padding, {pad}, must be less than its kernel, {kernel}")
        dilation = c.integer(f"dilation{axis}", 1, least=1) if dilated else 1
        windows.append(Window(kernel, c.integer(f"d{axis}", 1, least=1), pad, ceil, any(pads), dilation))
    return windows


@module("SpatialMaxPooling", "SpatialDilatedMaxPooling")
def maximum(c: Context) -> ir.Value:
    return max_pool(c, c.x, _windows(c, dilated=True))


@module("SpatialAveragePooling")
def average(c: Context) -> ir.Value:
    """nn's files from before ``divide`` have sums in place of averages."""
    windows = _windows(c)
    y = average_pool(c, c.x, windows, c.flag("count_include_pad", True))
    if c.package == "nn" and not c.flag("divide"):
        y = c.shaped(c.op.Mul(y, float(windows[0].kernel * windows[1].kernel)), c.dims(y))
    return y


@module("SpatialAdaptiveMaxPooling")
def adaptive_maximum(c: Context) -> ir.Value:
    return _adaptive(c, "GlobalMaxPool", "ReduceMax", lambda x, windows: max_pool(c, x, windows))


@module("SpatialAdaptiveAveragePooling")
def adaptive_average(c: Context) -> ir.Value:
    return _adaptive(c, "GlobalAveragePool", "ReduceMean", lambda x, windows: average_pool(c, x, windows))


def _adaptive(c: Context, everything: str, reduce: str, pool: Callable[[ir.Value, list[Window]], ir.Value]) -> ir.Value:
    """Windows such that there are H × W of them; window i of n goes from ⌊i size / n⌋ to ⌈(i + 1) size / n⌉."""
    c.need_rank(4)
    counts = [c.integer(name, least=1) for name in ("H", "W")]
    if counts == [1, 1]:
        return c.shaped(getattr(c.op, everything)(c.x), [*c.dims()[:2], 1, 1])
    sizes = [c.size(axis) for axis in (2, 3)]
    if all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):
        return pool(c.x, [Window(s // n, s // n, 0, ceil=False) for s, n in zip(sizes, counts, strict=True)])
    if max(counts) > _MOST_WINDOWS:
        raise c.error(f"would make {max(counts):,} windows along an axis")
    y = c.x
    for axis, (size, count) in enumerate(zip(sizes, counts, strict=True), 2):
        y = _reduce_windows(c, y, axis, size, count, reduce)
    return y


def _reduce_windows(c: Context, x: ir.Value, axis: int, size: int, count: int, reduce: str) -> ir.Value:
    """The windows along one axis, each cut out and reduced: they differ in width."""
    op = c.op
    parts = []
    for i in range(count):
        begin, end = i * size // count, -(-(i + 1) * size // count)
        part = op.Slice(x, op.constant([begin]), op.constant([end]), op.constant([axis]))
        parts.append(getattr(op, reduce)(part, op.constant([axis]), keepdims=1))
    dims = [count if i == axis else d for i, d in enumerate(c.dims(x))]
    return c.shaped(op.Concat(*parts, axis=axis), dims)
