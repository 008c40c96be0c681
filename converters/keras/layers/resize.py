"""Layers that change an image's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__: list[str] = []


def _attributes(c: Context, name: str) -> dict[str, Any]:
    """ONNX's attributes for a way of interpolation; a pixel's place is its middle, as in TensorFlow 2."""
    how = c.choice("interpolation", ("nearest", "bilinear"), name)
    if how == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    return {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def _scaled(c: Context, x: ir.Value, factors: list[int], attributes: dict[str, Any]) -> ir.Value:
    scales = c.op.constant(np.asarray([1, 1, *factors], np.float32))
    y = c.op.Resize(x, None, scales, **attributes)
    assert isinstance(y, ir.Value)
    return y


@layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
def up_sampling(c: Context) -> Tensor:
    """Each pixel several times, or what lies between pixels."""
    rank = int(c.layer.type[-2])
    x = c.floats(c.x)
    value, dims = c.images(x, rank + 2), c.image_dims(x)
    factors = c.integers("size", rank, 2)
    attributes = _attributes(c, "nearest")
    if attributes["mode"] == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    sizes: list[Dim | None] = [d * f if isinstance(d, int) else None for d, f in zip(dims[2:], factors, strict=True)]
    return c.image(_scaled(c, value, factors, attributes), [*dims[:2], *sizes])


@layer("Resizing")
def resizing(c: Context) -> Tensor:
    """Images at another size."""
    x = c.floats(c.x)
    value, dims = c.images(x, 4), c.image_dims(x)
    for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if c.get(name, False):
            raise c.error(f"{name} cannot be converted")
    sizes = [c.integer("height"), c.integer("width")]
    op = c.op
    whole = op.Concat(op.Shape(value, start=0, end=2), op.constant(sizes), axis=0)
    y = op.Resize(value, None, None, whole, **_attributes(c, "bilinear"))
    return c.image(y, [*dims[:2], *sizes])
