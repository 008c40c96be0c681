"""Callbacks: what is told how a training goes, and may end it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from surgery.errors import SurgeryError
from surgery.io import file_mode
from surgery.training.history import Record, check_figure, lower_is_better

__all__ = ["Callback", "Csv", "EarlyStopping", "JsonLines", "Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training is going to do.

    Attributes:
        epochs: How many.
        steps: Steps in an epoch.
        examples: Examples that are trained on.
        validation: Examples held back to watch.
        parameters: How many numbers are trained.
        losses: The name of each output's loss.
        metrics: What is measured besides the loss, as in the records.
        device: ``cpu`` or ``cuda``.
        watched: The metrics that are measured on the validation data besides; their names are in the records, some with
            an output's or a class's.
        past: The records of the epochs that came before, where an interrupted training goes on.
        weights: Returns copies of the present parameters and running statistics, by name.
        so_far: Returns the present epoch's figures after the last step: the means of the loss and the metrics, and the
            learning rate.
    """

    epochs: int
    steps: int
    examples: int
    validation: int
    parameters: int
    losses: list[str]
    metrics: list[str]
    device: str
    watched: Sequence[str] = ()
    past: Sequence[Record] = ()
    weights: Callable[[], dict[str, np.ndarray]] = dict
    so_far: Callable[[], dict[str, float]] = dict

    def check_figure(self, name: str, whose: str) -> None:
        """Checks that the records are going to have a figure of that name, as far as that can be told before.

        Raises:
            SurgeryError: They are not; `whose` fault it is.
        """
        figures = ["loss", *self.metrics]
        figures += [f"val_{figure}" for figure in figures] if self.validation else []
        if not any(watched in name for watched in self.watched):
            check_figure(name, figures, whose)


class Callback:
    """Base class: override what is of interest. An exception raised by a callback ends the training with that error."""

    def on_train_begin(self, plan: Plan) -> None:
        """Before the first step."""

    def on_note(self, note: str) -> None:
        """Where there is something to tell, in a line: what is cached, that a phase begins."""

    def on_frozen(self, done: int, total: int) -> None:
        """While the results of the frozen part are computed: for how many examples, of how many.

        It may come before `on_train_begin`. The last call has all of them done, however it ends.
        """

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        """After each step; both counted from 1 and `step` within its epoch."""

    def on_epoch_end(self, record: Record) -> str | None:
        """After each epoch and its validation.

        Returns:
            Why the training should end here, or None to go on.
        """
        return None

    def on_train_end(self) -> None:
        """After the last step, however the training ended."""


class _Lines(Callback):
    """Writes a text file, a record at a time; what was in it is replaced when the first epoch ends."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._aside: Path | None = None
        self._file: IO[str] | None = None

    @abstractmethod
    def _line(self, record: Record) -> str:
        """`record` as text, its end of line included."""

    def on_train_begin(self, plan: Plan) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".tmp", dir=self._path.parent)
        except OSError as error:
            raise SurgeryError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._file, self._aside = os.fdopen(handle, "w", encoding="utf-8", newline=""), Path(name)
        for record in plan.past:
            self.on_epoch_end(record)

    def on_epoch_end(self, record: Record) -> None:
        assert self._file is not None
        try:
            self._file.write(self._line(record))
            self._file.flush()
            if self._aside is not None:
                os.chmod(self._aside, file_mode(self._path))
                os.replace(self._aside, self._path)  # the file stays open under its new name
                self._aside = None
        except OSError as error:
            raise SurgeryError(f"{self._path}: cannot be written ({error.strerror})") from error

    def on_train_end(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # every line is flushed: what cannot be written has been told
                self._file.close()
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)


class JsonLines(_Lines):
    """Writes each record as a line of JSON as soon as there is one.

    Args:
        path: The file; what was in it is replaced when the first epoch ends.
    """

    def _line(self, record: Record) -> str:
        return json.dumps(record) + "\n"


class Csv(_Lines):
    """Writes each record as a line of comma-separated values (RFC 4180), under a line with their names.

    Args:
        path: The file; what was in it is replaced when the first epoch ends.
    """

    def on_train_begin(self, plan: Plan) -> None:
        self._names: list[str] = []
        super().on_train_begin(plan)

    def _line(self, record: Record) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        if not self._names:
            self._names = list(record)
            writer.writerow(self._names)
        writer.writerow([record.get(name, "") for name in self._names])
        return text.getvalue()


class EarlyStopping(Callback):
    """Ends a training when a figure has not become better for some epochs (Prechelt 1998, "Early stopping").

    Args:
        patience: For how many epochs it may fail to improve.
        min_delta: What it has to improve by to count as better.
        monitor: Which figure of the record; by default the validation loss, or the loss where nothing is watched.
            Of accuracies and other scores the greatest is best, of losses and errors the least.
    """

    def __init__(self, patience: int, min_delta: float = 0.0, monitor: str | None = None) -> None:
        self._patience, self._min_delta, self._monitor = patience, min_delta, monitor

    def on_train_begin(self, plan: Plan) -> None:
        self._figure = self._monitor or ("val_loss" if plan.validation else "loss")
        plan.check_figure(self._figure, "early stopping")
        self._best, self._best_epoch = math.inf, 0
        for record in plan.past:
            self.on_epoch_end(record)

    def on_epoch_end(self, record: Record) -> str | None:
        name = self._figure
        check_figure(name, record, "early stopping")
        value = record[name] if lower_is_better(name) else -record[name]
        if value < self._best - self._min_delta:
            self._best, self._best_epoch = value, record["epoch"]
        waited = record["epoch"] - self._best_epoch
        if waited < self._patience:
            return None
        return f"{name.replace('_', ' ')} has not improved since epoch {self._best_epoch}"
