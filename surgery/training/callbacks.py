"""Callbacks: what is told how a training goes."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import IO

from surgery.errors import SurgeryError
from surgery.io import file_mode
from surgery.training.history import Record

__all__ = ["Callback", "JsonLines", "Plan"]


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
    """

    epochs: int
    steps: int
    examples: int
    validation: int
    parameters: int
    losses: list[str]
    metrics: list[str]
    device: str


class Callback:
    """Base class: override what is of interest. An exception raised by a callback ends the training."""

    def on_train_begin(self, plan: Plan) -> None:
        """Before the first step."""

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        """After each step; both counted from 1 and `step` within its epoch."""

    def on_epoch_end(self, record: Record) -> None:
        """After each epoch and its validation."""

    def on_train_end(self) -> None:
        """After the last step, however the training ended."""


class JsonLines(Callback):
    """Writes each record as a line of a file as soon as there is one.

    Args:
        path: The file; what was in it is replaced when the first epoch ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._aside: Path | None = None
        self._file: IO[str] | None = None

    def on_train_begin(self, plan: Plan) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".tmp", dir=self._path.parent)
        except OSError as error:
            raise SurgeryError(f"{self._path}: cannot be written ({error.strerror})") from error
        self._file, self._aside = os.fdopen(handle, "w", encoding="utf-8"), Path(name)

    def on_epoch_end(self, record: Record) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._aside is not None:
            os.chmod(self._aside, file_mode(self._path))
            os.replace(self._aside, self._path)  # the file stays open under its new name
            self._aside = None

    def on_train_end(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)
