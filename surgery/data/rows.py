"""What examples are kept in: arrays, or what gives the rows that are asked for as arrays do."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np

__all__ = ["Arrays", "Examples", "LazyRows", "Rows", "Selected", "digest", "lengths", "select", "take"]


class Rows(Protocol):
    """Rows of numbers: an array, or anything that reads its rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


Arrays = np.ndarray | dict[str, np.ndarray]  # one array, or several by the name of the input or output
Examples = Rows | dict[str, Any]


class LazyRows:
    """Rows that are read when they are asked for; `shape`, `dtype`, `read` and `fingerprint` say of what.

    Indexing gives arrays: ``rows[3]`` one row, ``rows[[3, 1]]`` and ``rows[2:5]`` several.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    slow: bool = False  # whether reading a row takes long enough to be done in threads
    random: bool = False  # whether a row may be another when it is read again

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows at `indices`."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """What changes when the rows do; None where that is not known."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        single = isinstance(first, int | np.integer)
        within = (0 if single else slice(None), *rest)
        return self.read(self._found([first] if single else first))[within]

    def _found(self, index: Any) -> np.ndarray:
        """The numbers of the rows that `index` means."""
        count = len(self)
        if isinstance(index, slice):
            return np.arange(*index.indices(count))
        found = np.asarray(index)
        if found.dtype == bool or found.ndim != 1:
            return np.arange(count)[found]
        if len(found) and (found.min() < -count or found.max() >= count):
            raise IndexError(f"an index is beyond the {count} rows")
        return np.where(found < 0, found + count, found).astype(np.intp)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(np.arange(len(self))), dtype)


@dataclasses.dataclass(frozen=True)
class Selected(LazyRows):
    """Some of other rows, which are not read for it."""

    rows: Rows
    indices: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return len(self.indices), *self.rows.shape[1:]

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.rows.dtype

    @property
    def slow(self) -> bool:  # type: ignore[override]
        return getattr(self.rows, "slow", False)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return getattr(self.rows, "random", False)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows[self.indices[indices]])

    def fingerprint(self) -> str | None:
        of_rows = digest(self.rows)
        return None if of_rows is None else of_rows + str(digest(self.indices))


def lengths(arrays: Examples) -> set[int]:
    """How many rows there are in each."""
    return {len(a) for a in arrays.values()} if isinstance(arrays, dict) else {len(arrays)}


def take(arrays: Examples, indices: np.ndarray) -> Any:
    """Returns the rows at `indices` of each array."""
    if isinstance(arrays, dict):
        return {k: np.asarray(a[indices]) for k, a in arrays.items()}
    return np.asarray(arrays[indices])


def select(rows: Rows, indices: np.ndarray) -> Rows:
    """Returns the rows at `indices`, without reading those that are not in memory."""
    if isinstance(rows, Selected):
        return Selected(rows.rows, rows.indices[indices])
    if isinstance(rows, LazyRows | np.memmap):
        return Selected(rows, indices)
    return np.asarray(rows[indices])


def digest(rows: Rows) -> str | None:
    """A digest of the rows' content, of lazy ones of what says when it changes; None where nothing does."""
    if isinstance(rows, LazyRows):
        said = rows.fingerprint()
        return None if said is None else hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
    found = hashlib.blake2b(f"{rows.shape} {rows.dtype}".encode(), digest_size=16)
    for start in range(0, len(rows), 1024):  # a part at a time: a memory-mapped file may be larger than the memory
        found.update(np.asarray(rows[start : start + 1024]).tobytes())
    return found.hexdigest()
