"""Data from `.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.parts import PARTS
from surgery.errors import SurgeryError, nearest

__all__ = ["from_npz", "npz_parts"]


def npz_parts(path: Path) -> dict[str, str]:
    """Returns what the names of each part's arrays end with, after ``x`` and ``y``: ``{"train": "_train"}``.

    Raises:
        SurgeryError: The file is not readable, or has no array with examples.
    """
    names = _names(path)
    parts: dict[str, str] = {}
    for part, words in PARTS.items():
        for word in words:
            if any(name == f"x_{word}" or name.startswith(f"x_{word}_") for name in names):
                parts.setdefault(part, f"_{word}")
    named = {f"x{ending}" for ending in parts.values()}
    if any(n == "x" or (n.startswith("x_") and not any(n == s or n.startswith(f"{s}_") for s in named)) for n in names):
        parts["all"] = ""
    if not parts:
        raise SurgeryError(f"{path}: has no array x_train or x, but {', '.join(names)}{nearest('x_train', names)}")
    return parts


def from_npz(path: Path, model: ir.Model, part: str) -> Dataset:
    """Reads ``x_<part>`` and ``y_<part>``, or ``x`` and ``y`` for ``all``, and ``labels`` where it is, from a file.

    For a model with several inputs or outputs, their names follow: ``x_train_ids``, ``y_train_box``.

    Raises:
        SurgeryError: The file is not readable, lacks an array, or does not fit the model.
    """
    names, ending = _names(path), npz_parts(path)[part]
    inputs = _arrays(names, f"x{ending}", [str(i.name) for i in model.graph.inputs])
    outputs = _arrays(names, f"y{ending}", [str(o.name) for o in model.graph.outputs])
    if inputs is None:
        raise SurgeryError(f"{path}: has no array x{ending}, but {', '.join(names)}")
    if outputs is None:
        raise SurgeryError(f"{path}: has no array y{ending} (the targets of x{ending}), but {', '.join(names)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = (
                file[arrays] if isinstance(arrays, str) else {key: file[name] for key, name in arrays.items()}
                for arrays in (inputs, outputs)
            )
            return from_arrays(x, y, model, [str(name) for name in file["labels"]] if "labels" in names else None, part)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise SurgeryError(f"{path}: cannot be read ({error})") from error


def _names(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise SurgeryError(f"{path}: is not a readable .npz file ({error})") from error


def _arrays(names: list[str], stem: str, values: list[str]) -> str | dict[str, str] | None:
    """The array named `stem`, or those named ``stem_value``, by value."""
    if stem in names:
        return stem
    return {value: f"{stem}_{value}" for value in values if f"{stem}_{value}" in names} or None
