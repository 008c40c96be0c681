"""The frozen-prefix cache: what the frozen part makes of each example, computed once and read in every epoch.

The values are kept in memory, or in a memory-mapped file where they are too large for that. A file in a folder of the
user's is named after a digest of the prefix, its weights, the data and how they are prepared, so that what is read is
never that of another network or of other data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from surgery import runtime
from surgery.data import Dataset
from surgery.errors import SurgeryError
from surgery.training.fingerprint import model_digests
from surgery.training.prefix import Split
from surgery.training.settings import CacheSettings

__all__ = ["Features", "Prefix", "Uncached", "features"]

_FORMAT = 1
_BATCH = 32
_GB = 10**9
_INDEX = "index.json"
Spec = tuple[np.dtype, tuple[int, ...]]  # of an array: all examples' values of a name
Values = dict[str, np.ndarray]


class Uncached(Exception):
    """A cache is of no use; the message says why."""


@dataclasses.dataclass(frozen=True)
class Features:
    """What the frozen prefix makes of some data.

    Attributes:
        data: The data, with the values at the cut for examples.
        size: How many bytes they have.
        place: Where they are, in words.
    """

    data: Dataset
    size: int
    place: str


@dataclasses.dataclass(frozen=True)
class _AsFloats:
    """Gives a network float32 of what is kept in half the size."""

    def __call__(self, examples: Any) -> Any:
        return {
            name: np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else None)
            for name, array in examples.items()
        }


class Prefix:
    """Runs the frozen prefix.

    Args:
        split: The network in two.
        providers: Execution providers.
        progress: Called with how many examples are done, and of how many; in the end with all, however it ends.
    """

    def __init__(
        self, split: Split, providers: list[str], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.split, self._providers, self._progress = split, providers, progress
        self._inputs = [str(v.name) for v in split.prefix.graph.inputs]
        self._outputs = [str(v.name) for v in split.prefix.graph.outputs]
        self._checked = False

    @functools.cached_property
    def _session(self) -> Any:
        return runtime.session(self.split.prefix, self._providers)

    @functools.cached_property
    def digest(self) -> str:
        """What its results depend on, data aside."""
        return json.dumps([model_digests(self.split.prefix), list(self.split.cut), runtime.describe()])

    def values(self, data: Dataset) -> Iterator[Values]:
        """Yields the values at the cut, batch by batch.

        Raises:
            Uncached: They are not an example's own.
        """
        try:
            for number, (examples, _) in enumerate(data.batches(_BATCH)):
                self._progress(number * _BATCH, len(data))
                given = examples if isinstance(examples, dict) else {self._inputs[0]: examples}
                feed = {name: given[name] for name in self._inputs}
                found = self._session.run(self._outputs, feed)
                if not self._checked:
                    self._check_alone(feed, found)
                    self._checked = True
                yield given | dict(zip(self._outputs, found, strict=True))
        finally:
            self._progress(len(data), len(data))

    def _check_alone(self, feed: Values, found: list[np.ndarray]) -> None:
        """Makes sure that an example's values are its own, whatever else is in the batch."""
        for row in range(min(2, len(found[0]))):
            alone = self._session.run(self._outputs, {name: array[row : row + 1] for name, array in feed.items()})
            for one, among in zip(alone, found, strict=True):
                largest = max(1.0, float(np.abs(among[row]).max()))
                if not np.allclose(one[0], among[row], rtol=1e-3, atol=1e-4 * largest):
                    raise Uncached("it mixes the examples of a batch")


def features(prefix: Prefix, data: Dataset, settings: CacheSettings) -> Features:
    """Computes what the prefix makes of `data`, or finds it where an earlier training has left it.

    Raises:
        Uncached: It changes from epoch to epoch, or is too much.
        SurgeryError: The folder of the settings cannot be written.
    """
    if not data.deterministic:
        raise Uncached("augmentation makes other examples each epoch")
    specs: dict[str, Spec] = {}
    for name, (dtype, shape) in prefix.split.cut.items():
        kept = np.dtype(np.float16) if settings.float16 and dtype.numpy() == np.float32 else np.dtype(dtype.numpy())
        specs[name] = kept, (len(data), *shape)
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values())
    key = _key(prefix, data, specs) if settings.folder is not None else None
    if settings.folder is not None and key is not None:
        return _in_folder(Path(settings.folder) / key, prefix, data, settings, specs, size)
    unknown = ", not in a folder, as the data do not say what they are" if settings.folder is not None else ""
    if size <= settings.memory * _GB:
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in specs.items()}
        row = 0
        for values in _narrowed(prefix, data, specs):
            count = len(next(iter(values.values())))
            for name, value in values.items():
                arrays[name][row : row + count] = value
            row += count
        return _features(data, arrays, size, f"in memory{unknown}")
    _check_room(size, settings, Path(tempfile.gettempdir()))
    with _disk_full(tempfile.gettempdir()), contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(tempfile.TemporaryFile()) for name in specs
        }  # nameless: gone with the process
        _write(files, _narrowed(prefix, data, specs))
        maps = {n: np.memmap(files[n], dtype, "r", shape=shape) for n, (dtype, shape) in specs.items()}
    return _features(data, maps, size, f"in a memory-mapped file{unknown}")


def _features(data: Dataset, arrays: Mapping[str, np.ndarray], size: int, place: str) -> Features:
    return Features(dataclasses.replace(data, examples=dict(arrays), prepare=_AsFloats()), size, place)


def _in_folder(
    folder: Path,
    prefix: Prefix,
    data: Dataset,
    settings: CacheSettings,
    specs: dict[str, Spec],
    size: int,
) -> Features:
    """Reads the arrays of `folder`, which is made first where it is not there."""
    found = _read(folder, specs)
    if found is not None:
        return _features(data, found, size, f"read from {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(size, settings, folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise SurgeryError(f"{folder.parent}: the cache cannot be written ({error.strerror})") from error
    try:
        with _disk_full(folder.parent), contextlib.ExitStack() as stack:
            files = {n: stack.enter_context((aside / str(i)).open("wb")) for i, n in enumerate(specs)}
            _write(files, _narrowed(prefix, data, specs))
            (aside / _INDEX).write_text(json.dumps(_index(specs)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # one that is not whole
        with contextlib.suppress(OSError):  # another training was faster
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    found = _read(folder, specs)
    if found is None:
        raise SurgeryError(f"{folder}: the cache cannot be read again; remove the folder")
    return _features(data, found, size, f"in {folder}")


def _index(specs: dict[str, Spec]) -> list[list[Any]]:
    return [[name, dtype.str, list(shape)] for name, (dtype, shape) in specs.items()]


def _read(folder: Path, specs: dict[str, Spec]) -> Values | None:
    """The arrays of `folder`, memory-mapped; None where they are not there or not whole."""
    try:
        if json.loads((folder / _INDEX).read_text(encoding="utf-8")) != _index(specs):
            return None
        return {n: np.memmap(folder / str(i), d, "r", shape=shape) for i, (n, (d, shape)) in enumerate(specs.items())}
    except (OSError, ValueError):
        return None


def _key(prefix: Prefix, data: Dataset, specs: dict[str, Spec]) -> str | None:
    """What the arrays are of, as a file name; None of data that do not say what they are."""
    print_ = data.fingerprint()
    if print_ is None:
        return None
    parts = [_FORMAT, prefix.digest, print_, _index(specs)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _write(files: Mapping[str, IO[bytes]], batches: Iterator[Values]) -> None:
    for values in batches:
        for name, value in values.items():
            files[name].write(np.ascontiguousarray(value).data)
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())


def _check_room(size: int, settings: CacheSettings, folder: Path) -> None:
    if size > settings.disk * _GB:
        raise Uncached(f"it would be {size / _GB:.1f} GB, and cache.disk allows {settings.disk:g}")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Uncached(f"it would be {size / _GB:.1f} GB, and {folder} has {free / _GB:.1f} left")


@contextlib.contextmanager
def _disk_full(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Uncached(f"{folder} is full") from error
        raise SurgeryError(f"{folder}: the cache cannot be written ({error.strerror})") from error


def _narrowed(prefix: Prefix, data: Dataset, specs: dict[str, Spec]) -> Iterator[Values]:
    for values in prefix.values(data):
        yield {name: _narrow(values[name], dtype) for name, (dtype, _) in specs.items()}


def _narrow(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    if np.isinf(kept).any():
        raise Uncached(f"float16 cannot hold its values, which go up to {np.abs(values).max():.3g}")
    return kept
