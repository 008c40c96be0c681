"""Data from folders of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.images import IMAGE_SUFFIXES, ImageFiles
from surgery.data.parts import PARTS
from surgery.data.preprocess import input_spec, require_pillow
from surgery.errors import SurgeryError, nearest
from surgery.marks import labels

__all__ = ["MEMORY", "class_names", "decoded", "folder_parts", "from_folder"]

MEMORY = 2 * 10**9  # how many bytes of decoded images are kept


def _hidden(path: Path) -> bool:
    """Whether it is one that programs leave for themselves: copies in .ipynb_checkpoints, ._ files of macOS."""
    return any(part.startswith(".") for part in path.parts)


def _class_folders(path: Path) -> list[str]:
    return sorted(d.name for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def folder_parts(path: Path) -> dict[str, Path]:
    """Returns the folder of each part: those called ``train``, ``val``, ``test`` where one of them holds class folders.

    Where none does, `path` itself is ``all``, and ``train`` or ``test`` would be the name of a class.
    """
    there = {part: path / word for part, words in PARTS.items() for word in words[::-1] if (path / word).is_dir()}
    return there if any(_class_folders(folder) for folder in there.values()) else {"all": path}


def class_names(path: Path, model: ir.Model, part: str) -> list[str] | None:
    """Returns the classes in the order of their numbers: the model's labels, where they are the names of the folders
    (and maybe more), else the folders of the training part of `path`, where it has one."""
    parts = folder_parts(path)
    folders = _class_folders(parts.get("train", parts[part]))
    for output in model.graph.outputs:
        names = labels(model, str(output.name))
        if names and folders and set(folders) <= set(names):
            return names
    return folders if "train" in parts else None


def from_folder(
    path: Path,
    model: ir.Model,
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    classes: Sequence[str] | None = None,
    part: str = "all",
    memory: int = MEMORY,
) -> Dataset:
    """Reads a folder that holds a folder of images for each class.

    Where all of them fit into `memory` at the network's size, they are decoded now; otherwise each time that they are
    needed, and one that does not decode is an error then.

    Args:
        path: The folder.
        model: Says what its input takes.
        skip_bad: Leave images that do not decode out, instead of failing.
        progress: Called with how many images are decoded, and of how many.
        classes: The names of the classes in the order of their numbers; by default the folders' names, sorted.
        part: What part of the data it is.
        memory: How many bytes of decoded images may be kept.

    Raises:
        SurgeryError: No class folders, one without an image that decodes, images that do not decode (named) without
            `skip_bad`, or Pillow is missing.
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
        if file.suffix.lower() in IMAGE_SUFFIXES and not _hidden(file.relative_to(path))
    ]
    have = {number for _, number in files}
    empty = [path / name for number, name in enumerate(classes) if name in found and number not in have]
    if empty:
        raise SurgeryError(f"{empty[0]}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); fill or remove it")
    images, bad = decoded([file for file, _ in files], model, path, skip_bad, progress, memory)
    targets = np.array([number for file, number in files if file not in bad], np.int64)
    lost = have - set(targets.tolist())
    if lost:
        raise SurgeryError(f"{path / classes[min(lost)]}: none of its images decodes: {_some(bad)}")
    data = from_arrays(images, targets, model, classes, part)
    return dataclasses.replace(data, skipped=tuple(map(str, bad)))


def decoded(
    files: Sequence[Path],
    model: ir.Model,
    source: Path,
    skip_bad: bool,
    progress: Callable[[int, int], None] | None,
    memory: int,
) -> tuple[ImageFiles, dict[Path, str]]:
    """Returns the images in `files` that decode, and why the others do not; see `from_folder`.

    Raises:
        SurgeryError: None decodes, or some do not, without `skip_bad`; the model's input has no size.
    """
    spec = input_spec(model)
    if spec.size is None:
        raise SurgeryError("the model's input has no fixed height and width; give it a size before training on images")
    require_pillow()
    images = ImageFiles(files, spec, memory)
    fits = math.prod(images.shape) <= memory
    bad = images.check(fits, progress) if fits or skip_bad else {}
    if len(bad) == len(set(files)):
        raise SurgeryError(f"{source}: none of its {len(files)} images decodes: {_some(bad)}")
    if bad and not skip_bad:
        count = f"{len(bad)} images do" if len(bad) > 1 else "1 image does"
        raise SurgeryError(f"{count} not decode: {_some(bad)}; mend or remove them, or use --skip-bad")
    return images.without(bad), bad


def _some(bad: dict[Path, str]) -> str:
    return "; ".join(f"{file} ({why})" for file, why in list(bad.items())[:3])
