"""A data set: examples and targets, split, shuffled and served in batches that are ready for the network."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

__all__ = ["Arrays", "Batch", "Dataset", "take"]

Arrays = np.ndarray | dict[str, np.ndarray]  # one array, or several by the name of the input or output
Batch = tuple[Arrays, Arrays]


def _as_floats(examples: Arrays) -> Arrays:
    assert isinstance(examples, np.ndarray)
    return np.ascontiguousarray(examples, np.float32)


def take(arrays: Arrays, indices: np.ndarray) -> Arrays:
    """Returns the rows at `indices` of each array."""
    return {k: a[indices] for k, a in arrays.items()} if isinstance(arrays, dict) else arrays[indices]


def _lengths(arrays: Arrays) -> set[int]:
    return {len(a) for a in arrays.values()} if isinstance(arrays, dict) else {len(arrays)}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples and their targets.

    Attributes:
        examples: `[N, …]`; raw images (uint8 `[N, H, W]` or `[N, H, W, C]`), or numbers as the network takes them; for
            a network with several inputs, an array for each by its name.
        targets: `[N]` class numbers, or `[N, …]` floats; for several outputs, an array for each by its name.
        prepare: Turns some examples into the network's input.
        labels: The class names, in the order of the class numbers, where the source has them.
        part: Which part of its source it is: ``train``, ``val`` or ``test``; ``all`` of one that is not divided.
        skipped: The files that were left out because they do not decode.
        assumed: The preprocessing of raw images that the model says nothing of, by input.
    """

    examples: Arrays
    targets: Arrays
    prepare: Callable[[Arrays], Arrays] = _as_floats
    labels: tuple[str, ...] | None = None
    part: str = "all"
    skipped: tuple[str, ...] = ()
    assumed: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = _lengths(self.examples), _lengths(self.targets)
        if lengths[0] != lengths[1] or len(lengths[0]) != 1:
            have, want = (" and ".join(map(str, sorted(some))) for some in lengths)
            raise SurgeryError(f"there are {have} examples but {want} targets")

    def __len__(self) -> int:
        return next(iter(_lengths(self.examples)))

    def subset(self, indices: np.ndarray) -> Dataset:
        """Returns the examples at `indices`."""
        return dataclasses.replace(self, examples=take(self.examples, indices), targets=take(self.targets, indices))

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Splits off `share` of the examples, drawn with `seed`; of each class its share where targets are classes.

        Returns:
            What remains, and what was split off.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        count = round(share * len(self))
        classes = self.targets
        if not isinstance(classes, dict) and np.issubdtype(classes.dtype, np.integer) and classes.ndim == 1:
            # The rank of each example within its class, as a fraction: the smallest fractions are split off.
            place = np.empty(len(self))
            for number in np.unique(classes):
                members = order[classes[order] == number]
                place[members] = (np.arange(len(members)) + 0.5) / len(members)
            order = order[np.argsort(place[order], kind="stable")]
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def check_finite(self) -> None:
        """Checks that the examples are finite numbers, as float32 where they are floats.

        Raises:
            SurgeryError: Some are not; the message counts them and names the first by their indices.
        """
        arrays = self.examples if isinstance(self.examples, dict) else {"": self.examples}
        for name, array in arrays.items():
            if not np.issubdtype(array.dtype, np.floating):
                continue
            with np.errstate(over="ignore"):
                bad = [i for i, example in enumerate(array) if not np.isfinite(example.astype(np.float32)).all()]
            if bad:
                some = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                where = f" of input {name!r}" if name else ""
                raise SurgeryError(
                    f"examples {some} (counted from 0){where} are not finite numbers; leave them out or mend them"
                )

    def batches(self, size: int, shuffle: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yields ``(inputs, targets)`` of `size` examples, the last one smaller; the next is prepared meanwhile.

        Args:
            size: Examples in a batch.
            shuffle: Draws the order; in the order they are in without one.
        """
        order = np.arange(len(self)) if shuffle is None else shuffle.permutation(len(self))
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return _prefetch(lambda part: (self.prepare(take(self.examples, part)), take(self.targets, part)), parts)


def _prefetch(make: Callable[[np.ndarray], Batch], parts: list[np.ndarray], ahead: int = 2) -> Iterator[Batch]:
    """Makes batches in a thread, `ahead` of the one that is in use."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
    stop = threading.Event()

    def work() -> None:
        try:
            for part in parts:
                if stop.is_set():
                    return
                ready.put(make(part))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # free a place, so that the worker sees the stop
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                thread.join(timeout=0.01)
