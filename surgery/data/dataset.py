"""A data set: examples and targets, split, shuffled and served in batches that are ready for the network."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator

import numpy as np

from surgery.errors import SurgeryError

__all__ = ["Batch", "Dataset"]

Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples and their targets.

    Attributes:
        examples: `[N, …]`; raw images (uint8 `[N, H, W]` or `[N, H, W, C]`), or floats as the network takes them.
        targets: `[N]` class numbers, or `[N, …]` floats.
        prepare: Turns some examples into the network's input, float32.
        labels: The class names, in the order of the class numbers, where the source has them.
    """

    examples: np.ndarray
    targets: np.ndarray
    prepare: Callable[[np.ndarray], np.ndarray] = lambda examples: np.ascontiguousarray(examples, np.float32)
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.targets):
            raise SurgeryError(f"there are {len(self.examples)} examples but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: np.ndarray) -> Dataset:
        """Returns the examples at `indices`."""
        return dataclasses.replace(self, examples=self.examples[indices], targets=self.targets[indices])

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Splits off `share` of the examples, drawn with `seed`; of each class its share where targets are classes.

        Returns:
            What remains, and what was split off.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        count = round(share * len(self))
        if np.issubdtype(self.targets.dtype, np.integer) and self.targets.ndim == 1:
            # The rank of each example within its class, as a fraction: the smallest fractions are split off.
            place = np.empty(len(self))
            for number in np.unique(self.targets):
                members = order[self.targets[order] == number]
                place[members] = (np.arange(len(members)) + 0.5) / len(members)
            order = order[np.argsort(place[order], kind="stable")]
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def batches(self, size: int, shuffle: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yields ``(inputs, targets)`` of `size` examples, the last one smaller; the next is prepared meanwhile.

        Args:
            size: Examples in a batch.
            shuffle: Draws the order; in the order they are in without one.
        """
        order = np.arange(len(self)) if shuffle is None else shuffle.permutation(len(self))
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return _prefetch(lambda part: (self.prepare(self.examples[part]), self.targets[part]), parts)


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
