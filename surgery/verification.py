"""Two models on the same examples: how far their outputs are apart."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError, nearest
from surgery.runtime import providers, session

__all__ = ["OutputDifference", "read_examples", "verify_models"]

_OPEN = 32  # the size of a dimension that a model leaves open, but for the first, the batch's
_WORDS = 2  # random whole numbers are below this, so that they are in every vocabulary
Inputs = dict[str, np.ndarray]


@dataclasses.dataclass
class OutputDifference:
    """How far an output of two models is apart.

    Attributes:
        name: Its name in the old model.
        values: How many numbers were compared.
        outside: How many of them differ by more than the tolerance.
        absolute: The largest absolute difference.
        relative: The largest difference as a part of the old number.
        agreeing: Of how many examples the largest number is at the same place, where an output has one number a class.
        examples: How many examples there were.
        shapes: The shapes, where they differ and nothing can be compared.
    """

    name: str
    values: int = 0
    outside: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    agreeing: int | None = None
    examples: int = 0
    shapes: tuple[str, str] | None = None

    @property
    def same(self) -> bool:
        """Whether all numbers are within the tolerance."""
        return not self.outside and self.shapes is None

    def as_data(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self) | {"same": self.same}

    def __str__(self) -> str:
        if self.shapes is not None:
            return f"{self.name}: shape {self.shapes[0]} → {self.shapes[1]}"
        found = f"{self.name}: at most {self.absolute:.3g} apart, {self.relative:.3g} relative"
        if self.outside:
            found += f"; {self.outside:,} of {self.values:,} numbers are outside the tolerance"
        if self.agreeing is not None:
            found += f"; the same class for {self.agreeing} of {self.examples}"
        return found


def read_examples(
    models: tuple[ir.Model, ir.Model],
    data: Path | None = None,
    part: str | None = None,
    shapes: Sequence[str] = (),
    count: int = 64,
    seed: int = 0,
) -> tuple[Inputs, Inputs]:
    """Makes the inputs of two models from the same examples.

    Args:
        models: The models.
        data: A ``.npz`` file with an array for each input, by its name; or what `surgery.data` reads, each model's
            input prepared as it says itself. Random numbers without.
        part: Which part of the data.
        shapes: ``input=8x3x224x224`` for random numbers.
        count: How many examples; fewer where a model takes a fixed number at a time, which does not divide it.
        seed: Of the random numbers.

    Raises:
        SurgeryError: The data cannot be read or do not fit, or the models' inputs are not the same.
    """
    old, new = models
    fixed = _fixed_batch(models) or 1
    count = max(count // fixed, 1) * fixed
    names = _paired("input", [str(v.name) for v in old.graph.inputs], [str(v.name) for v in new.graph.inputs])
    if data is None:
        given = _random(old, shapes, count, seed)
    elif shapes:
        raise SurgeryError("--shape is for random numbers, and there are data")
    else:
        arrays = _named_arrays(data, list(names)) if part is None else None
        if arrays is None:
            return _prepared(old, data, part, count, fixed), _prepared(new, data, part, count, fixed)
        given = {name: array[: _whole(data, min(count, len(array)), fixed)] for name, array in arrays.items()}
    return given, {names[name]: array for name, array in given.items()}


def _paired(what: str, old: list[str], new: list[str]) -> dict[str, str]:
    """Which name of the new model is which of the old one: the same, else the one in the same place."""
    if len(old) != len(new):
        raise SurgeryError(
            f"one model has {len(old)} {what}s ({', '.join(old)}), the other {len(new)} ({', '.join(new)})"
        )
    return {name: name for name in old} if set(old) == set(new) else dict(zip(old, new, strict=True))


def _named_arrays(data: Path, names: list[str]) -> Inputs | None:
    """The arrays of a file that has one for each input."""
    if data.suffix != ".npz" or not data.is_file():
        return None
    try:
        with np.load(data, allow_pickle=False) as file:
            return {name: file[name] for name in names} if set(names) <= set(file.files) else None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise SurgeryError(f"{data}: is not a readable .npz file ({error})") from error


def _fixed_batch(models: Sequence[ir.Model]) -> int | None:
    """How many examples a model takes at a time, where it takes no other number of them."""
    for model in models:
        sizes = {
            value.shape[0] if value.shape is not None and len(value.shape) else None for value in model.graph.inputs
        }
        (size,) = sizes if len(sizes) == 1 else (None,)
        if isinstance(size, int) and size > 0:
            return size
    return None


def _whole(data: Path, count: int, fixed: int) -> int:
    """How many examples are whole batches."""
    if count < fixed:
        raise SurgeryError(f"{data}: has {count} examples, but a model takes {fixed} at a time")
    return count - count % fixed


def _prepared(model: ir.Model, data: Path, part: str | None, count: int, fixed: int) -> Inputs:
    from surgery.data import open_part

    examples = open_part(data, model, part)
    count = _whole(data, min(count, len(examples)), fixed)
    for inputs, *_ in examples.subset(np.arange(count)).batches(count):
        return inputs if isinstance(inputs, dict) else {str(model.graph.inputs[0].name): inputs}
    raise SurgeryError(f"{data}: has no examples")


def _random(model: ir.Model, shapes: Sequence[str], count: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    given = dict(_parse_shape(text, model) for text in shapes)
    arrays = {}
    for value in model.graph.inputs:
        dims = given.get(str(value.name))
        if dims is None:
            if value.shape is None:
                raise SurgeryError(
                    f"the shape of input {value.name!r} is unknown; say --shape {value.name}=1x3x224x224"
                )
            dims = [d if isinstance(d, int) else count if axis == 0 else _OPEN for axis, d in enumerate(value.shape)]
        try:
            arrays[str(value.name)] = _numbers(rng, dims, np.dtype((value.dtype or ir.DataType.FLOAT).numpy()))
        except (MemoryError, ValueError, TypeError) as error:
            raise SurgeryError(f"no random numbers can be made for input {value.name!r} of {dims} ({error})") from error
    return arrays


def _numbers(rng: np.random.Generator, dims: Sequence[int], kind: np.dtype) -> np.ndarray:
    return (rng.integers(0, _WORDS, dims) if kind.kind in "iub" else rng.normal(size=dims)).astype(kind)


def _parse_shape(text: str, model: ir.Model) -> tuple[str, list[int]]:
    name, _, dims = text.rpartition("=")
    names = [str(v.name) for v in model.graph.inputs]
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        raise SurgeryError(f"--shape {text}: there is no input {name!r}{nearest(name, names)}; write INPUT=8x3x224x224")
    sizes = dims.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise SurgeryError(f"--shape {text}: write INPUT=8x3x224x224")
    return name, [int(size) for size in sizes]


def verify_models(
    models: tuple[ir.Model, ir.Model], inputs: tuple[Inputs, Inputs], *, rtol: float, atol: float, batch_size: int = 16
) -> list[OutputDifference]:
    """Runs two models on their inputs and compares each output; a number may differ by ``atol + rtol · |old|``.

    Raises:
        SurgeryError: A model does not run, or they have not as many outputs.
    """
    old, new = (list(map(str, (o.name for o in model.graph.outputs))) for model in models)
    names = _paired("output", old, new)
    found = {name: OutputDifference(name) for name in names}
    size = _batch_size(models, inputs, batch_size)
    runs = [_outputs(model, given, size) for model, given in zip(models, inputs, strict=True)]
    for before, after in zip(*runs, strict=True):
        for name, difference in found.items():
            _compare(difference, before[name], after[names[name]], rtol, atol)
    return list(found.values())


def _batch_size(models: tuple[ir.Model, ir.Model], inputs: tuple[Inputs, Inputs], wanted: int) -> int | None:
    """How many examples may be run at a time; None where the inputs are no batches of as many."""
    arrays = [array for given in inputs for array in given.values()]
    if any(not array.ndim for array in arrays) or len({len(array) for array in arrays}) != 1:
        return None
    return _fixed_batch(models) or wanted


def _outputs(model: ir.Model, inputs: Inputs, size: int | None) -> Iterator[dict[str, np.ndarray]]:
    """What a model makes of its inputs, `size` examples at a time."""
    run = session(model, providers("cpu"))
    names = [str(o.name) for o in model.graph.outputs]
    starts = [0] if size is None else range(0, len(next(iter(inputs.values()))), size)
    for start in starts:
        batch = inputs if size is None else {name: array[start : start + size] for name, array in inputs.items()}
        try:
            yield dict(zip(names, run.run(None, batch), strict=True))
        except Exception as error:
            raise SurgeryError(f"the model does not run: {' '.join(str(error).split())[:400]}") from error


def _compare(into: OutputDifference, old: Any, new: Any, rtol: float, atol: float) -> None:
    a, b = np.asarray(old), np.asarray(new)
    if a.shape != b.shape:
        into.shapes = into.shapes or (str(list(a.shape)), str(list(b.shape)))
        return
    if a.dtype == object or b.dtype == object:  # texts
        into.values += a.size
        into.outside += int((a != b).sum())
        return
    if a.ndim == 2 and a.shape[1] > 1:
        into.agreeing = (into.agreeing or 0) + int((a.argmax(1) == b.argmax(1)).sum())
    into.examples += len(a) if a.ndim else 1
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        gap = np.where(equal, 0.0, np.abs(x - y))
        gap = np.where(np.isnan(gap), math.inf, gap)  # a number, and none
        share = np.where(gap == 0, 0.0, gap / np.abs(x))
    into.values += a.size
    into.outside += int((~(gap <= atol + rtol * np.abs(x)) & ~equal).sum())
    into.absolute = max(into.absolute, float(gap.max(initial=0)))
    into.relative = max(into.relative, float(np.where(np.isnan(share), math.inf, share).max(initial=0)))
