"""A data set: examples and targets, split, shuffled and served in batches that are ready for the network."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np

from surgery.data.augment import Augment, paste
from surgery.data.classes import renumbered
from surgery.data.images import whole
from surgery.data.prefetch import Each, prefetch
from surgery.data.rows import Arrays, Examples, digest, lengths, select, take
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing

__all__ = ["Arrays", "Batch", "Dataset", "Sampling", "take"]

Batch = tuple[Arrays, Arrays]
Sampling = Literal["all", "balanced"]
# What follows seed and epoch in the entropy of what is random: the order, an example's changes, a batch's mixing.
_ORDER, _CHANGES, _MIXING = (), (1,), (2,)


def _as_floats(examples: Arrays) -> Arrays:
    if isinstance(examples, dict):
        return {name: np.ascontiguousarray(array, np.float32) for name, array in examples.items()}
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
        output_labels: Those of each output, where they are told apart.
        part: Which part of its source it is: ``train``, ``val`` or ``test``; ``all`` of one that is not divided.
        skipped: The files that were left out because they do not decode.
        assumed: The preprocessing of raw images that the model says nothing of, by input.
        augment: How batches that are drawn with a seed change the examples.
        sampling: Which examples are in an epoch that is drawn with a seed: ``all``, each once; ``balanced``, as many
            drawn with replacement, all classes equally often.
    """

    examples: Examples
    targets: Arrays
    prepare: Callable[[Arrays], Arrays] = _as_floats
    labels: tuple[str, ...] | None = None
    part: str = "all"
    skipped: tuple[str, ...] = ()
    assumed: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)
    augment: Augment | None = None
    sampling: Sampling = "all"
    output_labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = lengths(self.examples), lengths(self.targets)
        if counts[0] != counts[1] or len(counts[0]) != 1:
            have, want = (" and ".join(map(str, sorted(some))) for some in counts)
            raise SurgeryError(f"there are {have} examples but {want} targets")

    def __len__(self) -> int:
        return next(iter(lengths(self.examples)))

    def labels_of(self, output: str) -> tuple[str, ...] | None:
        """Returns the class names of an output, where the source has them."""
        return self.output_labels.get(output, self.labels)

    def numbered_as(self, other: Dataset) -> Dataset:
        """Returns the same examples, with the classes numbered as those of `other`, where both have their names.

        Raises:
            SurgeryError: There are classes that `other` has not.
        """

        def target(array: np.ndarray, output: str) -> np.ndarray:
            names, known = self.labels_of(output), other.labels_of(output)
            if names is None or known is None:
                return array
            strange = [name for name in names if name not in known]
            if strange:
                raise SurgeryError(
                    f"the data to watch have a class {strange[0]!r}, those to train on only {', '.join(known)}"
                )
            return renumbered(array, names, known)

        if isinstance(self.targets, dict):
            targets: Arrays = {name: target(array, name) for name, array in self.targets.items()}
        else:
            targets = target(self.targets, "")
        each = {**self.output_labels, **other.output_labels}
        return dataclasses.replace(self, targets=targets, labels=other.labels or self.labels, output_labels=each)

    def subset(self, indices: np.ndarray) -> Dataset:
        """Returns the examples at `indices`."""
        if isinstance(self.examples, dict):
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
        if self._of_classes:
            assert isinstance(classes, np.ndarray)
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
        named = self.examples.values() if isinstance(self.examples, dict) else [self.examples]
        return self.augment is None and not any(getattr(rows, "random", False) for rows in named)

    def augmented(self, augment: Augment | None, sampling: Sampling = "all") -> Dataset:
        """Returns the same examples, changed and drawn as `augment` and `sampling` say.

        Raises:
            SurgeryError: `augment` changes images, but they are none; or moves pixels, but their targets are maps;
                sampling is balanced, but they are not of one class each.
        """
        if augment is not None and augment.nothing:
            augment = None
        if augment is not None and (augment.changes_images or augment.cutmix):
            rows = self.examples
            if isinstance(rows, dict):
                raise SurgeryError(f"augment changes the images of one input; there are {', '.join(rows)}")
            if rows.dtype != np.uint8 or rows.ndim not in (3, 4) or (rows.ndim == 4 and rows.shape[-1] not in (1, 3)):
                raise SurgeryError(
                    "augment changes raw images (uint8, [N, H, W] or [N, H, W, 3]); these examples are "
                    f"{rows.dtype} {list(rows.shape)}; only mixup takes them"
                )
        if augment is not None and augment.moves:
            named = self.targets if isinstance(self.targets, dict) else {"": self.targets}
            maps = next((targets for targets in named.values() if targets.ndim > 2), None)
            if maps is not None:
                raise SurgeryError(
                    "augment would move the images' pixels, but not their targets, which are maps of shape "
                    f"{list(maps.shape[1:])}; only color_jitter and mixup fit these"
                )
        if sampling == "balanced" and not self._of_classes:
            raise SurgeryError("sampling: balanced draws classes; the targets are not a class number for each example")
        return dataclasses.replace(self, augment=augment, sampling=sampling)

    def one_hot(self, classes: int | Mapping[str, int | None]) -> Dataset:
        """Returns the same examples with class numbers `[N, …]` as 0 and 1 `[N, classes, …]`, as mixing needs them.

        Args:
            classes: How many there are; for several outputs, by name, None where they stay as they are.
        """

        def rows(targets: np.ndarray, count: int | None) -> np.ndarray:
            if count is None or not np.issubdtype(targets.dtype, np.integer):
                return targets
            if targets.min() < 0 or targets.max() >= count:
                raise SurgeryError(
                    f"the labels go from {targets.min()} to {targets.max()}, but the output takes 0 to {count - 1}; "
                    "examples with other labels cannot be mixed"
                )
            return np.moveaxis(np.eye(count, dtype=np.float32)[targets], -1, 1)

        if isinstance(self.targets, dict):
            assert isinstance(classes, Mapping)
            several = {name: rows(targets, classes[name]) for name, targets in self.targets.items()}
            return dataclasses.replace(self, targets=several)
        assert isinstance(classes, int)
        return dataclasses.replace(self, targets=rows(self.targets, classes))

    @property
    def _of_classes(self) -> bool:
        """Whether the targets are a class number for each example."""
        targets = self.targets
        return not isinstance(targets, dict) and np.issubdtype(targets.dtype, np.integer) and targets.ndim == 1

    def fingerprint(self) -> str | None:
        """Returns a digest of the examples and of how they are prepared, targets left out: equal ones give a network
        the same inputs. None where nobody can tell: `prepare` does not say what it does, or the examples are read from
        a source that does not say when it changes.

        Images in files are known by path, size and time of change.
        """
        if self.prepare is not _as_floats and not dataclasses.is_dataclass(self.prepare):
            return None
        named = self.examples if isinstance(self.examples, dict) else {"": self.examples}
        parts = [repr(self.prepare) if self.prepare is not _as_floats else "floats"]
        digests = {name: digest(rows) for name, rows in named.items()}
        if None in digests.values():
            return None
        parts += [f"{name}: {found}" for name, found in digests.items()]
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
            rng = np.random.default_rng([seed, epoch, *_ORDER])
            indices = self._draw_balanced(rng) if self.sampling == "balanced" else rng.permutation(indices)
        return [indices[i : i + size] for i in range(0, len(indices), size)]

    def _draw_balanced(self, rng: np.random.Generator) -> np.ndarray:
        """As many indices as there are examples: a class first, all alike, then one of its examples."""
        targets = self.targets
        assert isinstance(targets, np.ndarray)
        classes = targets if targets.ndim == 1 else targets.argmax(1)
        _, numbers, counts = np.unique(classes, return_inverse=True, return_counts=True)
        return rng.choice(len(self), len(self), p=1 / (len(counts) * counts[numbers]))

    def batches(self, size: int, *, seed: int | None = None, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yields ``(inputs, targets)`` of the examples that `order` says; the next ones are prepared meanwhile.

        Whatever is random about a batch comes from `seed`, `epoch` and its place in the epoch, so that an epoch that
        goes on from batch `first` serves what the whole one does from there.

        Args:
            size: Examples in a batch; the last one may have fewer.
            seed: Draws the order and the augmentation; without one, the examples come as they are and as they stand.
            epoch: Which epoch it is.
            first: The batch to start from, counted from 0.
        """
        parts = self.order(size, seed=seed, epoch=epoch)
        augment = None if seed is None else self.augment
        slow = getattr(self.examples, "slow", False) or (augment is not None and augment.changes_images)

        def make(number: int, each: Each) -> Batch:
            part = parts[number]
            if augment is not None:
                assert seed is not None
                return self._changed(part, augment, (seed, epoch), number, number * size, each)
            return self.prepare(self._read(part, each)), take(self.targets, part)

        return prefetch(make, range(first, len(parts)), threads=slow)

    def _read(self, part: np.ndarray, each: Each) -> Arrays:
        """The examples at the indices in `part`, each in a thread where that pays."""
        if not isinstance(self.examples, dict) and getattr(self.examples, "slow", False):
            return np.stack(each(self.examples.__getitem__, part))
        return take(self.examples, part)

    def _changed(
        self, part: np.ndarray, augment: Augment, entropy: tuple[int, int], number: int, place: int, each: Each
    ) -> Batch:
        """Batch `number` of an epoch, whose first example is at `place` in it, changed at random."""
        rows, targets = self.examples, take(self.targets, part)
        if augment.changes_images:
            assert not isinstance(rows, dict)
            size: tuple[int, int] = getattr(self.prepare, "size", None) or (rows.shape[1], rows.shape[2])
            least = augment.least(size)

            def one(at: int) -> np.ndarray:
                rng = np.random.default_rng([*entropy, *_CHANGES, place + at])
                index = int(part[at])
                pixels = whole(rows, index, least) if augment.cuts else np.asarray(rows[index])
                return augment.image(pixels, size, rng)

            examples: Arrays = np.stack(each(one, range(len(part))))
        else:
            examples = self._read(part, each)
        rng = np.random.default_rng([*entropy, *_MIXING, number])
        way, keep = augment.mixing(rng)
        partners = rng.permutation(len(part))
        if way == "cutmix":
            assert isinstance(examples, np.ndarray)
            examples, keep = paste(examples, examples[partners], keep, rng)
        prepared = self.prepare(examples)
        if way == "mixup":
            prepared = _mix(prepared, partners, keep)
        return prepared, _mix(targets, partners, keep) if way is not None else targets


def _mix(arrays: Arrays, partners: np.ndarray, keep: float) -> Arrays:
    """The share `keep` of each row, and the rest of its partner's."""
    if isinstance(arrays, dict):
        return {name: _mix(array, partners, keep) for name, array in arrays.items()}  # type: ignore[misc]
    share = np.asarray(keep, arrays.dtype if np.issubdtype(arrays.dtype, np.floating) else np.float32)
    return arrays * share + arrays[partners] * (1 - share)
