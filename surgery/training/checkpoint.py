"""Checkpoints: a training at one moment, as a file that it can go on from to the same numbers.

A checkpoint is one safetensors file, `step-00000120.safetensors`: parameters, running statistics and optimizer state
under their names, the best weights so far under ``best:…`` where they are others, and everything else as JSON in its
metadata. It gets its name when it is whole and on the disk, so a training that is killed at any moment loses what came
after the last one and nothing else. `best.safetensors` beside it holds the best weights alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import SurgeryError
from surgery.io import replacing
from surgery.training.history import History
from surgery.training.tensors_file import read_tensors, write_tensors

__all__ = ["Checkpoints", "State", "read_state", "write_state"]

_FORMAT = 1
_BEST = "best:"
_LEFTOVERS = (".writable", ".writable.*.tmp", ".step-*.tmp", ".best.safetensors.*.tmp")
Identity = dict[str, Any]  # what a training must have in common with the one that it goes on with


@dataclasses.dataclass
class State:
    """A training at one moment.

    Attributes:
        epoch: The epoch it is in, from 1; one more than there are when all are done.
        step: How many steps of that epoch are done.
        runs: How many steps have been run in all, on which dropout's masks depend.
        phase: Which phase its arrays are of, from 0; −1 before the first.
        trained: The parameters that this phase trains.
        weights: Parameters and running statistics, by name.
        states: The optimizer's state and whatever else the step graph carries on, by name.
        totals: The sums, over the epoch's examples so far, of what the step measures.
        seconds: How long the epoch has taken so far.
        counters: Which state counts a parameter's steps, where that is not ``step``.
        best: The weights that are kept, by name.
        best_epoch: The epoch that they are of.
        best_loss: The loss by which they are the best.
        history: The records of the finished epochs.
        rates: What later learning rates depend on besides the settings.
        ending: How the training ended, where it did.
    """

    epoch: int = 1
    step: int = 0
    runs: int = 0
    phase: int = -1
    trained: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    states: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    totals: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    counters: dict[str, str] = dataclasses.field(default_factory=dict)
    best: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    best_epoch: int = 0
    best_loss: float = math.inf
    history: History = dataclasses.field(default_factory=list)
    rates: dict[str, Any] = dataclasses.field(default_factory=dict)
    ending: str = ""


_ARRAYS = ("weights", "states", "best")


def write_state(path: Path, state: State, identity: Identity) -> None:
    """Writes a checkpoint."""
    plain = {f.name: getattr(state, f.name) for f in dataclasses.fields(State) if f.name not in _ARRAYS}
    if math.isinf(state.best_loss):  # which JSON does not have
        plain["best_loss"] = None
    best = {n: a for n, a in state.best.items() if n not in state.weights or not np.array_equal(a, state.weights[n])}
    data = {
        "format": _FORMAT,
        "identity": identity,
        "state": plain,
        "weights": list(state.weights),
        "states": list(state.states),
        "best": list(state.best),
    }
    arrays = {**state.weights, **state.states, **{_BEST + name: array for name, array in best.items()}}
    write_tensors(path, arrays, {"surgery": json.dumps(data, ensure_ascii=False)})


def read_state(path: Path) -> tuple[State, Identity]:
    """Reads a checkpoint.

    Raises:
        SurgeryError: The file is not a whole checkpoint, or one of another version.
    """
    arrays, metadata = read_tensors(path)
    try:
        data = json.loads(metadata["surgery"])
        if data["format"] != _FORMAT:
            raise SurgeryError(f"{path}: is a checkpoint of another version of surgery; go on with that one")
        plain = data["state"]
        if plain["best_loss"] is None:
            plain["best_loss"] = math.inf
        state = State(**plain)
        state.weights, state.states = ({name: arrays[name] for name in data[kind]} for kind in ("weights", "states"))
        state.best = {n: arrays[_BEST + n] if _BEST + n in arrays else arrays[n] for n in data["best"]}
        return state, data["identity"]
    except (KeyError, TypeError, ValueError) as error:
        raise SurgeryError(f"{path}: is not a checkpoint of a training ({error}); remove it") from error


class Checkpoints:
    """A folder of checkpoints: one after each epoch, and every so often in between on request.

    Args:
        folder: Where they are.
        steps: After how many steps there is one, besides those after each epoch.
        minutes: After how many minutes there is one, besides those.
        keep: How many of them stay; older ones are removed.
        restart: Begin anew where the folder holds an unfinished training, whose checkpoints are then removed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        steps: int | None = None,
        minutes: float | None = None,
        keep: int = 2,
        restart: bool = False,
    ) -> None:
        if keep < 1 or (steps is not None and steps < 1) or (minutes is not None and not minutes > 0):
            raise SurgeryError("checkpoints: `steps` and `keep` are whole numbers from 1, `minutes` is above 0")
        self.folder = Path(folder)
        self._best = self.folder / "best.safetensors"
        self.steps, self.minutes, self.keep, self.restart = steps, minutes, keep, restart
        self._identity: Identity = {}
        self._old: list[Path] = []
        self._best_epoch = 0
        self._saved = time.monotonic()

    def files(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def begin(self, identity: Identity, resume: bool) -> State | None:
        """Gets ready for a training.

        Args:
            identity: What the training is of: settings, model, data.
            resume: Whether to go on from the last checkpoint, where there is one.

        Returns:
            What to go on from; None to begin anew.

        Raises:
            SurgeryError: The folder cannot be written; it holds another training than this one, to go on with; or it
                holds an unfinished one, and nothing was said about that.
        """
        self._identity = json.loads(json.dumps(identity))
        self._saved = time.monotonic()
        self._old, self._best_epoch = [], 0
        with replacing(self.folder / ".writable"):  # to know now, not after an epoch
            pass
        for pattern in _LEFTOVERS:  # of trainings that were killed, and this one
            for leftover in self.folder.glob(pattern):
                leftover.unlink(missing_ok=True)
        files = self.files()
        if not files:
            with contextlib.suppress(OSError):  # something else is in it
                self.folder.rmdir()  # until there is something to keep
        if not files:
            return None
        if self.restart and not resume:
            self._old = [*files, self._best]
            return None
        state, before = read_state(files[-1])
        if resume:
            differences = _differences(before, self._identity)
            if differences:
                raise SurgeryError(
                    f"{files[-1]} is of another training: {'; '.join(differences)}; go on with what it was started "
                    "with, or begin anew"
                )
            if state.ending == "diverged":
                raise SurgeryError(f"{self.folder}: that training diverged; begin anew with a lower learning rate")
            self._best_epoch = state.best_epoch
            return state
        if state.ending in ("", "interrupted"):
            raise SurgeryError(
                f"{self.folder} holds an unfinished training (epoch {state.epoch}, step {state.step}); --resume "
                "(resume=True) goes on with it, --restart (Checkpoints(…, restart=True)) begins anew"
            )
        self._old = [*files, self._best]
        return None

    def due(self, step: int) -> bool:
        """Whether there should be a checkpoint after step `step` of an epoch."""
        late = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        return late or (self.steps is not None and step % self.steps == 0)

    def save(self, state: State) -> None:
        """Writes a checkpoint and removes old ones.

        Raises:
            SurgeryError: It cannot be written. The ones before it are left.
        """
        for path in self._old:  # of a training that is over
            path.unlink(missing_ok=True)
        self._old = []
        write_state(self.folder / f"step-{state.runs:08}.safetensors", state, self._identity)
        self._saved = time.monotonic()
        if state.best_epoch != self._best_epoch and state.best:
            record = state.history[state.best_epoch - 1]
            write_tensors(self._best, state.best, {"record": json.dumps(record)})
            self._best_epoch = state.best_epoch
        for path in self.files()[: -self.keep]:
            path.unlink(missing_ok=True)

    def end(self, ending: str) -> None:
        """Notes in the last checkpoint of a training how it ended."""
        files = self.files()
        if files and not self._old:
            state, identity = read_state(files[-1])
            state.ending = ending
            with contextlib.suppress(SurgeryError):  # the training is over, and its result matters more than this note
                write_state(files[-1], state, identity)


def _differences(before: Identity, now: Identity) -> list[str]:
    """What is not the same in two trainings, in words."""
    found = []
    settings = before.get("settings", {}), now["settings"]
    for key in sorted(settings[0].keys() & settings[1].keys()):  # another version may have others
        was, this = (part[key] for part in settings)
        if not _same(was, this):
            found.append(f"{key} was {json.dumps(was)} and is {json.dumps(this)}")
    for key in now:
        if key not in ("settings", "versions") and before.get(key) != now[key]:
            found.append(f"{key} differ")
    return found


def _same(was: Any, this: Any) -> bool:
    if isinstance(was, dict) and isinstance(this, dict):
        return all(_same(was[key], this[key]) for key in was.keys() & this.keys())
    return bool(was == this)
