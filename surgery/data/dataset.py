"""A data set: examples and targets, split, shuffled and served in batches that are ready for the network."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from surgery.data.prefetch import prefetch
from surgery.data.rows import Arrays, Examples, digest, lengths, select, take
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

__all__ = ["Arrays", "Batch", "Dataset", "take"]

Batch = tuple[Arrays, Arrays]


def _as_floats(examples: Arrays) -> Arrays:
    assert isinstance(examples, np.ndarray)
    return np.ascontiguousarray(examples, np.float32)


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

    examples: Examples
    targets: Arrays
    prepare: Callable[[Arrays], Arrays] = _as_floats
    labels: tuple[str, ...] | None = None
    part: str = "all"
    skipped: tuple[str, ...] = ()
    assumed: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = lengths(self.examples), lengths(self.targets)
        if counts[0] != counts[1] or len(counts[0]) != 1:
            have, want = (" and ".join(map(str, sorted(some))) for some in counts)
            raise SurgeryError(f"there are {have} examples but {want} targets")

    def __len__(self) -> int:
        return next(iter(lengths(self.examples)))

    def subset(self, indices: np.ndarray) -> Dataset:
        """Returns the examples at `indices`."""
        if isinstance(self.examples, Mapping):
            examples: Examples = {name: select(rows, indices) for name, rows in self.examples.items()}
        else:
            examples = select(self.examples, indices)
        return dataclasses.replace(self, examples=examples, targets=take(self.targets, indices))

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
        arrays = self.examples if isinstance(self.examples, Mapping) else {"": self.examples}
        for name, array in arrays.items():
            if not np.issubdtype(array.dtype, np.floating):
                continue
            with np.errstate(over="ignore"):
                bad = [i for i in range(len(array)) if not np.isfinite(array[i].astype(np.float32)).all()]
            if bad:
                some = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                where = f" of input {name!r}" if name else ""
                raise SurgeryError(
                    f"examples {some} (counted from 0){where} are not finite numbers; leave them out or mend them"
                )

    @property
    def deterministic(self) -> bool:
        """Whether an example is the same in every epoch, so that what a network makes of it can be kept."""
        return True

    def fingerprint(self) -> str | None:
        """Returns a digest of the examples and of how they are prepared, targets left out: equal ones give a network
        the same inputs. None where `prepare` is not one of this package's and does not say what it does.

        Images in files are known by path, size and time of change.
        """
        if self.prepare is not _as_floats and not dataclasses.is_dataclass(self.prepare):
            return None
        named = self.examples if isinstance(self.examples, Mapping) else {"": self.examples}
        parts = [repr(self.prepare) if self.prepare is not _as_floats else "floats"]
        parts += [f"{name}: {digest(rows)}" for name, rows in named.items()]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def order(self, size: int, *, seed: int | None = None, epoch: int = 0) -> list[np.ndarray]:
        """Returns the indices of the examples in each batch of an epoch, those that `batches` serves.

        Args:
            size: Examples in a batch; the last one may have fewer.
            seed: Draws the order, with `epoch` and nothing else; as they stand without one.
            epoch: Which epoch it is.
        """
        indices = np.arange(len(self))
        if seed is not None:
            indices = np.random.default_rng([seed, epoch]).permutation(indices)
        return [indices[i : i + size] for i in range(0, len(indices), size)]

    def batches(
        self,
        size: int,
        shuffle: np.random.Generator | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yields ``(inputs, targets)`` of the examples that `order` says; the next ones are prepared meanwhile.

        Whatever is random about a batch comes from `seed`, `epoch` and its place in the epoch, so that an epoch that
        goes on from batch `first` serves what the whole one does from there.

        Args:
            size: Examples in a batch; the last one may have fewer.
            shuffle: Draws the order in place of `seed`.
            seed: Draws the order; in the order they are in without one.
            epoch: Which epoch it is.
            first: The batch to start from, counted from 0.
        """
        parts = self.order(size, seed=seed, epoch=epoch)
        if shuffle is not None:
            indices = shuffle.permutation(len(self))
            parts = [indices[i : i + size] for i in range(0, len(indices), size)]
        return prefetch(self._make, itertools.islice(parts, first, None))

    def _make(self, part: np.ndarray) -> Batch:
        return self.prepare(take(self.examples, part)), take(self.targets, part)
