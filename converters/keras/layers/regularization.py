"""Dropout and its family: what switches off at inference, and stays in the graph for training."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor

__all__: list[str] = []


@layer("Dropout")
def dropout(c: Context) -> Tensor:
    """Drops single numbers or, with a noise shape, all along the axes where that is 1."""
    noise = c.get("noise_shape")
    if noise is None:
        return c.like(c.x, _dropout(c, c.x.value))
    if not isinstance(noise, list) or len(noise) != c.x.rank:
        raise c.error(f"noise_shape is {noise!r} and must have {c.x.rank} sizes")
    return _together(c, {axis for axis, size in enumerate(noise) if size == 1 and c.x.dims[axis] != 1})


@layer("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
def spatial_dropout(c: Context) -> Tensor:
    """Drops whole channels (Tompson et al. 2015)."""
    first = c.layer.type != "SpatialDropout1D" and c.channels_first
    return _together(c, set(range(2, c.x.rank)) if first else set(range(1, c.x.rank - 1)))


@layer("StochasticDepth")
def stochastic_depth(c: Context) -> Tensor:
    """Drops all of an example's numbers (Huang et al. 2016), as ConvNeXt has it."""
    return _together(c, set(range(1, c.x.rank)), "drop_path_rate")


def _rate(c: Context, name: str) -> float:
    rate = c.number(name, 0.0)
    if not 0 <= rate <= 1:
        raise c.error(f"{name} is {rate:g} and must be from 0 to 1")
    return min(rate, float(np.nextafter(np.float32(1), np.float32(0))))


def _dropout(c: Context, value: ir.Value, name: str = "rate") -> ir.Value:
    y = c.op.Dropout(value, np.float32(_rate(c, name)), _name=c.name)
    assert isinstance(y, ir.Value)
    return y


def _together(c: Context, axes: set[int], rate: str = "rate") -> Tensor:
    """Drops all numbers along `axes` together: the input times ones of which some are dropped."""
    x, op = c.floats(c.x), c.op
    places = {x.axis(axis) for axis in axes}
    shape = op.Concat(
        *(op.constant([1]) if i in places else op.Shape(x.value, start=i, end=i + 1) for i in range(x.rank)), axis=0
    )
    ones = op.Expand(op.constant(np.ones((), np.float32)), shape)
    return c.like(x, op.Mul(x.value, _dropout(c, ones, rate)))


@layer("GaussianNoise", "GaussianDropout", "AlphaDropout")
def noise(c: Context) -> Tensor:
    """Nothing at inference; ONNX has no operator that only training would turn on."""
    c.note("its noise, which only training has, is left out")
    return c.x
