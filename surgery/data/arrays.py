"""Data from arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.data.classes import renumbered
from surgery.data.dataset import Dataset
from surgery.data.preprocess import InputSpec, Preparer, input_spec, preparer, takes_images
from surgery.data.rows import Arrays, Examples, LazyRows, Rows
from surgery.errors import SurgeryError
from surgery.marks import labels

__all__ = ["from_arrays"]


def from_arrays(
    examples: Examples, targets: Arrays, model: ir.Model, classes: Sequence[str] | None = None, part: str = "all"
) -> Dataset:
    """Returns a data set of arrays for `model`.

    Args:
        examples: See `preparer` for what they may be; for a model with several inputs, an array for each by its name.
        targets: Class numbers or floats; for several outputs, an array for each by its name.
        model: Says what its inputs take.
        classes: The classes' names; where the model has labels and all of them are among these, these number them.
        part: What part of their source they are.

    Raises:
        SurgeryError: There are none, as many targets as examples are not there, or they do not fit an input.
    """
    if isinstance(targets, dict):
        targets = {name: _targets(array) for name, array in targets.items()}
    else:
        targets = _targets(targets)
    if isinstance(examples, dict):
        examples = arrays = {name: _rows(array) for name, array in examples.items()}
        specs = _by_input(arrays, model)
    else:
        spec = input_spec(model)
        specs = {str(model.graph.inputs[0].name): spec}
        examples = _rows(examples)
        arrays = dict.fromkeys(specs, examples)
    if not all(len(array) for array in arrays.values()):
        raise SurgeryError("the data set is empty")
    prepare = _Prepare({name: preparer(arrays[name], spec) for name, spec in specs.items()})
    assumed = {name: s.how for name, s in specs.items() if s.assumed and takes_images(arrays[name], s)}
    if classes and not isinstance(targets, dict):
        targets, classes = _by_labels(targets, classes, model)
    return Dataset(examples, targets, prepare, tuple(classes) if classes else None, part, assumed=assumed)


def _by_labels(targets: np.ndarray, classes: Sequence[str], model: ir.Model) -> tuple[np.ndarray, Sequence[str]]:
    """Targets and names of classes in the order of the model's labels, where these have them all."""
    for output in model.graph.outputs:
        known = labels(model, str(output.name))
        if known and set(classes) <= set(known):
            return renumbered(targets, classes, known), known
    return targets, classes


def _rows(examples: Any) -> Rows:
    """Rows as they are; anything else as an array."""
    return examples if isinstance(examples, LazyRows) else np.asanyarray(examples)


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Prepares the examples of each input, by its name; those of a single input may come without it."""

    each: dict[str, Preparer]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images that a single input takes."""
        return next(iter(self.each.values())).spec.size if len(self.each) == 1 else None

    def __call__(self, batch: Arrays) -> Arrays:
        if isinstance(batch, dict):
            return {name: self.each[name](array) for name, array in batch.items()}
        return next(iter(self.each.values()))(batch)


def _targets(targets: np.ndarray) -> np.ndarray:
    """Class numbers as int64, others as float32; a single column of integers, as Keras' data sets have, as `[N]`."""
    targets = np.asarray(targets)
    if targets.dtype == bool and targets.ndim == 1:
        return targets.astype(np.int64)
    if not np.issubdtype(targets.dtype, np.integer):
        try:
            if targets.dtype.kind in "USMm":
                raise ValueError(f"they are {targets.dtype}")
            return targets.astype(np.float32)
        except (ValueError, TypeError) as error:
            raise SurgeryError(
                f"the targets are no numbers ({error}); number the classes from 0, or give pairs of an example and the "
                "name of its class"
            ) from error
    return (targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets).astype(np.int64)


def _by_input(examples: Mapping[str, Rows], model: ir.Model) -> dict[str, InputSpec]:
    """What each input takes, by its name."""
    names = [str(i.name) for i in model.graph.inputs]
    if set(examples) != set(names):
        raise SurgeryError(
            f"examples are given for {', '.join(examples)}, but the model's inputs are {', '.join(names)}"
        )
    return {name: input_spec(model, name) for name in names}
