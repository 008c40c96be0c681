"""Data from `.npz` files, and from folders of `.npy` files."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.parts import PARTS
from surgery.errors import SurgeryError, nearest

__all__ = ["from_npz", "is_npy_folder", "npz_parts"]

_MAPPED = 64 * 2**20  # from how many bytes an array is read from its file when it is needed
_UNREADABLE = (zipfile.BadZipFile, ValueError, OSError, EOFError)


def is_npy_folder(path: Path) -> bool:
    """Whether `path` is a folder with examples in `.npy` files: ``x.npy``, ``x_train.npy`` …"""
    return path.is_dir() and any(path.glob("x*.npy"))


def npz_parts(path: Path) -> dict[str, str]:
    """Returns what the names of each part's arrays end with, after ``x`` and ``y``: ``{"train": "_train"}``.

    Raises:
        SurgeryError: The file is not readable, or has no array with examples.
    """
    names = _names(path)
    parts: dict[str, str] = {}
    for part, words in PARTS.items():
        for word in words:
            if any(name == f"x_{word}" or name.startswith(f"x_{word}_") for name in names):
                parts.setdefault(part, f"_{word}")
    named = {f"x{ending}" for ending in parts.values()}
    if any(n == "x" or (n.startswith("x_") and not any(n == s or n.startswith(f"{s}_") for s in named)) for n in names):
        parts["all"] = ""
    if not parts:
        raise SurgeryError(f"{path}: has no array x_train or x, but {', '.join(names)}{nearest('x_train', names)}")
    return parts


def from_npz(path: Path, model: ir.Model, part: str) -> Dataset:
    """Reads ``x_<part>`` and ``y_<part>``, or ``x`` and ``y`` for ``all``, and ``labels`` where it is, from a file, or
    from a folder with a `.npy` file of each name.

    For a model with several inputs or outputs, their names follow: ``x_train_ids``, ``y_train_box``. Large examples are
    mapped into memory, and read when they are needed, where the file has them uncompressed.

    Raises:
        SurgeryError: The file is not readable, lacks an array, or does not fit the model.
    """
    names, ending = _names(path), npz_parts(path)[part]
    inputs = _arrays(names, f"x{ending}", [str(i.name) for i in model.graph.inputs])
    outputs = _arrays(names, f"y{ending}", [str(o.name) for o in model.graph.outputs])
    if inputs is None:
        raise SurgeryError(f"{path}: has no array x{ending}, but {', '.join(names)}")
    if outputs is None:
        raise SurgeryError(f"{path}: has no array y{ending} (the targets of x{ending}), but {', '.join(names)}")
    try:
        x, y = (
            _read(path, arrays, map_large)
            if isinstance(arrays, str)
            else {key: _read(path, name, map_large) for key, name in arrays.items()}
            for arrays, map_large in ((inputs, True), (outputs, False))
        )
        labels = [str(name) for name in _read(path, "labels", False)] if "labels" in names else None
        return from_arrays(x, y, model, labels, part)
    except _UNREADABLE as error:
        raise SurgeryError(f"{path}: cannot be read ({error})") from error


def _names(path: Path) -> list[str]:
    if path.is_dir():
        return sorted(file.stem for file in path.glob("*.npy"))
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except _UNREADABLE as error:
        raise SurgeryError(f"{path}: is not a readable .npz file ({error})") from error


def _arrays(names: list[str], stem: str, values: list[str]) -> str | dict[str, str] | None:
    """The array named `stem`, or those named ``stem_value``, by value."""
    if stem in names:
        return stem
    return {value: f"{stem}_{value}" for value in values if f"{stem}_{value}" in names} or None


def _read(path: Path, name: str, map_large: bool) -> np.ndarray:
    if path.is_dir():
        file = path / f"{name}.npy"
        large = map_large and file.stat().st_size >= _MAPPED
        return np.load(file, mmap_mode="r" if large else None, allow_pickle=False)
    mapped = _map(path, name) if map_large else None
    if mapped is not None:
        return mapped
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[name])


def _map(path: Path, name: str) -> np.ndarray | None:
    """An array mapped from an archive; None where it is small, compressed, or not of plain numbers."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < _MAPPED:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # of the local file header: the lengths of its name and extra field
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            return None
        shape, fortran, dtype = readers[version](file)
        if dtype.hasobject:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
