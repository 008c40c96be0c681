"""Normalization by statistics of the batch, of each example, or of the data."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor

__all__: list[str] = []


@layer("BatchNormalization", variables="gamma?scale beta?center moving_mean moving_variance")
def batch_normalization(c: Context) -> Tensor:
    """BatchNormalization with its running statistics (Ioffe and Szegedy 2015)."""
    x = c.floats(c.x)
    axis = _one_axis(c, x)
    size = c.size(axis, x)
    scale, bias = (
        c.parameter(name, [size]) if c.has(name) else c.filled(name, [size], value)
        for name, value in (("gamma", 1.0), ("beta", 0.0))
    )
    mean, variance = c.parameter("moving_mean", [size]), c.parameter("moving_variance", [size])
    attributes = {"epsilon": c.number("epsilon", 1e-3), "momentum": c.number("momentum", 0.99)}
    value, moved = _with_axis_1(c, x, axis)
    y = c.op.BatchNormalization(value, scale, bias, mean, variance, _name=c.name, **attributes)
    return c.tensor(*_restored(c, x, y, axis, moved), moved=moved)


def _one_axis(c: Context, x: Tensor) -> int:
    axis = c.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    return c.axis(axis, x)


def _with_axis_1(c: Context, x: Tensor, axis: int) -> tuple[ir.Value, bool]:
    """The value of `x` with Keras's axis `axis` second, and whether that is the moved layout."""
    if axis == x.rank - 1 and x.rank > 2:
        return c.builder.layouts.get(x, True), True
    if axis == 1:
        return c.plain(x), False
    return c.op.Transpose(c.plain(x), perm=_order(x, axis)), False


def _order(x: Tensor, axis: int) -> list[int]:
    return [0, axis, *(i for i in range(1, x.rank) if i != axis)]


def _restored(c: Context, x: Tensor, y: ir.Value, axis: int, moved: bool) -> tuple[ir.Value, list[int | str]]:
    if not moved and axis != 1:
        y = c.op.Transpose(y, perm=[_order(x, axis).index(i) for i in range(x.rank)])
    return y, list(x.dims)


@layer("LayerNormalization", variables="gamma?scale beta?center")
def layer_normalization(c: Context) -> Tensor:
    """LayerNormalization over the last axes (Ba et al. 2016)."""
    x = c.floats(c.x)
    axes = c.get("axis", -1)
    axes = sorted(c.axis(a, x) for a in ([axes] if isinstance(axes, int) else axes))
    if axes != list(range(axes[0], x.rank)):
        raise c.error(f"normalizes over the axes {axes}, which are not the last; that cannot be converted")
    shape = [c.size(a, x) for a in axes]
    if c.get("rms_scaling", False):
        return _rms(c, x, axes, shape)
    scale = c.parameter("gamma", shape) if c.has("gamma") else c.filled("gamma", shape, 1.0)
    bias = c.parameter("beta", shape) if c.has("beta") else None
    epsilon = c.number("epsilon", 1e-3)
    y = c.op.LayerNormalization(c.plain(x), scale, bias, axis=axes[0] - x.rank, epsilon=epsilon, _name=c.name)
    return c.tensor(y, x.dims)


@layer("RMSNormalization", variables="scale")
def rms_normalization(c: Context) -> Tensor:
    """x / √(mean of x²) · scale (Zhang and Sennrich 2019)."""
    x = c.floats(c.x)
    axes = c.get("axis", -1)
    axes = sorted(c.axis(a, x) for a in ([axes] if isinstance(axes, int) else axes))
    return _rms(c, x, axes, [c.size(a, x) for a in axes], "scale", 1e-6)


def _rms(
    c: Context, x: Tensor, axes: list[int], shape: list[int], role: str = "gamma", epsilon: float = 1e-3
) -> Tensor:
    op, value = c.op, c.plain(x)
    squares = op.ReduceMean(op.Mul(value, value), op.constant(axes), keepdims=1)
    y = op.Div(value, op.Sqrt(op.Add(squares, c.number("epsilon", epsilon))))
    spread = [shape[axes.index(i)] if i in axes else 1 for i in range(axes[0], x.rank)]
    if c.has(role):
        y = op.Mul(y, c.parameter(role, shape, reshape=spread), _name=c.name)
    return c.tensor(y, x.dims)


@layer("GroupNormalization", variables="gamma?scale beta?center")
def group_normalization(c: Context) -> Tensor:
    """GroupNormalization (Wu and He 2018); -1 groups are as many as there are channels."""
    x = c.floats(c.x)
    axis = _one_axis(c, x)
    size = c.size(axis, x)
    groups = c.integer("groups", 32, least=-1)
    groups = size if groups == -1 else groups
    if groups < 1 or size % groups:
        raise c.error(f"{size} channels do not divide into {groups} groups")
    scale, bias = (
        c.parameter(name, [size]) if c.has(name) else c.filled(name, [size], value)
        for name, value in (("gamma", 1.0), ("beta", 0.0))
    )
    value, moved = _with_axis_1(c, x, axis)
    epsilon = c.number("epsilon", 1e-3)
    if x.rank == 2:
        value = c.op.Unsqueeze(value, c.op.constant([2]))
    y = c.op.GroupNormalization(value, scale, bias, num_groups=groups, epsilon=epsilon, _name=c.name)
    if x.rank == 2:
        y = c.op.Squeeze(y, c.op.constant([2]))
    return c.tensor(*_restored(c, x, y, axis, moved), moved=moved)


@layer("UnitNormalization")
def unit_normalization(c: Context) -> Tensor:
    """x / ‖x‖₂ along the axes."""
    x, op = c.floats(c.x), c.op
    axes = c.get("axis", -1)
    places = [x.axis(c.axis(a, x)) for a in ([axes] if isinstance(axes, int) else axes)]
    squares = op.ReduceSum(op.Mul(x.value, x.value), op.constant(sorted(places)), keepdims=1)
    return c.like(x, op.Div(x.value, op.Sqrt(op.Max(squares, 1e-12))))


@layer("Normalization", variables="mean?!mean variance?!mean count?!mean")
def normalization(c: Context) -> Tensor:
    """(x − mean) / max(√variance, 1e-7) by the data's statistics, which are in the file or in the arguments."""
    x = c.floats(c.x)
    axes = c.get("axis", [-1]) if "axis" in c.config else [-1]
    axes = sorted(c.axis(a, x) for a in ([axes] if isinstance(axes, int) else axes or []))
    shape = [c.size(a, x) for a in axes]
    if c.has("mean"):
        mean, variance = c.stored("mean", shape), c.stored("variance", shape)
    else:
        mean, variance = (_given(c, name, shape) for name in ("mean", "variance"))
    spread = [shape[axes.index(i)] if i in axes else 1 for i in range(x.rank)]
    mean, deviation = mean.reshape(spread), np.maximum(np.sqrt(variance), 1e-7).reshape(spread)
    center, scale = (c.array(n, a, x) for n, a in (("mean", mean), ("deviation", deviation)))
    if c.get("invert", False):
        return c.like(x, c.op.Add(c.op.Mul(x.value, scale), center))
    return c.like(x, c.op.Div(c.op.Sub(x.value, center), scale))


def _given(c: Context, name: str, shape: list[int]) -> np.ndarray:
    if math.prod(shape) > 2**24:
        raise c.error(f"its {name} would have {math.prod(shape):,} numbers")
    try:
        array = np.asarray(c.get(name), np.float32)
        return array.reshape(shape) if array.size == math.prod(shape) else np.broadcast_to(array.reshape(()), shape)
    except (TypeError, ValueError) as error:
        raise c.error(f"its {name} does not have the shape {shape} ({error})") from error


@layer("LayerScale", variables="gamma")
def layer_scale(c: Context) -> Tensor:
    """One factor for each channel (Touvron et al. 2021), as ConvNeXt has it."""
    x = c.floats(c.x)
    size = c.size(-1, x)
    ones = [1] * (x.rank - 2)
    shape = [1, size, *ones] if x.moved and not c.layer.shared else [size]
    value = x.value if len(shape) > 1 else c.plain(x)
    y = c.op.Mul(value, c.parameter("gamma", [size], reshape=shape), _name=c.name)
    return c.tensor(y, x.dims, moved=len(shape) > 1)
