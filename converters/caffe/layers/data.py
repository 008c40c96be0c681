"""Layers that bring data in: they become inputs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []


@layer("Input")
def input_layer(c: Context) -> list[ir.Value]:
    """One input for each top; the first dimension, the batch's, may have any size."""
    shapes: list[list[int] | None] = [list(s.dim) for s in c.layer.input_param.shape]
    tops = list(c.layer.top)
    if len(shapes) == 1:
        shapes *= len(tops)
    if len(shapes) not in (0, len(tops)):
        raise c.error(f"has {len(tops)} tops and {len(shapes)} shapes")
    shapes = shapes or [None] * len(tops)
    return [_input(c, top, shape) for top, shape in zip(tops, shapes, strict=True)]


def _input(c: Context, top: str, shape: Sequence[Dim] | None) -> ir.Value:
    shape = c.builder.override_shape(top, shape)
    if shape is None:
        raise c.error(f"does not say the shape of {top!r}; give it with `shape`, as 3x224x224, without the batch")
    for size in shape:
        if isinstance(size, int) and not 0 < size < 2**31:
            raise c.error(f"declares the shape {'×'.join(str(d) for d in shape)} for {top!r}")
    dims = list(shape)
    if len(dims) > 1 and isinstance(dims[0], int):
        dims[0] = c.builder.batch_dim(dims[0], top)
    return c.builder.add_input(top, dims)
