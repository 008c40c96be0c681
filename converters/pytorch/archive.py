"""PyTorch's files as zip archives: which kind one is, and that it holds no more than it says."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from surgery.errors import SurgeryError

__all__ = ["Kind", "kind_of", "open_archive"]

Kind = Literal["program", "torchscript", "pickle", "other"]
_MOST_ENTRIES, _MOST_PACKED = 1_000_000, 2**26  # the latter in bytes: code, which TorchScript compresses


def kind_of(path: Path) -> Kind:
    """What `path` is: torch.export's program, TorchScript, a pickle (a state_dict, or anything), or something else."""
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        return "pickle" if start[:1] == b"\x80" else "other"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return "other"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "program"
    return "torchscript" if "constants.pkl" in names else "pickle" if "data.pkl" in names else "other"


def open_archive(path: Path) -> zipfile.ZipFile:
    """Opens `path`. PyTorch stores what holds numbers as it is, so all of it together is no bigger than the file.

    Raises:
        SurgeryError: It is truncated, or would be far bigger than it is.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise SurgeryError(f"{path}: is truncated or damaged ({error}); copy it again") from error
    entries = archive.infolist()
    stored = sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED)
    packed = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
    if stored > path.stat().st_size or packed > _MOST_PACKED or len(entries) > _MOST_ENTRIES:
        archive.close()
        raise SurgeryError(
            f"{path}: its entries are far bigger than the file, which PyTorch's never are; save it again"
        )
    return archive
