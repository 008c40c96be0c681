"""What a model predicts of each example, as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from surgery.data import Dataset
from surgery.data.images import file_of
from surgery.errors import SurgeryError
from surgery.training.metrics import Predictions

__all__ = ["write_predictions"]


def write_predictions(path: Path, found: Mapping[str, Predictions], data: Dataset) -> None:
    """Writes a row for each example: its place in the data, its file, what is true and predicted, and probabilities.

    Columns are ``true``, ``predicted`` and ``score[class]`` (of numbers ``true[0]`` …, where there are several), with
    the output's name in front where there are several outputs. Labels that come together are joined by ``|``.

    Raises:
        SurgeryError: An output predicts a class for each pixel.
    """
    columns: dict[str, list[str]] = {"index": [str(i) for i in range(len(data))]}
    files = [file_of(data.examples, i) for i in range(len(data))] if not isinstance(data.examples, dict) else []
    if any(files):
        columns["file"] = [str(file) for file in files]
    for name, predictions in found.items():
        if len(predictions.y_true) != len(data):
            raise SurgeryError(f"output {name!r} predicts maps of classes, which are not written to a CSV file")
        columns |= {(f"{name}_" if len(found) > 1 else "") + key: c for key, c in _columns(predictions).items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _columns(of: Predictions) -> dict[str, list[str]]:
    columns = {}
    if of.scores is None:
        for key, array in (("true", of.y_true), ("predicted", of.y_pred)):
            flat = array.reshape(len(array), -1)
            for number, column in enumerate(flat.T):
                columns[key if flat.shape[1] == 1 else f"{key}[{number}]"] = [f"{value:.7g}" for value in column]
        return columns
    names = of.names or tuple(map(str, range(of.scores.shape[1])))
    for key, array in (("true", of.y_true), ("predicted", of.y_pred)):
        if of.kind == "labels":
            columns[key] = ["|".join(names[i] for i in np.flatnonzero(row)) for row in array]
        else:
            columns[key] = [names[number] for number in array]
    return columns | {f"score[{n}]": [f"{v:.6g}" for v in column] for n, column in zip(names, of.scores.T, strict=True)}
