"""HDF5 files with damaged heaps, on which the HDF5 library would go round for ever, are refused before it sees them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from converters.heaps import check_heaps
from surgery.errors import SurgeryError

h5py = pytest.importorskip("h5py")


def contents(values: np.ndarray | None = None) -> bytes:
    """A file with texts of any length, which are in a heap, and an array."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["config"] = "many words" * 20
        file["x"] = np.arange(9.0) if values is None else values
    return buffer.getvalue()


def objects(data: bytes) -> list[int]:
    """The places of the heap's objects."""
    place = data.index(b"GCOL") + 16
    found = []
    while True:
        found.append(place)
        index, _, _, size = struct.unpack_from("<HHIQ", data, place)
        if index == 0:
            return found
        place += 16 + -(-size // 8) * 8


def check(tmp_path: Path, data: bytes) -> None:
    check_heaps(Path("m.h5"), io.BytesIO(data))
    (tmp_path / "m.h5").write_bytes(data)
    with (tmp_path / "m.h5").open("rb") as file:
        check_heaps(tmp_path / "m.h5", file)
        assert file.tell() == 0


def test_whole_files(tmp_path: Path) -> None:
    check(tmp_path, contents())
    check(tmp_path, b"")
    check(tmp_path, contents(np.frombuffer(b"GCOL" * 100 + b"GCOL\x01\0\0\0" + bytes(24), np.uint8)))


@pytest.mark.parametrize("size", [0, 8, 2**63, 2**64 - 8])
@pytest.mark.parametrize("which", [0, -1])
def test_damaged_heaps(tmp_path: Path, size: int, which: int) -> None:
    data = bytearray(contents())
    place = objects(bytes(data))[which]
    if which == 0 and size in (0, 8):  # the next object is then in the middle of this one, where there are letters
        data[place + 16 : place + 64] = bytes(48)
    struct.pack_into("<Q", data, place + 8, size)
    with pytest.raises(SurgeryError, match=r"m\.h5: is damaged \(a heap of it"):
        check(tmp_path, bytes(data))
