"""Data from folders that Hugging Face's `datasets` wrote (``save_to_disk``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from surgery.data.arrays import from_arrays
from surgery.data.dataset import Dataset
from surgery.data.folder import MEMORY
from surgery.data.images import Images, decode
from surgery.data.parts import PARTS
from surgery.data.preprocess import InputSpec, input_spec, require_pillow
from surgery.data.rows import LazyRows
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["from_saved", "is_saved", "saved_parts"]

_EXAMPLES = ("image", "img", "x", "input", "pixel_values")
_TARGETS = ("label", "labels", "target", "y")


def is_saved(path: Path) -> bool:
    """Whether `path` is a folder that ``save_to_disk`` wrote."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_parts(path: Path) -> dict[str, Path]:
    """Returns the folder of each part; ``all`` of a data set without splits."""
    if not (path / "dataset_dict.json").is_file():
        return {"all": path}
    there = {p: path / word for p, words in PARTS.items() for word in words[::-1] if (path / word).is_dir()}
    if not there:
        raise SurgeryError(f"{path}: has no split called train, validation or test")
    return there


def from_saved(path: Path, model: ir.Model, part: str, *, memory: int = MEMORY) -> Dataset:
    """Reads a data set that ``save_to_disk`` wrote.

    Its columns are the model's inputs and outputs by name; for a single one, ``image`` (``img``, ``x``, ``input``,
    ``pixel_values``) or the only column of images, and ``label`` (``labels``, ``target``, ``y``) or the only column of
    classes. Images are decoded when they are needed.

    Args:
        path: The folder of a split.
        model: Says what its inputs take.
        part: What the split is called.
        memory: How many bytes of examples may be kept.

    Raises:
        SurgeryError: `datasets` is missing, the folder is not readable, or a column is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise SurgeryError(
            f"{path}: is read by the package datasets ({error}); install it with: pip install 'onnx-surgery[datasets]'"
        ) from error
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:  # its readers raise many kinds
        raise SurgeryError(f"{path}: cannot be read ({error})") from error
    features = table.features
    inputs = [str(i.name) for i in model.graph.inputs]
    outputs = [str(o.name) for o in model.graph.outputs]
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    x = _find(path, list(features), inputs, _EXAMPLES, pictures, "the examples")
    y = _find(path, list(features), outputs, _TARGETS, classes, "the targets")
    if isinstance(x, dict):
        examples: Any = {name: _Column(table, column, memory) for name, column in x.items()}
    elif x in pictures:
        require_pillow()
        examples = _Pictures(table.cast_column(x, datasets.Image(decode=False)), x, input_spec(model), memory, table)
    else:
        examples = _Column(table, x, memory)
    columns = y if isinstance(y, dict) else {"": y}
    arrays = {name: np.asarray(table.with_format("numpy")[:][column]) for name, column in columns.items()}
    names = getattr(features[y], "names", None) if isinstance(y, str) else None
    return from_arrays(examples, arrays if isinstance(y, dict) else arrays[""], model, names, part)


def _find(
    path: Path, have: Sequence[str], named: Sequence[str], usual: Sequence[str], kind: Sequence[str], what: str
) -> str | dict[str, str]:
    """The column of each input or output, or the column of the only one."""
    if len(named) > 1 and any(name in have for name in named):
        return {name: name for name in named if name in have}
    found = [name for name in (*named, *usual) if name in have] or list(kind if len(kind) == 1 else ())
    if not found:
        raise SurgeryError(f"{path}: which column has {what}? Call it {usual[0]} (there are {', '.join(have)})")
    return found[0]


class _Column(LazyRows):
    """A column of numbers, which all have one shape; read once where they fit the memory."""

    def __init__(self, table: Any, column: str, memory: int) -> None:
        self._table, self._column = table.select_columns([column]).with_format("numpy"), column
        first = np.asarray(self._table[0][column])
        self.shape, self.dtype = (len(table), *first.shape), first.dtype
        self._print = f"{table._fingerprint} {column}"
        self._rows = self._read(slice(None)) if math.prod(self.shape) * first.dtype.itemsize <= memory else None

    def _read(self, index: Any) -> np.ndarray:
        rows = np.asarray(self._table[index][self._column])
        if rows.dtype == object:
            raise SurgeryError(f"the rows of column {self._column!r} do not all have one shape")
        return rows

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._read(indices) if self._rows is None else self._rows[indices]

    def fingerprint(self) -> str:
        return self._print


class _Pictures(Images):
    """A column of images."""

    def __init__(self, table: Any, column: str, spec: InputSpec, memory: int, original: Any) -> None:
        if spec.size is None:
            raise SurgeryError(
                "the model's input has no fixed height and width; give it a size before training on images"
            )
        super().__init__(len(table), spec, memory)
        self._table, self._column = table.select_columns([column]), column
        self._print = f"{original._fingerprint} {column} {self.shape} {self.resize}"

    def decode(self, index: int, least: tuple[int, int]) -> Image:
        found = self._table[index][self._column]
        try:
            file = io.BytesIO(found["bytes"]) if found["bytes"] is not None else Path(found["path"])
            return decode(file, least, self.gray)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise SurgeryError(f"image {index} of the data set does not decode ({error})") from error

    def fingerprint(self) -> str:
        return self._print
