"""What Caffe's data layers do with images, as preprocessing metadata."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from converters.caffe.caffe_pb2 import BlobProto, LayerParameter, NetParameter
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

__all__ = ["find_mean", "find_transformation", "preprocessing", "read_mean"]

_MOST_BYTES = 2**26  # a mean image of 224² has 600 KB
_IMAGES = {"Data", "ImageData", "WindowData", "AnnotatedData"}
_log = logging.getLogger(__name__)


def read_mean(path: Path) -> np.ndarray:
    """Returns the mean image [C, H, W] of a ``.binaryproto``.

    Raises:
        SurgeryError: It is not one.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise SurgeryError(f"{path}: has {path.stat().st_size / 2**20:.0f} MB, too much for a mean image")
    try:
        blob = BlobProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise SurgeryError(f"{path}: is damaged or not a mean image ({error})") from error
    shape = list(blob.shape.dim)[-3:] if blob.HasField("shape") else [blob.channels, blob.height, blob.width]
    data = np.array(blob.data or blob.double_data, np.float32)
    if len(shape) != 3 or min(shape) < 1 or np.prod(shape, dtype=object) != len(data):
        raise SurgeryError(f"{path}: declares a mean image {shape} and holds {len(data)} numbers; it is damaged")
    return data.reshape(shape)


def find_mean(layer: LayerParameter, folder: Path) -> np.ndarray | None:
    """Returns the mean image that a data layer names, if it lies where the layer says or next to the definition."""
    name = layer.transform_param.mean_file
    if not name:
        return None
    for path in (folder / name, folder / Path(name).name, Path(name)):
        if path.is_file():
            return read_mean(path)
    _log.warning(
        "%s, the mean image of layer %r, is neither there nor in %s: the model says nothing of its preprocessing",
        *(name, layer.name, folder),
    )
    return None


def find_transformation(net: NetParameter) -> LayerParameter | None:
    """Returns the first data layer of `net` that says how it transforms images."""
    return next((layer for layer in net.layer if layer.HasField("transform_param")), None)


def preprocessing(layer: LayerParameter, dims: list[int | str], mean: np.ndarray | None) -> Preprocessing | None:
    """Returns how images become the input `dims` ([N, C, H, W]) behind a data layer; None where that is not known.

    Caffe reads images as BGR and computes (pixels − mean) · scale. A mean image counts as its channels' means. An
    ImageData layer resizes images to new_height and new_width first, and the middle is cut out.
    """
    transform = layer.transform_param
    if len(dims) != 4 or dims[1] not in (1, 3) or not (layer.type in _IMAGES or layer.HasField("transform_param")):
        return None
    if transform.mean_file and mean is None:
        return None
    means = list(transform.mean_value) or [0.0]
    if mean is not None:
        means = [float(m) for m in mean.mean(axis=(1, 2), dtype=np.float64)]
    scale = float(np.format_float_positional(np.float32(transform.scale)))
    height, width = dims[2:]
    known = isinstance(height, int) and isinstance(width, int)
    resize = layer.image_data_param.new_height, layer.image_data_param.new_width
    fits = known and resize[0] >= int(height) and resize[1] >= int(width)
    return Preprocessing(
        color="gray" if dims[1] == 1 else "bgr",
        size=(int(height), int(width)) if known else None,
        scale=scale,
        mean=tuple(m * scale for m in means),
        resize=resize if fits else None,
    )
