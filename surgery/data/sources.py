"""Where data comes from: folders of images, manifests, files of arrays, saved data sets, Python objects."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Arrays, Dataset
from surgery.data.folder import MEMORY, class_names, folder_parts, from_folder
from surgery.data.hugging_face import from_saved, is_saved, saved_parts
from surgery.data.items import from_items
from surgery.data.manifest import MANIFEST_SUFFIXES, from_manifest, manifest_parts
from surgery.data.npz import from_npz, is_npy_folder, npz_parts
from surgery.data.parts import part_to_measure, part_to_train
from surgery.errors import SurgeryError

__all__ = ["Source", "as_dataset", "as_part", "open_data", "open_part"]

# What Python code may give as data: a data set, a path, examples and targets, or what gives pairs of these.
Source = Dataset | str | os.PathLike[str] | tuple[Arrays, Arrays] | Iterable[tuple[Any, Any]]
Progress = Callable[[int, int], None]


def open_data(
    path: str | os.PathLike[str],
    model: ir.Model,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> tuple[Dataset, Dataset | None]:
    """Opens data in files to train `model` on.

    Args:
        path: A folder with a folder of images for each class, or with ``train`` and ``val`` folders of those; a
            manifest (see `from_manifest`); a `.npz` file or a folder of `.npy` files (see `from_npz`); or a folder that
            Hugging Face's `datasets` saved (see `from_saved`).
        model: Says the input's size and preprocessing.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.
        memory: How many bytes of decoded images, or of a saved data set's numbers, may be kept.

    Returns:
        The data, and the validation data where the source holds some beside those to train on.

    Raises:
        SurgeryError: The source is missing, unreadable or does not fit the model.
    """
    path = Path(path)
    there = _parts(path)
    part = part_to_train(there, path)
    data = _open(path, model, part, skip_bad, progress, memory)
    return data, _open(path, model, "val", skip_bad, progress, memory) if "val" in there else None


def open_part(
    path: str | os.PathLike[str],
    model: ir.Model,
    part: str | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> Dataset:
    """Opens a part of data in files, to measure `model` on.

    Args:
        path: The file or folder; see `open_data`.
        model: Says the input's size and preprocessing.
        part: ``test``, ``val``, ``train`` or, of data that are not divided, ``all``; by default ``test`` where there
            is one, else ``val``, else ``all``.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.
        memory: How many bytes of decoded images, or of a saved data set's numbers, may be kept.

    Raises:
        SurgeryError: The source is missing, unreadable, has no such part or does not fit the model.
    """
    path = Path(path)
    return _open(path, model, part_to_measure(_parts(path), part, path), skip_bad, progress, memory)


def as_dataset(source: Source, model: ir.Model) -> tuple[Dataset, Dataset | None]:
    """Returns `source` as a data set to train on, and the validation data where it holds some.

    Paths are opened by `open_data`, what gives ``(example, target)`` pairs is read by `from_items`.

    Raises:
        SurgeryError: It is no data, or does not fit the model.
    """
    if isinstance(source, Dataset):
        return source, None
    if isinstance(source, tuple) and len(source) == 2:
        pair: Any = source
        return from_arrays(pair[0], pair[1], model), None
    if isinstance(source, str | os.PathLike):
        return open_data(source, model)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise SurgeryError(
            f"a {type(source).__name__} is no data; give a path, (examples, targets), or what gives such pairs"
        )
    return from_items(source, model), None


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


def _parts(path: Path) -> Collection[str]:
    if not path.exists():
        raise SurgeryError(f"{path}: no such file or folder")
    if path.suffix in MANIFEST_SUFFIXES and path.is_file():
        return manifest_parts(path)
    if path.suffix == ".npz" or is_npy_folder(path):
        return npz_parts(path)
    if path.is_dir():
        return saved_parts(path) if is_saved(path) else folder_parts(path)
    aside = "; of .npy files, give the folder with x.npy and y.npy" if path.suffix == ".npy" else ""
    raise SurgeryError(
        f"{path}: data is a folder of images, a .npz file or a folder of .npy files, a manifest "
        f"({', '.join(sorted(MANIFEST_SUFFIXES))}) or a folder that Hugging Face's datasets saved{aside}"
    )


def _open(path: Path, model: ir.Model, part: str, skip_bad: bool, progress: Progress | None, memory: int) -> Dataset:
    if path.suffix in MANIFEST_SUFFIXES and path.is_file():
        return from_manifest(path, model, part, skip_bad=skip_bad, progress=progress, memory=memory)
    if path.suffix == ".npz" or is_npy_folder(path):
        return from_npz(path, model, part)
    if is_saved(path):
        return from_saved(saved_parts(path)[part], model, part, memory=memory)
    return from_folder(
        folder_parts(path)[part],
        model,
        skip_bad=skip_bad,
        progress=progress,
        classes=class_names(path, model, part),
        part=part,
        memory=memory,
    )
