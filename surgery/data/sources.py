"""Where data comes from: `.npz` files, folders of images, arrays."""

from __future__ import annotations

import concurrent.futures
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.data.dataset import Arrays, Dataset
from surgery.data.preprocess import input_spec, preparer, resize
from surgery.errors import SurgeryError, nearest
from surgery.marks import labels

__all__ = ["Source", "as_dataset", "from_arrays", "from_folder", "from_npz", "open_data"]

# What Python code may give as data: a data set, a path, or examples and targets.
Source = Dataset | str | os.PathLike[str] | tuple[Arrays, Arrays]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def open_data(
    path: str | os.PathLike[str],
    model: ir.Model,
    *,
    split: str = "train",
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Opens a `.npz` file or a folder of images for `model`.

    Args:
        path: The file or folder. A folder holds a folder for each class, or ``train`` and ``val`` folders of those.
        model: Says the input's size and preprocessing.
        split: ``train``, or what is to be evaluated: ``test`` or ``val``.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.

    Returns:
        The data, and the validation data where the source holds some (for ``train`` only).

    Raises:
        SurgeryError: The source is missing, unreadable or does not fit the model.
    """
    path = Path(path)
    if not path.exists():
        raise SurgeryError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path, model, split, skip_bad, progress)
    if path.suffix != ".npz":
        raise SurgeryError(f"{path}: data is a folder of images or a .npz file")
    data = from_npz(path, model, split)
    if split != "train":
        return data, None
    names = _npz_names(path)
    there = (s for s in ("val", "valid") if any(name.startswith(f"x_{s}") for name in names))
    return data, next((from_npz(path, model, s) for s in there), None)


def as_dataset(source: Source, model: ir.Model, split: str = "train") -> tuple[Dataset, Dataset | None]:
    """Returns `source` as a data set for `model`, and the validation data where it holds some; see `open_data`."""
    if isinstance(source, Dataset):
        return source, None
    if isinstance(source, tuple):
        return from_arrays(*source, model), None
    return open_data(source, model, split=split)


def from_arrays(examples: Arrays, targets: Arrays, model: ir.Model, classes: Sequence[str] | None = None) -> Dataset:
    """Returns a data set of arrays for `model`.

    Args:
        examples: See `preparer` for what they may be; for a model with several inputs, an array for each by its name.
        targets: Class numbers or floats; for several outputs, an array for each by its name.
        model: Says what its inputs take.
        classes: The classes' names.

    Raises:
        SurgeryError: There are none, as many targets as examples are not there, or they do not fit an input.
    """
    if isinstance(targets, dict):
        targets = {name: _targets(array) for name, array in targets.items()}
    else:
        targets = _targets(targets)
    if not isinstance(examples, dict):
        examples = np.asarray(examples)
        if not len(examples):
            raise SurgeryError("the data set is empty")
        prepare: Callable[[Any], Any] = preparer(examples, input_spec(model))
    else:
        prepare = _by_input(examples, model)
    return Dataset(examples, targets, prepare, tuple(classes) if classes else None)


def _targets(targets: np.ndarray) -> np.ndarray:
    """Class numbers as int64, others as float32; a single column of integers, as Keras' data sets have, as `[N]`."""
    targets = np.asarray(targets)
    if not np.issubdtype(targets.dtype, np.integer):
        return targets.astype(np.float32)
    return (targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets).astype(np.int64)


def _by_input(examples: dict[str, np.ndarray], model: ir.Model) -> Callable[[dict[str, np.ndarray]], Arrays]:
    """What prepares the examples of each input."""
    names = [str(i.name) for i in model.graph.inputs]
    if set(examples) != set(names):
        raise SurgeryError(
            f"examples are given for {', '.join(examples)}, but the model's inputs are {', '.join(names)}"
        )
    each = {name: preparer(np.asarray(array), input_spec(model, name)) for name, array in examples.items()}
    return lambda batch: {name: each[name](array) for name, array in batch.items()}


def _npz_names(path: Path) -> list[str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise SurgeryError(f"{path}: is not a readable .npz file ({error})") from error


def from_npz(path: Path, model: ir.Model, split: str = "train") -> Dataset:
    """Reads ``x_<split>`` and ``y_<split>``, or ``x`` and ``y``, and ``labels`` where it is, from a `.npz` file.

    For a model with several inputs or outputs, their names follow: ``x_train_ids``, ``y_train_box``.
    """
    names = _npz_names(path)
    suffix = f"_{split}" if any(name.startswith(f"x_{split}") for name in names) else ""
    inputs = _parts(names, f"x{suffix}", [str(i.name) for i in model.graph.inputs])
    outputs = _parts(names, f"y{suffix}", [str(o.name) for o in model.graph.outputs])
    if inputs is None:
        raise SurgeryError(f"{path}: has no array x_{split} or x, but {', '.join(names)}{nearest(f'x_{split}', names)}")
    if outputs is None:
        raise SurgeryError(f"{path}: has no array y{suffix} (the targets of x{suffix}), but {', '.join(names)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = (
                file[parts] if isinstance(parts, str) else {key: file[name] for key, name in parts.items()}
                for parts in (inputs, outputs)
            )
            return from_arrays(x, y, model, [str(name) for name in file["labels"]] if "labels" in names else None)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise SurgeryError(f"{path}: cannot be read ({error})") from error


def _parts(names: list[str], stem: str, values: list[str]) -> str | dict[str, str] | None:
    """The array named `stem`, or those named ``stem_value``, by value."""
    if stem in names:
        return stem
    return {value: f"{stem}_{value}" for value in values if f"{stem}_{value}" in names} or None


def _class_folders(path: Path) -> list[str]:
    return sorted(d.name for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def _classes(model: ir.Model, folders: list[str]) -> list[str] | None:
    """The model's labels, where they are the names of `folders` (and maybe more)."""
    for output in model.graph.outputs:
        names = labels(model, str(output.name))
        if names and folders and set(folders) <= set(names):
            return names
    return None


def _open_folder(
    path: Path, model: ir.Model, split: str, skip_bad: bool, progress: Callable[[int, int], None] | None
) -> tuple[Dataset, Dataset | None]:
    """Opens a folder; classes are numbered as the model's labels, else as the training part's folders."""
    validation = next((path / n for n in ("val", "valid", "validation") if (path / n).is_dir()), None)
    training = path / "train" if (path / "train").is_dir() else None
    known = _class_folders(training) if training else None
    if split == "train":
        root = training or path
    else:
        root = next((path / n for n in ("test", split) if (path / n).is_dir()), validation or path)
    classes = _classes(model, known or _class_folders(root)) or known
    data = from_folder(root, model, skip_bad=skip_bad, progress=progress, classes=classes)
    if split != "train" or validation is None or training is None:
        return data, None
    return data, from_folder(validation, model, skip_bad=skip_bad, progress=progress, classes=data.labels)


def from_folder(
    path: Path,
    model: ir.Model,
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Reads a folder that holds a folder of images for each class; images are decoded at the network's size.

    Args:
        path: The folder.
        model: Says what its input takes.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.
        classes: The names of the classes in the order of their numbers; by default the folders' names, sorted.

    Raises:
        SurgeryError: No class folders, an empty one, or images that do not decode (named) without `skip_bad`.
    """
    found = _class_folders(path)
    if len(found) < (2 if classes is None else 1):
        raise SurgeryError(
            f"{path}: has {len(found)} class folders; put the images of each class in a folder of its own"
        )
    classes = list(classes or found)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise SurgeryError(f"{path / unknown[0]}: no class of that name is known{nearest(unknown[0], classes)}")
    files = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    spec = input_spec(model)
    size = spec.size
    if size is None:
        raise SurgeryError("the model's input has no fixed height and width; give it a size before training on images")
    if not files:
        raise SurgeryError(f"{path}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    gray = spec.channels == 1
    images = np.empty((len(files), *size) + (() if gray else (3,)), np.uint8)
    bad: dict[int, str] = {}

    def decode(index: int) -> None:
        try:
            images[index] = _decode(files[index][0], size, gray)
        except Exception as error:  # Pillow's decoders raise many kinds
            bad[index] = f"{files[index][0]} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(files))), start=1):
            if progress is not None:
                progress(done, len(files))
    if bad and not skip_bad:
        some = "; ".join(bad[i] for i in sorted(bad)[:3])
        count = f"{len(bad)} images do" if len(bad) > 1 else "1 image does"
        raise SurgeryError(f"{count} not decode: {some}; mend or remove them, or use --skip-bad")
    kept = np.array([i not in bad for i in range(len(files))])
    targets = np.array([number for _, number in files], np.int64)
    return from_arrays(images[kept], targets[kept], model, classes)


def _decode(file: Path, size: tuple[int, int], gray: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.draft("L" if gray else "RGB", (size[1] * 2, size[0] * 2))  # JPEG decodes faster at a fraction of its size
        upright = ImageOps.exif_transpose(image)
        return resize(np.asarray(upright.convert("L" if gray else "RGB")), size)
