"""Data from Python objects: data sets as PyTorch's, with a length and items, and whatever gives pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.folder import MEMORY
from surgery.data.images import Images, upright
from surgery.data.preprocess import InputSpec, input_spec
from surgery.data.rows import LazyRows, digest
from surgery.errors import SurgeryError
from surgery.marks import labels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["from_items"]


def from_items(source: Any, model: ir.Model, *, memory: int = MEMORY) -> Dataset:
    """Reads ``(example, target)`` pairs of a data set as PyTorch's, or of anything that can be iterated.

    Examples are arrays, tensors, numbers, Pillow images or, for several inputs, mappings of these; images may differ in
    size. Targets are numbers, arrays, names of classes or, for several outputs, mappings of these. Where all examples
    fit into `memory`, or they have no length, they are read once; otherwise again each time that they are needed, by
    several threads at once. Examples that come out differently when they are read twice (a data set that augments) are
    read each time, too.

    Args:
        source: Gives the pairs.
        model: Says what its input takes.
        memory: How many bytes of examples may be kept.

    Raises:
        SurgeryError: An item is not a pair, or they do not fit together.
    """
    if hasattr(source, "batch_sampler") and hasattr(source, "dataset"):
        raise SurgeryError("a DataLoader gives batches; give its data set (loader.dataset), batches are made here")
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if indexed and not len(source):
        raise SurgeryError("the data set is empty")
    random = indexed and _random(source)
    examples: list[Any] | None = [] if not random else None
    targets, size = [], 0
    for index, item in enumerate(_items(source) if indexed else source):
        example, target = _pair(item, index)
        targets.append(target)
        if examples is not None:
            examples.append(_number(example))
            size += _bytes(examples[-1])
            if indexed and size > memory:
                examples = None
    if not targets:
        raise SurgeryError("the data set is empty")
    names: dict[str, tuple[str, ...]] = {}
    if isinstance(targets[0], dict):
        labelled: Any = {key: _targets([t[key] for t in targets], key, names, labels(model, key)) for key in targets[0]}
    else:
        labelled = _targets(targets, "", names)
    rows = _rows(source, examples, model, random, memory)
    data = from_arrays(rows, labelled, model, names.pop("", None) or _classes(source))
    return dataclasses.replace(data, output_labels=names)


def _items(source: Any) -> Iterable[Any]:
    """Each item by its number: some data sets cannot be iterated, or never end."""
    return (source[index] for index in range(len(source)))


def _pair(item: Any, index: int) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else type(item).__name__
        raise SurgeryError(f"item {index} of the data is a {kind}; pairs of an example and its target are needed")
    return item[0], item[1]


def _is_picture(value: Any) -> bool:
    """Whether it is a Pillow image."""
    return hasattr(value, "getexif") and hasattr(value, "convert")


def _number(value: Any) -> Any:
    """An example as an array, or as a mapping of arrays; Pillow images as they are."""
    if isinstance(value, dict):
        return {key: np.asarray(_number(v)) for key, v in value.items()}
    return value if _is_picture(value) else np.asarray(value)


def _bytes(example: Any) -> int:
    if isinstance(example, dict):
        return sum(array.nbytes for array in example.values())
    return example.width * example.height * 3 if _is_picture(example) else example.nbytes


def _random(source: Any) -> bool:
    """Whether an item is another one when it is read again: the first or the last, in eight readings."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return all(same(a[key], b[key]) for key in a)
        return np.array_equal(np.asarray(a), np.asarray(b))

    for index in {0, len(source) - 1}:
        first = _number(_pair(source[index], index)[0])
        if not all(same(first, _number(_pair(source[index], index)[0])) for _ in range(7)):
            return True
    return False


def _classes(source: Any) -> tuple[str, ...] | None:
    """The names of the classes, as torchvision's data sets have them."""
    names = getattr(source, "classes", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _targets(
    values: list[Any], key: str, names: dict[str, tuple[str, ...]], known: Sequence[str] | None = None
) -> np.ndarray:
    """Targets as an array; `names` gets those of classes, in the order of the `known` where these have them all."""
    where = f" of output {key!r}" if key else ""
    if all(isinstance(value, str) for value in values):
        found = set(values)
        names[key] = tuple(known) if known and found <= set(known) else tuple(sorted(found))
        number = {name: index for index, name in enumerate(names[key])}
        return np.array([number[value] for value in values], np.int64)
    try:
        made = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise SurgeryError(f"the targets{where} do not all have one shape ({error})") from error
    if made.dtype == bool:
        return made.astype(np.int64 if made.ndim == 1 else np.float32)
    if not np.issubdtype(made.dtype, np.number):
        raise SurgeryError(f"the targets{where} are {made.dtype}; numbers or names of classes are needed")
    return made


def _rows(source: Any, examples: list[Any] | None, model: ir.Model, random: bool, memory: int) -> Any:
    first = examples[0] if examples is not None else _number(_pair(source[0], 0)[0])
    if isinstance(first, dict):
        if examples is None:
            raise SurgeryError(
                "examples of several inputs are kept in memory, but these differ from reading to reading, or are too "
                "many; give arrays, one for each input"
            )
        return {key: _stack([example[key] for example in examples]) for key in first}
    spec = input_spec(model)
    image = _is_picture(first) or (first.dtype == np.uint8 and first.ndim in (2, 3) and len(spec.shape) == 4)
    if examples is not None:
        alike = not _is_picture(first) and len({np.shape(example) for example in examples}) == 1
        if alike or not image:
            return _stack(examples)
    if not image:
        return _Items(source, first, random)
    if spec.size is None:
        raise SurgeryError("the model's input has no fixed height and width; give it a size before training on images")
    return _Pictures(source if examples is None else examples, spec, random, memory, paired=examples is None)


def _stack(examples: Sequence[np.ndarray]) -> np.ndarray:
    other = next((i for i, example in enumerate(examples) if np.shape(example) != np.shape(examples[0])), None)
    if other is not None:
        raise SurgeryError(
            f"example 0 has shape {list(np.shape(examples[0]))}, example {other} {list(np.shape(examples[other]))}; "
            "only images (uint8) may differ"
        )
    return np.stack(examples)


class _Items(LazyRows):
    """Examples of a data set, read when they are needed."""

    slow = True

    def __init__(self, source: Any, first: np.ndarray, random: bool) -> None:
        self._source, self.random = source, random
        self.shape, self.dtype = (len(source), *first.shape), first.dtype

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(_pair(self._source[int(i)], int(i))[0], self.dtype) for i in indices])

    def fingerprint(self) -> None:
        return None


class _Pictures(Images):
    """Images of a data set, or of a list."""

    def __init__(self, source: Any, spec: InputSpec, random: bool, memory: int, paired: bool) -> None:
        super().__init__(len(source), spec, 0)  # nothing is kept that is in memory already, or is to be read anew
        self._source, self.random, self._paired = source, random, paired

    def decode(self, index: int, least: tuple[int, int]) -> Picture:
        example = _pair(self._source[index], index)[0] if self._paired else self._source[index]
        if _is_picture(example):
            return upright(example, self.gray)
        from PIL import Image

        pixels = np.asarray(example)
        return upright(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels), self.gray)

    def fingerprint(self) -> str | None:
        if self._paired:
            return None
        each = [digest(np.asarray(example)) for example in self._source]
        return "\n".join([f"{self.shape} {self.resize}", *map(str, each)])
