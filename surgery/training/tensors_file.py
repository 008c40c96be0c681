"""Named arrays in one file, in the safetensors format (github.com/huggingface/safetensors, "Format").

Eight bytes with the length of a JSON header, which says type, shape and place of each array; then the arrays.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import SurgeryError
from surgery.io import replacing

__all__ = ["read_tensors", "write_tensors"]

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(text): name for name, text in _TYPES.items()}
_MOST = 100_000_000  # bytes of a header, as the format has it


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes `path` at once: whatever happens meanwhile, there is the old file or the new one, whole.

    Args:
        path: The file.
        arrays: The arrays.
        metadata: Texts by name, which go along.

    Raises:
        SurgeryError: The file cannot be written, as where the disk is full. What was there before is left.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        file.flush()
        os.fsync(file.fileno())  # before it gets its name: a crash of the machine must not leave a name without content
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the names in `folder` last, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file that `write_tensors` wrote.

    Returns:
        The arrays and the texts, by name.

    Raises:
        SurgeryError: The file cannot be read, or is not whole.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > min(_MOST, len(data) - 8):
            raise ValueError("its header is cut off")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        return {name: _array(data, 8 + length, entry) for name, entry in header.items()}, metadata
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SurgeryError(f"{path}: is not a whole safetensors file ({error}); remove it") from error


def _array(data: bytes, start: int, entry: Any) -> np.ndarray:
    shape, dtype = [int(d) for d in entry["shape"]], np.dtype(_TYPES[entry["dtype"]])
    first, last = (int(place) for place in entry["data_offsets"])
    count = math.prod(shape)
    if count * dtype.itemsize != last - first or first < 0 or start + last > len(data):
        raise ValueError("its arrays are cut off")
    return np.frombuffer(data, dtype, count, start + first).reshape(shape).copy()
