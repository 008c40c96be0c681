"""Where data comes from: `.npz` files, folders of images, arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Arrays, Dataset
from surgery.data.folder import class_names, folder_parts, from_folder
from surgery.data.npz import from_npz, npz_parts
from surgery.data.parts import part_to_measure, part_to_train
from surgery.errors import SurgeryError

__all__ = ["Source", "as_dataset", "as_part", "open_data", "open_part"]

# What Python code may give as data: a data set, a path, or examples and targets.
Source = Dataset | str | os.PathLike[str] | tuple[Arrays, Arrays]
Progress = Callable[[int, int], None]


def open_data(
    path: str | os.PathLike[str], model: ir.Model, *, skip_bad: bool = False, progress: Progress | None = None
) -> tuple[Dataset, Dataset | None]:
    """Opens a `.npz` file or a folder of images to train `model` on.

    Args:
        path: The file or folder. A folder holds a folder for each class, or ``train`` and ``val`` folders of those.
        model: Says the input's size and preprocessing.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.

    Returns:
        The data, and the validation data where the source holds some beside those to train on.

    Raises:
        SurgeryError: The source is missing, unreadable or does not fit the model.
    """
    path = Path(path)
    there = _parts(path)
    part = part_to_train(there, path)
    data = _open(path, model, part, skip_bad, progress)
    return data, _open(path, model, "val", skip_bad, progress) if "val" in there else None


def open_part(
    path: str | os.PathLike[str],
    model: ir.Model,
    part: str | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Opens a part of a `.npz` file or a folder of images, to measure `model` on.

    Args:
        path: The file or folder; see `open_data`.
        model: Says the input's size and preprocessing.
        part: ``test``, ``val``, ``train`` or, of data that are not divided, ``all``; by default ``test`` where there
            is one, else ``val``, else ``all``.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.

    Raises:
        SurgeryError: The source is missing, unreadable, has no such part or does not fit the model.
    """
    path = Path(path)
    return _open(path, model, part_to_measure(_parts(path), part, path), skip_bad, progress)


def as_dataset(source: Source, model: ir.Model) -> tuple[Dataset, Dataset | None]:
    """Returns `source` as a data set to train on, and the validation data where it holds some; see `open_data`."""
    if isinstance(source, Dataset):
        return source, None
    if isinstance(source, tuple):
        return from_arrays(*source, model), None
    return open_data(source, model)


def as_part(source: Source, model: ir.Model, part: str | None = None) -> Dataset:
    """Returns `source`, or where it is a path the part of it, as a data set to measure on; see `open_part`.

    Raises:
        SurgeryError: A part is asked for, and `source` is not a path.
    """
    if isinstance(source, str | os.PathLike):
        return open_part(source, model, part)
    if part is not None:
        raise SurgeryError(f"{part!r} is asked for, but only files and folders have parts")
    return as_dataset(source, model)[0]


def _parts(path: Path) -> dict[str, Path] | dict[str, str]:
    if not path.exists():
        raise SurgeryError(f"{path}: no such file or folder")
    if path.is_dir():
        return folder_parts(path)
    if path.suffix != ".npz":
        raise SurgeryError(f"{path}: data is a folder of images or a .npz file")
    return npz_parts(path)


def _open(path: Path, model: ir.Model, part: str, skip_bad: bool, progress: Progress | None) -> Dataset:
    if not path.is_dir():
        return from_npz(path, model, part)
    return from_folder(
        folder_parts(path)[part],
        model,
        skip_bad=skip_bad,
        progress=progress,
        classes=class_names(path, model, part),
        part=part,
    )
