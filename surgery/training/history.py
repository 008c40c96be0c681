"""The history of a training: a record for each epoch, as a list of dicts and as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError, nearest

__all__ = ["History", "Record", "check_figure", "lower_is_better", "read_history"]


# One epoch: ``epoch``, ``loss``, the metric (``accuracy``), ``val_loss`` and so on, ``learning_rate``, ``seconds``; the
# names are Keras'. Loss and metric are means over the epoch's examples, before each update and with dropout; ``val_…``
# are of the validation data after the epoch. Of several outputs, each has ``<output>_loss`` and its metric.
Record = dict[str, Any]
History = list[Record]


def lower_is_better(name: str) -> bool:
    """Whether a figure of that name is a loss or an error; accuracies and other scores are not."""
    return name.endswith(("loss", "error"))


def check_figure(name: str, figures: Iterable[str], whose: str) -> None:
    """Checks that records have a figure of that name.

    Raises:
        SurgeryError: They have not; the message has the nearest ones, and says `whose` fault it is.
    """
    names = [figure for figure in figures if figure not in ("epoch", "seconds")]
    if name not in names:
        raise SurgeryError(f"{whose}: no figure is named {name!r}{nearest(name, names)}; there are {', '.join(names)}")


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
            history.append(record)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise SurgeryError(f"{path}, line {number}: {error}; the file is not a training's history") from error
    return history
