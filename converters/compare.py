"""The comparison of a converted model with what the source's own framework computes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.registry import Outputs, find_converter
from converters.trial import has_free_sizes, made_up_inputs, run
from surgery.errors import SurgeryError

__all__ = ["TOLERANCE", "Difference", "Verification", "compare"]

TOLERANCE = 1e-3
_SIZES = ((2, 64), (1, 64), (1, 224), (1, 8))  # the batch, and another dimension, where they may have any


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one output of the model is from the framework's.

    Attributes:
        absolute: The largest difference of two numbers.
        relative: The same, as a part of the largest number of the framework's output.
    """

    absolute: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        framework: What the model was compared with.
        shapes: Of the inputs, by name.
        differences: By output name.
        tolerance: The largest relative difference that is none.
    """

    framework: str
    shapes: dict[str, tuple[int, ...]]
    differences: dict[str, Difference]
    tolerance: float

    @property
    def absolute(self) -> float:
        """The largest absolute difference."""
        return max(found.absolute for found in self.differences.values())

    @property
    def relative(self) -> float:
        """The largest relative difference."""
        return max(found.relative for found in self.differences.values())

    @property
    def equal(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(found.relative <= self.tolerance for found in self.differences.values())

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in self.shapes.items())
        return (
            f"compared with {self.framework} on random {inputs}: largest difference {self.absolute:.2g}, relative "
            f"{self.relative:.2g}"
        )


def compare(
    source: str | os.PathLike[str],
    model: ir.Model,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> Verification:
    """Runs `model` and the source's own framework on the same random input.

    The batch is of two examples where the model takes any number and both run with it, else of one.

    Args:
        source: What `model` was converted from.
        model: The result of `converters.convert`.
        seed: Of the input.
        tolerance: The largest relative difference that is none.
        **options: Those with which it was converted, `weights` among them.

    Raises:
        SurgeryError: The framework is not installed, or one of both cannot run, or they disagree about shapes.
    """
    from converters import resolve

    path, options, _ = resolve(source, options)
    chosen = find_converter(path)
    for batch, free in _SIZES:
        inputs = made_up_inputs(model, batch=batch, free=free, seed=seed)
        try:
            found = run(model, inputs)
            outputs = chosen.run_reference(path, dict(inputs), options)
            expected = _by_name(outputs, list(found), path, chosen.name)
            differences = {name: _difference(path, name, found[name], expected[name]) for name in expected}
        except SurgeryError as error:
            if (batch, free) != _SIZES[-1] and has_free_sizes(model):
                continue
            advice = "; if only some sizes fit its input, give one as its shape" if has_free_sizes(model, 1) else ""
            raise SurgeryError(f"the conversion cannot be compared with its source: {error}{advice}") from error
        shapes = {name: array.shape for name, array in inputs.items()}
        return Verification(chosen.name, shapes, differences, tolerance)
    raise AssertionError("unreachable")


def _by_name(outputs: Outputs, names: list[str], source: Path, framework: str) -> dict[str, np.ndarray]:
    if isinstance(outputs, Mapping):
        found = {name: np.asarray(outputs[name]) for name in names if name in outputs}
    else:
        found = dict(zip(names, map(np.asarray, outputs), strict=len(outputs) == len(names)))
    count = len(outputs)
    if not found or (count != len(names) and not isinstance(outputs, Mapping)):
        raise SurgeryError(f"{source}: {framework} computes {count} outputs, the converted model {', '.join(names)}")
    return found


def _difference(source: Path, name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    if found.shape != expected.shape:
        raise SurgeryError(
            f"{source}: output {name!r} of the converted model is {list(found.shape)}, and was {list(expected.shape)}"
        )
    if not expected.size:
        return Difference(0.0, 0.0)
    new, old = found.astype(np.float64), expected.astype(np.float64)
    same = (new == old) | (np.isnan(new) & np.isnan(old))  # infinities too
    gaps = np.where(same, 0.0, np.abs(new - old))
    largest = float(np.nanmax(gaps)) if not np.isnan(gaps).any() else float("inf")
    scale = float(np.abs(old[np.isfinite(old)]).max(initial=0.0))
    return Difference(largest, largest / scale if scale else largest)
