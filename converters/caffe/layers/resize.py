"""Layers of forks that make images larger or smaller."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []


_MOST_PIXELS = 2**31


@layer("Interp")
def interp(c: Context) -> ir.Value:
    """Bilinear interpolation in which the corners' pixels stay in the corners (DeepLab's and PSPNet's)."""
    c.need(1)
    param, dims, op = c.layer.interp_param, c.dims(), c.op
    if c.rank() != 4:
        raise c.error(f"needs a bottom [N, C, H, W]; this one has {c.rank()} dimensions")
    if param.pad_beg > 0 or param.pad_end > 0:
        raise c.error("pad_beg and pad_end cut and must be 0 or less")
    x, sizes = c.x, dims[2:]
    if param.pad_beg or param.pad_end:
        cut = [s + param.pad_beg + param.pad_end if isinstance(s, int) else None for s in sizes]
        begin, end = [-param.pad_beg] * 2, [param.pad_end or 2**31] * 2
        x = c.shaped(op.Slice(x, op.constant(begin), op.constant(end), op.constant([2, 3])), [*dims[:2], *cut])
        sizes = c.dims(x)[2:]
    shrink, zoom = param.HasField("shrink_factor"), param.HasField("zoom_factor")
    if param.shrink_factor < 1 or param.zoom_factor < 1:
        raise c.error("shrink_factor and zoom_factor must be 1 or more")
    if param.HasField("height") and param.HasField("width") and shrink == zoom:
        new: list[Dim | None] = [param.height, param.width]
        target = op.constant([param.height, param.width])
    elif shrink or zoom:
        new = [((s - 1) // param.shrink_factor) * param.zoom_factor + 1 if isinstance(s, int) else None for s in sizes]
        less = op.Div(op.Sub(op.Shape(x, start=2), op.constant(1)), op.constant(param.shrink_factor))
        target = op.Add(op.Mul(less, op.constant(param.zoom_factor)), op.constant(1))
        if None not in new:
            target = op.constant([int(n) for n in new if n is not None])
    else:
        raise c.error("needs height and width, or zoom_factor, or shrink_factor")
    lead = op.Shape(x, start=0, end=2)
    y = op.Resize(
        x, None, None, op.Concat(lead, target, axis=0), mode="linear", coordinate_transformation_mode="align_corners"
    )
    return c.shaped(y, [*dims[:2], *new])


@layer("Upsample")
def upsample(c: Context) -> ir.Value:
    """SegNet's: numbers go back to where pooling, whose second top is the second bottom, found them.

    With one bottom, as YOLO's and other forks have it: each pixel is repeated ``scale`` times both ways.
    """
    param, dims, op = c.layer.upsample_param, c.dims(), c.op
    if c.rank() != 4 or len(c.bottoms) not in (1, 2):
        raise c.error("needs a bottom [N, C, H, W], and perhaps the places that pooling found")
    scales = [param.scale_h or param.scale, param.scale_w or param.scale]
    if len(c.bottoms) == 1:
        new: list[Dim | None] = [s * f if isinstance(s, int) else None for s, f in zip(dims[2:], scales, strict=True)]
        factors = op.constant(_floats([1, 1, *scales]))
        y = op.Resize(
            c.x, None, factors, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
        )
        return c.shaped(y, [*dims[:2], *new])
    if c.dims(c.bottoms[1]) != dims:
        raise c.error("its second bottom must have the first's shape: the places that pooling found")
    height = param.upsample_h or c.size(2) * scales[0] - param.pad_out_h
    width = param.upsample_w or c.size(3) * scales[1] - param.pad_out_w
    if height * width > _MOST_PIXELS:
        raise c.error(f"its output would have {height}×{width} pixels, more than any machine holds")
    flat = op.constant([0, 0, -1])
    lead = op.Shape(c.x, start=0, end=2)
    zeros = op.Expand(op.constant(_floats([0])), op.Concat(lead, op.constant([height * width]), axis=0))
    places = op.Cast(op.Reshape(c.bottoms[1], flat), to=ir.DataType.INT64)
    spread = op.ScatterElements(zeros, places, op.Reshape(c.x, flat), axis=2)
    return c.shaped(op.Reshape(spread, op.constant([0, 0, height, width])), [*dims[:2], height, width])


def _floats(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.float32)
