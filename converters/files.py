"""Opening files of any size."""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["Buffer", "open_buffer"]

Buffer = bytes | mmap.mmap

_MAPPED = 2**26  # bytes; smaller files are read, so that they may be overwritten while their model is in use


def open_buffer(path: Path) -> Buffer:
    """Returns the bytes of `path`; a big file is mapped into memory."""
    if path.stat().st_size < _MAPPED:
        return path.read_bytes()
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
