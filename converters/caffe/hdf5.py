"""Caffe's other form of weights: HDF5, with each layer's blobs under ``data/<layer>/0``, ``1``, …."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters.caffe.wire import Blob
from converters.heaps import check_heaps
from surgery.errors import SurgeryError

__all__ = ["read_hdf5"]

_MOST_RATIO = 100  # an array that much larger than its file is no network's weights, however compressed


def read_hdf5(path: Path) -> dict[str, list[Blob]]:
    """Returns the blobs of a ``.caffemodel.h5`` by layer name. Links to other files are refused.

    Raises:
        SurgeryError: h5py is not installed, or the file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise SurgeryError(
            f"{path}: HDF5 weights need h5py; install it with: pip install 'onnx-surgery[caffe-hdf5]'"
        ) from error
    try:
        with path.open("rb") as stream:
            check_heaps(path, stream)
        with h5py.File(path, "r") as file:
            data = _own(path, file, "data", h5py)
            return {name: blobs for name in data if (blobs := _blobs(path, _own(path, data, name, h5py), h5py))}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise SurgeryError(f"{path}: is damaged or not HDF5 ({' '.join(str(error).split())}); copy it again") from error


def _own(path: Path, group: Any, name: str, h5py: Any) -> Any:
    """Returns ``group[name]`` where it lies in this file: links may point at any file of the machine."""
    if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise SurgeryError(f"{path}: has no {name!r} of its own; it is not a file of Caffe weights")
    return group[name]


def _blobs(path: Path, layer: Any, h5py: Any) -> list[Blob]:
    if not isinstance(layer, h5py.Group):
        raise SurgeryError(f"{path}: data has what is not a layer; it is not a file of Caffe weights")
    blobs = []
    for index in range(len(layer)):
        data = _own(path, layer, str(index), h5py)
        size = path.stat().st_size
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual or data.nbytes > _MOST_RATIO * size:
            raise SurgeryError(f"{path}: {data.name} is not an array that the file itself holds")
        blobs.append(Blob(data.shape, np.asarray(data, np.float32).reshape(-1)))
    return blobs
