"""Opening files of any size, and knowing those that are none of a framework's."""

from __future__ import annotations

import mmap
from pathlib import Path

from surgery.errors import SurgeryError

__all__ = ["Buffer", "check_start", "open_buffer"]

Buffer = bytes | mmap.mmap

_MAPPED = 2**26  # bytes; smaller files are read, so that they may be overwritten while their model is in use


def open_buffer(path: Path) -> Buffer:
    """Returns the bytes of `path`; a big file is mapped into memory."""
    if path.stat().st_size < _MAPPED:
        return path.read_bytes()
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_start(path: Path, start: bytes) -> None:
    """Refuses an empty file, and one that stands for another, by what it starts with.

    Raises:
        SurgeryError: It is one of these.
    """
    if not start:
        raise SurgeryError(f"{path}: is empty; copy it again")
    if start.startswith(b"version https://git-lfs"):
        raise SurgeryError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`")
