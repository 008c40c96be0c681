"""A check of the global heaps of HDF5 files: on damaged ones the HDF5 library (1.14.6) goes round for ever."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import BinaryIO

from surgery.errors import SurgeryError

__all__ = ["check_heaps"]

# HDF5 file format specification 3.0, III.E: signature, version 1, three zeros, the size; then objects, each with index,
# references, four zeros and size. Index 0 is the free space, whose size counts its own head.
_HEAP = b"GCOL\x01\0\0\0"
_HEAD, _SMALLEST = 16, 4096


def check_heaps(path: Path, file: BinaryIO) -> None:
    """Refuses a file with a heap whose objects do not lead to its end; leaves `file` at its beginning.

    Args:
        path: Its name, for messages.
        file: The file, open.

    Raises:
        SurgeryError: There is one.
    """
    file.seek(0)
    try:
        data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # in memory, or empty
        data = file.read()
    file.seek(0)
    place = data.find(_HEAP)
    while place >= 0:
        _check(path, data, place)
        place = data.find(_HEAP, place + 1)


def _check(path: Path, data: mmap.mmap | bytes, start: int) -> None:
    (size,) = struct.unpack_from("<Q", data[start + 8 : start + _HEAD].ljust(8, b"\0"))
    end = start + size
    if size < _SMALLEST or end > len(data):
        return  # bytes that only look like a heap, or which the library refuses
    place = start + _HEAD
    while place + _HEAD <= end:
        index, _, _, length = struct.unpack_from("<HHIQ", data[place : place + _HEAD])
        step = length if index == 0 else _HEAD + -(-length // 8) * 8
        if step < _HEAD or place + step > end:
            raise SurgeryError(f"{path}: is damaged (a heap of it, at byte {place}); copy it again")
        place += step
