"""HDF5 files read with care: nothing outside the file is opened, and no array is larger than its file can hold.

HDF5 may link to other files, store arrays in them, and declare arrays that a few bytes are said to fill.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from converters.files import check_start
from converters.heaps import check_heaps
from converters.registry import load_extra
from surgery.errors import SurgeryError

__all__ = ["Array", "Hdf5", "open_hdf5"]

_MOST_RATIO = 100  # an array that much larger than its file is no network's weights, however compressed
_FAILURES = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError)


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
    """An array of numbers that is read when it is needed.

    Attributes:
        name: Where it is, for messages.
        shape: Its shape.
        read: Returns its numbers as float32.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Hdf5:
    """One open file; `open_hdf5` makes it.

    Attributes:
        path: The file, for messages.
        root: Its outermost group.
    """

    def __init__(self, path: Path, file: Any, size: int, h5py: Any) -> None:
        self.path = path
        self.root = file
        self._size = size
        self._h5py = h5py

    def damaged(self, error: Exception | str) -> SurgeryError:
        return SurgeryError(f"{self.path}: is damaged or not HDF5 ({' '.join(str(error).split())}); copy it again")

    def _own(self, group: Any, name: str) -> Any:
        """``group[name]`` where it lies in this file; None where it does not exist."""
        item = group
        for part in name.split("/"):
            if not part:
                continue
            if not isinstance(item, self._h5py.Group):
                return None
            link = item.get(part, getlink=True)
            if link is None:
                return None
            if not isinstance(link, self._h5py.HardLink):
                raise SurgeryError(f"{self.path}: {item.name}/{part} is a link to elsewhere, which is not followed")
            item = item[part]
        return item

    def group(self, parent: Any, name: str) -> Any:
        """The group `name` in `parent`, or None."""
        try:
            found = self._own(parent, name)
        except _FAILURES as error:
            raise self.damaged(error) from error
        return found if isinstance(found, self._h5py.Group) else None

    def keys(self, group: Any) -> list[str]:
        """The names in `group`."""
        try:
            return list(group)
        except _FAILURES as error:
            raise self.damaged(error) from error

    def array(self, parent: Any, name: str) -> Array:
        """The array `name` in `parent`.

        Raises:
            SurgeryError: There is none, or this file does not hold its numbers.
        """
        try:
            data = self._own(parent, name)
            if not isinstance(data, self._h5py.Dataset):
                raise SurgeryError(f"{self.path}: has no array {name!r} in {parent.name}")
            held = not (data.external or data.is_virtual) and data.shape is not None
            if not held or math.prod(data.shape) * data.dtype.itemsize > _MOST_RATIO * self._size:
                raise SurgeryError(f"{self.path}: {data.name} is not an array that the file itself holds")
            shape = tuple(int(d) for d in data.shape)
        except _FAILURES as error:
            raise self.damaged(error) from error
        return Array(f"{self.path}: {data.name}", shape, lambda: self._read(data))

    def _read(self, data: Any) -> np.ndarray:
        try:
            return np.asarray(data[()], np.float32)
        except _FAILURES as error:
            raise self.damaged(error) from error

    def text(self, group: Any, name: str) -> str | None:
        """The attribute `name` of `group` as text, or None."""
        value = self._attribute(group, name)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        return None if value is None else str(value)

    def texts(self, group: Any, name: str) -> list[str] | None:
        """The attribute `name` of `group` as a list of texts, or None; Keras cuts long ones up into ``name0``, …."""
        value = self._attribute(group, name)
        values: list[Any] = []
        if value is None:
            while (part := self._attribute(group, f"{name}{len(values)}")) is not None:
                values.append(part)
            if not values:
                return None
        else:
            values = [value]
        parts = [each for part in values for each in np.asarray(part).reshape(-1).tolist()]
        return [p.decode("utf-8", errors="replace") if isinstance(p, bytes) else str(p) for p in parts]

    def _attribute(self, group: Any, name: str) -> Any:
        try:
            if name not in group.attrs:
                return None
            attribute = group.attrs.get_id(name)
            if math.prod(attribute.shape) * attribute.dtype.itemsize > _MOST_RATIO * self._size:
                raise SurgeryError(f"{self.path}: the attribute {name} is larger than the file")
            return group.attrs[name]
        except _FAILURES as error:
            raise self.damaged(error) from error


@contextlib.contextmanager
def open_hdf5(path: Path, file: BinaryIO | None = None) -> Iterator[Hdf5]:
    """Opens an HDF5 file.

    Args:
        path: The file.
        file: What to read in its place; `path` is then its name in messages.

    Raises:
        SurgeryError: h5py is not installed, or it is not an HDF5 file.
    """
    h5py = load_extra("h5py", "keras", f"{path}: reading HDF5")
    if file is None:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(64)
            check_heaps(path, stream)
        _check_start(path, start)
    else:
        size = file.seek(0, 2)
        check_heaps(path, file)
    try:
        opened = h5py.File(file if file is not None else path, "r")
    except _FAILURES as error:
        raise SurgeryError(f"{path}: is damaged or not HDF5 ({' '.join(str(error).split())}); copy it again") from error
    with opened:
        yield Hdf5(path, opened, size, h5py)


def _check_start(path: Path, start: bytes) -> None:
    check_start(path, start)
    if start.startswith(b"PK\x03\x04"):
        raise SurgeryError(f"{path}: is a zip file; a Keras 3 model is named .keras")
    if start.startswith(b"\x80"):
        raise SurgeryError(f"{path}: is a Python pickle, which is not read: it could run anything")
