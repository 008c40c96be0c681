"""Data from manifests: a CSV or JSON-lines file with a row for each image, its path and its targets."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.folder import MEMORY, decoded
from surgery.data.parts import PARTS
from surgery.data.rows import take
from surgery.errors import SurgeryError
from surgery.marks import labels

__all__ = ["MANIFEST_SUFFIXES", "from_manifest", "manifest_parts"]

MANIFEST_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson"}
_PATH = ("path", "file", "file_name", "filename", "image")
_PART = ("split", "part")
_TARGET = ("label", "labels", "target", "class")
_Row = tuple[str, dict[str, Any]]  # where it is, for messages, and what it has


def manifest_parts(path: Path) -> list[str]:
    """Returns the parts that the column ``split`` names; ``all`` where there is none.

    Raises:
        SurgeryError: The file is not readable, or a row is of no part.
    """
    return list(_by_part(_rows(path)))


def from_manifest(
    path: Path,
    model: ir.Model,
    part: str,
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    memory: int = MEMORY,
) -> Dataset:
    """Reads a CSV (``.csv``, ``.tsv``) or JSON-lines file that names images and their targets.

    Columns, or keys:

    - ``path`` (or ``file``, ``file_name``, ``filename``, ``image``): the image, relative to the manifest.
    - ``split`` (or ``part``), which may be left out: the part that the row is of.
    - the targets: for several outputs, columns of their names; else ``label`` (or ``labels``, ``target``, ``class``),
      else all other columns, as numbers. Whole numbers are class numbers, others values to predict, text the names of
      classes, numbered in the order of the model's labels where these have them, else of the alphabet. A list (in CSV,
      a column called ``labels``, with ``|`` in between) is of numbers, or of labels that come together.

    Args:
        path: The file.
        model: Says what its input takes.
        part: Which of its parts.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.
        memory: How many bytes of decoded images may be kept.

    Raises:
        SurgeryError: The file is not readable, a row lacks something (the message has its line), images are missing or
            do not decode.
    """
    rows = _rows(path)
    chosen = _by_part(rows)[part]
    (key,) = _columns(path, rows, _PATH, "the path of an image")[:1]
    files = [path.parent / _text(row, key) for row in chosen]
    missing = next((i for i, file in enumerate(files) if not file.is_file()), None)
    if missing is not None:
        raise SurgeryError(f"{chosen[missing][0]}: there is no file {files[missing]}")
    images, bad = decoded(files, model, path, skip_bad, progress, memory)
    good = np.flatnonzero([file not in bad for file in files])
    targets, names = _targets(path, rows, chosen, {key, *_PART}, model)
    data = from_arrays(images, take(targets, good), model, names.pop("", None), part)
    return dataclasses.replace(data, skipped=tuple(map(str, bad)), output_labels=names)


def _rows(path: Path) -> list[_Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix in (".csv", ".tsv"):
                tab = "\t" if path.suffix == ".tsv" else ","
                rows = _table(path, csv.reader(file, delimiter=tab, strict=True, skipinitialspace=True))
            else:
                lines = [(f"{path}:{number}", line) for number, line in enumerate(file, 1) if line.strip()]
                rows = [(where, _object(where, line)) for where, line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SurgeryError(f"{path}: cannot be read ({error})") from error
    if not rows:
        raise SurgeryError(f"{path}: has no rows")
    return rows


def _table(path: Path, reader: Any) -> list[_Row]:
    """The rows under the first one, which has the names of the columns."""
    names: list[str] = next(reader, [])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SurgeryError(f"{path}: there are several columns called {twice!r}")
    rows = []
    for values in reader:
        if values and len(values) != len(names):
            raise SurgeryError(
                f"{path}:{reader.line_num}: has {len(values)} values, but there are {len(names)} columns"
            )
        if values:
            rows.append((f"{path}:{reader.line_num}", dict(zip(names, values, strict=True))))
    return rows


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SurgeryError(f"{where}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise SurgeryError(f"{where}: a JSON object is needed, with keys such as path and label")
    return found


def _columns(path: Path, rows: Sequence[_Row], names: Sequence[str], what: str) -> list[str]:
    """The columns that are called one of `names`."""
    have = list(rows[0][1])
    found = [name for name in names if name in have]
    if not found:
        raise SurgeryError(f"{path}: no column is {what}; call it {names[0]} (there are {', '.join(have)})")
    return found


def _by_part(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    column = next((name for name in _PART if any(name in row for _, row in rows)), None)
    if column is None:
        return {"all": list(rows)}
    parts: dict[str, list[_Row]] = {}
    words = {word: part for part, words in PARTS.items() for word in words}
    for row in rows:
        word = _text(row, column)
        if word not in words:
            raise SurgeryError(f"{row[0]}: {column} is {word!r}; train, val or test is needed")
        parts.setdefault(words[word], []).append(row)
    return parts


def _text(row: _Row, column: str) -> str:
    value = row[1].get(column)
    if not isinstance(value, str) or not value:
        raise SurgeryError(f"{row[0]}: has no {column}")
    return value


def _targets(
    path: Path, rows: Sequence[_Row], chosen: Sequence[_Row], others: set[str], model: ir.Model
) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """The targets, by output where there are several, and the names of classes by output."""
    have = [name for name in rows[0][1] if name not in others]
    outputs = [str(o.name) for o in model.graph.outputs]
    named = [name for name in outputs if name in have]
    if len(outputs) > 1 and named:
        each = {name: _column(path, rows, chosen, name, labels(model, name)) for name in named}
        return {n: array for n, (array, _) in each.items()}, {n: names for n, (_, names) in each.items() if names}
    column = next((name for name in (*named, *_TARGET) if name in have), have[0] if len(have) == 1 else None)
    if column is not None:
        array, names = _column(path, rows, chosen, column, labels(model, outputs[0]))
        return array, {"": names} if names else {}
    if not have:
        raise SurgeryError(f"{path}: no column is the target; add one called label")
    return np.stack([_numbers(chosen, name) for name in have], axis=1).astype(np.float32), {}


def _column(
    path: Path, rows: Sequence[_Row], chosen: Sequence[_Row], column: str, known: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """A column as an array, and the names of what it numbers."""
    values = [_value(row, column) for row in rows]
    mine = [_value(row, column) for row in chosen]
    lists = [value for value in values if isinstance(value, list)]
    if not lists and not any(isinstance(value, str) for value in values):
        return _numbers(chosen, column), None
    if lists and len(lists) < len(values):
        raise SurgeryError(f"{path}: {column} is a list in some rows and none in others")
    if lists and not any(isinstance(item, str) for value in lists for item in value):
        try:
            if np.isfinite(np.array(lists, np.float32)).all():  # of all parts
                return np.array(mine, np.float32), None
        except (ValueError, TypeError, OverflowError):
            pass
        raise SurgeryError(f"{path}: the lists of {column} are not finite numbers, as many in each row")
    if not lists:  # as they are written: 01 is not 1
        values, mine = ([str(row[1][column]) for row in some] for some in (rows, chosen))
    names = sorted({str(item) for value in values for item in (value if lists else [value])})
    if known is not None and set(names) <= set(known):
        names = list(known)
    number = {name: index for index, name in enumerate(names)}
    if not lists:
        return np.array([number[value] for value in mine], np.int64), tuple(names)
    hot = np.zeros((len(mine), len(names)), np.float32)
    for row, value in zip(hot, mine, strict=True):
        row[[number[str(item)] for item in value]] = 1
    return hot, tuple(names)


def _value(row: _Row, column: str) -> Any:
    """What a row has in a column: a number where its text is one, a list, or text."""
    value = row[1].get(column)
    if isinstance(value, str) and column == "labels":
        return [item for item in value.split("|") if item]
    if value is None or value == "" or isinstance(value, dict):
        raise SurgeryError(f"{row[0]}: has no {column}")
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(value) if value.lstrip("+-").isdigit() else number


def _numbers(rows: Sequence[_Row], column: str) -> np.ndarray:
    values = [_value(row, column) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, str | list) or abs(value) > 1e38 or math.isnan(value):
            raise SurgeryError(
                f"{row[0]}: {column} is {value!r}, not a number; columns of targets are numbers, or one called label"
            )
    whole = all(isinstance(value, int) for value in values)
    try:
        return np.array(values, np.int64 if whole else np.float32)
    except OverflowError as error:
        raise SurgeryError(f"a number of the column {column} is too large for 64 bits") from error
