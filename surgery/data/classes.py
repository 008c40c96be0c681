"""The numbers of classes: whoever knows the classes by their names says how they are numbered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgery.errors import SurgeryError

__all__ = ["renumbered"]


def renumbered(targets: np.ndarray, names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Returns targets that number the classes `names` as ones that number them as `known` does.

    Args:
        targets: Class numbers `[N, …]`; or `[N, classes, …]` of numbers for each class.
        names: The names of the classes, in the order of the targets.
        known: The names in the order that is wanted; all of `names` are among them.

    Raises:
        SurgeryError: There are class numbers that none of `names` belongs to, but one of `known` would.
    """
    if list(names) == list(known):
        return targets
    place = np.array([list(known).index(name) for name in names], np.int64)
    whole = np.issubdtype(targets.dtype, np.integer)
    if whole and targets.ndim != 2:
        beyond = targets[(targets >= len(names)) & (targets < len(known))]
        if beyond.size:
            raise SurgeryError(f"there is a class number {int(beyond[0])}, but only {len(names)} names of classes")
        named = (targets >= 0) & (targets < len(names))  # others are for a loss that ignores them
        return np.where(named, place[np.where(named, targets, 0)], targets)
    if targets.ndim < 2 or targets.shape[1] != len(names):
        return targets
    moved = np.zeros((len(targets), len(known), *targets.shape[2:]), targets.dtype)
    moved[:, place] = targets
    return moved
