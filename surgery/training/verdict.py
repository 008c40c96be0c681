"""What a history says: whether the training converges, overfits, diverges or should go on, and why.

The rules, in this order, for n epochs. A *window* is a fifth of the epochs, at least one; *the end* is the mean of the
last window, and the *watched* loss is the validation loss, or the training loss where nothing is watched.

1. ``diverges``: a loss was not a finite number; or the training loss at the end is above half of the way from its least
   value back to the first epoch's, and more than a tenth above that least value.
2. ``too short``: fewer than 3 epochs.
3. ``overfits``: the validation loss at the end is above that of its best window by more than 5 % of it and of the range
   of all, while the training loss has fallen since.
4. ``flat``: the training loss at the end is less than 2 % below the first epoch's.
5. ``improves``: the watched loss at the end is more than 2 % below that of the window before, and that is more than 1 %
   of the range of all: it should train longer.
6. ``converges``: otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from surgery.training.history import History

__all__ = ["Verdict", "verdict"]

Kind = Literal["diverges", "too short", "overfits", "flat", "improves", "converges"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a training went.

    Attributes:
        kind: In a word, as the rules above say.
        why: The figures that it is judged by, and what to do.
    """

    kind: Kind
    why: str

    def __str__(self) -> str:
        """A sentence."""
        heads = {"improves": "should go on", "flat": "does not learn", "too short": "is too short to judge"}
        return f"the training {heads.get(self.kind, self.kind)}: {self.why}"


def verdict(history: History, message: str = "") -> Verdict:
    """Judges a training by its history.

    Args:
        history: Its records.
        message: What became infinite, and what to do, where that ended the training.
    """
    if message:
        return Verdict("diverges", message)
    if len(history) < 3:
        return Verdict("too short", f"{len(history)} of the 3 epochs that it takes to see where it goes")
    train = np.array([record["loss"] for record in history], float)
    watch = np.array([record["val_loss"] for record in history], float) if "val_loss" in history[0] else None
    window = max(1, round(len(history) / 5))
    found = (
        _diverges(train, window)
        or (_overfits(train, watch, window) if watch is not None else None)
        or _flat(train, window)
    )
    if found:
        return found
    losses, name = (train, "training") if watch is None else (watch, "validation")
    return _settles(losses, name, window)


def _end(losses: np.ndarray, window: int) -> float:
    return float(losses[-window:].mean())


def _diverges(train: np.ndarray, window: int) -> Verdict | None:
    least, end = float(train.min()), _end(train, window)
    if end <= least + max(0.5 * (train[0] - least), 0.1 * abs(least)):
        return None
    epoch = int(train.argmin()) + 1
    return Verdict(
        "diverges", f"the training loss rose from {least:.4g} in epoch {epoch} to {end:.4g}; lower the learning rate"
    )


def _overfits(train: np.ndarray, watch: np.ndarray, window: int) -> Verdict | None:
    means = np.convolve(watch, np.full(window, 1 / window), "valid")
    best, least, end = int(means.argmin()), float(means.min()), float(means[-1])
    before, after = float(train[best : best + window].mean()), _end(train, window)
    if end - least <= 0.05 * max(abs(least), np.ptp(watch)) or after >= before:
        return None
    kept = int(watch.argmin()) + 1
    return Verdict(
        "overfits",
        f"since epoch {kept} the validation loss rose from {watch.min():.4g} to {end:.4g} while the training loss fell "
        f"to {after:.4g}; keep the weights of epoch {kept}, or bring more data, dropout or weight decay, or train "
        "fewer layers",
    )


def _flat(train: np.ndarray, window: int) -> Verdict | None:
    end = _end(train, window)
    if end < train[0] - 0.02 * abs(train[0]):
        return None
    return Verdict(
        "flat",
        f"the training loss was {train[0]:.4g} in the first epoch and is {end:.4g}; unless that is as good as it gets, "
        "raise the learning rate or train more layers",
    )


def _settles(losses: np.ndarray, name: str, window: int) -> Verdict:
    end, before = _end(losses, window), float(losses[-2 * window : -window].mean())
    gain = before - end
    span = f"the last {window} epochs" if window > 1 else "the last epoch"
    if gain > 0.02 * abs(before) and gain > 0.01 * np.ptp(losses):
        return Verdict("improves", f"the {name} loss still fell by {gain / abs(before):.0%} in {span}, to {end:.4g}")
    return Verdict("converges", f"the {name} loss was {before:.4g} before {span} and is {end:.4g}")
