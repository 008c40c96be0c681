"""The history of a training: a record for each epoch, as a list of dicts and as JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

from surgery.errors import SurgeryError

__all__ = ["History", "Record", "read_history"]


class _Measured(TypedDict, total=False):
    accuracy: float
    mean_absolute_error: float
    val_loss: float
    val_accuracy: float
    val_mean_absolute_error: float


class Record(_Measured):
    """One epoch; the names are Keras'.

    `loss` and the metric are means over the epoch's examples, before each update and with dropout; `val_…` are of the
    validation data after the epoch.
    """

    epoch: int
    loss: float
    learning_rate: float
    seconds: float


History = list[Record]


def read_history(path: str | os.PathLike[str]) -> History:
    """Reads a `history.jsonl`.

    Raises:
        SurgeryError: The file is missing or has a line that is no record; the message has its number.
    """
    path = Path(path)
    history: History = []
    number = 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            number += 1
            record = json.loads(line)
            if not isinstance(record, dict) or not {"epoch", "loss"} <= record.keys():
                raise ValueError("no record of an epoch")
            history.append(record)  # type: ignore[arg-type]
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise SurgeryError(f"{path}, line {number}: {error}; the file is not a training's history") from error
    return history
