"""Layers that bring data in: they become inputs. And the layer that is nothing but a parameter."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from converters.caffe.caffe_pb2 import BlobShape, LayerParameter
from converters.caffe.context import Context, Dim, layer

__all__: list[str] = []

_FREE = ("channels", "height", "width")


@layer("Input")
def input_layer(c: Context) -> list[ir.Value]:
    """One input for each top; the first dimension, the batch's, may have any size."""
    return _inputs(c, c.layer.input_param.shape)


@layer("DummyData")
def dummy_data(c: Context) -> list[ir.Value]:
    """Caffe fills it with numbers; here they come from outside."""
    param = c.layer.dummy_data_param
    shapes = list(param.shape) or [
        BlobShape(dim=dims) for dims in zip(param.num, param.channels, param.height, param.width, strict=False)
    ]
    return _inputs(c, shapes)


def _inputs(c: Context, shapes: Sequence[BlobShape]) -> list[ir.Value]:
    """One input for each top, of the shape of its place, or of the only shape."""
    tops = list(c.layer.top)
    if len(shapes) not in (0, 1, len(tops)):
        raise c.error(f"has {len(tops)} tops and {len(shapes)} shapes")
    found: list[list[int] | None] = [list(s.dim) for s in shapes] or [None]
    found = found * len(tops) if len(found) == 1 else found
    return [_input(c, top, shape) for top, shape in zip(tops, found, strict=True)]


def _input(c: Context, top: str, shape: Sequence[Dim] | None) -> ir.Value:
    shape = c.builder.override_shape(top, shape)
    if shape is None:
        raise c.error(f"does not say the shape of {top!r}; give it with `shape`, as 3x224x224, without the batch")
    for size in shape:
        if isinstance(size, int) and not 0 < size < 2**31:
            raise c.error(f"declares the shape {'×'.join(str(d) for d in shape)} for {top!r}")
    dims = list(shape)
    if dims and isinstance(dims[0], int):
        dims[0] = c.builder.batch_dim(dims[0], top)
    return c.builder.add_input(top, dims)


@layer("Data", "ImageData", "WindowData", "MemoryData", "HDF5Data", "AnnotatedData")
def data(c: Context) -> list[ir.Value]:
    """The first top is an input, images as a rule; the others, labels, are inputs where a layer needs them."""
    if not c.layer.top:
        raise c.error("has no top")
    batch = max(1, _batch_size(c.layer))
    first, *others = c.layer.top
    images = _input(c, first, [batch, *_image_shape(c)])
    tops = [images, *(_input(c, top, [batch]) for top in others)]
    for value in tops:
        c.builder.data[value] = c.layer
    return tops


def _batch_size(layer: LayerParameter) -> int:
    for name in ("data_param", "image_data_param", "window_data_param", "memory_data_param", "hdf5_data_param"):
        if layer.HasField(name):
            return int(getattr(layer, name).batch_size)
    return 1


def _image_shape(c: Context) -> list[Dim]:
    """Channels, height and width: of the definition as far as it has them, else free."""
    layer, transform = c.layer, c.layer.transform_param
    if layer.type == "MemoryData":
        param = layer.memory_data_param
        return [param.channels, transform.crop_size or param.height, transform.crop_size or param.width]
    mean = c.builder.mean_image(layer)
    height: Dim = layer.image_data_param.new_height or (mean.shape[1] if mean is not None else _FREE[1])
    width: Dim = layer.image_data_param.new_width or (mean.shape[2] if mean is not None else _FREE[2])
    channels: Dim = _FREE[0]
    if transform.force_gray or (layer.type == "ImageData" and not layer.image_data_param.is_color):
        channels = 1
    elif mean is not None:
        channels = mean.shape[0]
    elif len(transform.mean_value) > 1:
        channels = len(transform.mean_value)
    elif transform.force_color or layer.type in ("ImageData", "WindowData"):
        channels = 3
    else:  # what the weights say; else nets that crop are for photographs
        channels = c.builder.channels_read(c.layer.top[0]) or (3 if transform.crop_size else channels)
    if transform.crop_size:
        height = width = transform.crop_size
    return [channels, height, width]


@layer("Parameter")
def parameter(c: Context) -> ir.Value:
    """A parameter as a top."""
    return c.parameter(0, "weight", list(c.layer.parameter_param.shape.dim), None)
