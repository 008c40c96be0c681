"""The parts that a source of data is divided into: ``train``, ``val`` and ``test``; ``all`` where it is not."""

from __future__ import annotations

from collections.abc import Collection

from surgery.errors import SurgeryError

__all__ = ["PARTS", "part_to_measure", "part_to_train"]

# The parts, and what folders and arrays of each are called.
PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def part_to_train(there: Collection[str], source: object) -> str:
    """Returns the part to train on: ``train``, else ``all``.

    Raises:
        SurgeryError: There is neither.
    """
    for part in ("train", "all"):
        if part in there:
            return part
    raise SurgeryError(f"{source}: has no part to train on, only {', '.join(there)}; call one of them train")


def part_to_measure(there: Collection[str], wanted: str | None, source: object) -> str:
    """Returns the part that is `wanted`; by default ``test`` where there is one, else ``val``, else ``all``.

    Raises:
        SurgeryError: There is none; the message says what there is.
    """
    have = ", ".join(there) if set(there) != {"all"} else "all, as it is not divided"
    if wanted is not None:
        if wanted not in there:
            raise SurgeryError(f"{source}: has no part {wanted!r}; it has {have}")
        return wanted
    for part in ("test", "val", "all"):
        if part in there:
            return part
    raise SurgeryError(f"{source}: has no test part; it has {have}, which has to be asked for")
