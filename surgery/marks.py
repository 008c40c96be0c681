"""Marks: what training must know about a parameter, kept in the ONNX file itself.

A mark is an entry of `metadata_props` (ONNX IR ≥ 10) on the parameter's value, with a key that starts with
``surgery.``. Inference ignores it and every ONNX tool still opens the file. Labels and preprocessing are entries of
the model's own `metadata_props`, each a JSON object by output or input name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import ConfigDict, TypeAdapter, ValidationError

from surgery.errors import SurgeryError

__all__ = [
    "Constraint",
    "Marks",
    "Preprocessing",
    "described",
    "guess_layout",
    "labels",
    "marks",
    "preprocessing",
    "set_labels",
    "set_marks",
    "set_preprocessing",
]

_PREFIX = "surgery."


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A set that a parameter is projected onto after every update.

    Attributes:
        type: ``max_norm``: the L2 norm over `axes` is at most `value` (Srivastava et al. 2014, section 5.1).
        value: The bound.
        axes: The axes that the norm sums over, as in Keras' ``MaxNorm(axis=…)``: all but the output unit's.
    """

    type: Literal["max_norm"]
    value: float
    axes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type} {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Marks:
    """What training must know about one parameter.

    Attributes:
        trainable: Whether training changes it. False on a BatchNormalization's running statistics keeps them.
        learning_rate: Multiplier of the learning rate (Caffe's ``lr_mult``).
        decay: Multiplier of the weight decay (Caffe's ``decay_mult``).
        constraint: What the parameter is projected onto after every update.
    """

    trainable: bool = True
    learning_rate: float = 1.0
    decay: float = 1.0
    constraint: Constraint | None = None

    @property
    def frozen(self) -> bool:
        """Whether training leaves it as it is: not trainable, or with a learning rate of zero."""
        return not self.trainable or self.learning_rate == 0


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How raw images become a network's input: ``(pixels · scale − mean) / std``, channels in `color` order.

    Attributes:
        color: Channel order of the input tensor.
        layout: Axis order of the input tensor.
        size: Height and width in pixels; None where any size goes.
        scale: Factor on 0–255 pixel values, applied first.
        mean: Subtracted after scaling; one number, or one per channel in `color` order.
        std: Divided by, last; one number, or one per channel in `color` order.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    color: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def marks(parameter: ir.Value) -> Marks:
    """Reads the marks of `parameter` (an initializer); the defaults where there are none.

    Raises:
        SurgeryError: A mark is not one that `set_marks` writes.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Marks):
        text = parameter.metadata_props.get(_PREFIX + field.name)
        if text is None:
            continue
        try:
            found[field.name] = _READERS[field.name](json.loads(text))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SurgeryError(
                f"parameter {parameter.name!r}: the mark {_PREFIX}{field.name} is not readable ({error}); remove or "
                "mend it"
            ) from error
    return Marks(**found)


def _read_flag(data: Any) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"{data!r} is neither true nor false")
    return data


def _read_number(data: Any) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float) or not 0 <= data < math.inf:
        raise ValueError(f"{data!r} is not a number from 0")
    return float(data)


def _read_constraint(data: Any) -> Constraint | None:
    if data is None:
        return None
    if data["type"] != "max_norm":
        raise ValueError(f"{data['type']!r} is not a constraint; max_norm is what there is")
    value = _read_number(data["value"])
    if value == 0:
        raise ValueError("a bound of 0 leaves nothing")
    return Constraint("max_norm", value, tuple(int(axis) for axis in data["axes"]))


_READERS: dict[str, Callable[[Any], Any]] = {
    "trainable": _read_flag,
    "learning_rate": _read_number,
    "decay": _read_number,
    "constraint": _read_constraint,
}


def set_marks(parameter: ir.Value, **changes: Any) -> bool:
    """Sets some fields of `Marks` on `parameter`; a default value removes the entry.

    Returns:
        Whether anything changed.
    """
    old = marks(parameter)
    new = dataclasses.replace(old, **changes)
    if new == old:
        return False
    defaults = Marks()
    for name in changes:
        value = getattr(new, name)
        if value == getattr(defaults, name):
            parameter.metadata_props.pop(_PREFIX + name, None)
        else:
            data = dataclasses.asdict(value) if isinstance(value, Constraint) else value
            parameter.metadata_props[_PREFIX + name] = json.dumps(data)
    return True


def _table(model: ir.Model, key: str) -> dict[str, Any]:
    text = model.metadata_props.get(_PREFIX + key, "{}")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise SurgeryError(f"the model's metadata entry {_PREFIX}{key} is not a JSON object; remove or mend it")
    return table


def _set_entry(model: ir.Model, key: str, name: str, data: Any) -> bool:
    table = _table(model, key)
    if table.get(name) == data:
        return False
    if data is None:
        table.pop(name, None)
    else:
        table[name] = data
    if table:
        model.metadata_props[_PREFIX + key] = json.dumps(table, ensure_ascii=False)
    else:
        model.metadata_props.pop(_PREFIX + key, None)
    return True


def described(model: ir.Model, key: Literal["labels", "preprocessing"]) -> set[str]:
    """The outputs that have labels, or the inputs that have preprocessing, by name."""
    return set(_table(model, key))


def labels(model: ir.Model, output: str) -> list[str] | None:
    """Returns the class names of the output named `output`, in the order of its units.

    Raises:
        SurgeryError: The entry is not one that `set_labels` writes.
    """
    names = _table(model, "labels").get(output)
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise SurgeryError(f"the model's labels of output {output!r} are not a list of names; remove or mend them")
    return names


def set_labels(model: ir.Model, output: str, names: list[str] | None) -> bool:
    """Names the classes of `output`; None forgets them. Returns whether anything changed."""
    return _set_entry(model, "labels", output, None if names is None else [str(n) for n in names])


def preprocessing(model: ir.Model, input: str) -> Preprocessing | None:
    """Returns how images become the input named `input`, where the model says.

    Raises:
        SurgeryError: The entry is not one that `set_preprocessing` writes.
    """
    data = _table(model, "preprocessing").get(input)
    if data is None:
        return None
    try:
        return _preprocessing.validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise SurgeryError(
            f"the model's preprocessing of input {input!r} is not readable ({key}: {first['msg']}); remove or mend it"
        ) from error


_preprocessing = TypeAdapter(Preprocessing)


def guess_layout(shape: Iterable[Any]) -> Literal["NCHW", "NHWC"]:
    """The layout of an image input whose model does not say it: NHWC where only the last axis can be the channels'."""
    dims, colors = list(shape), (1, 3, 4)
    return "NHWC" if len(dims) == 4 and dims[3] in colors and dims[1] not in colors else "NCHW"


def set_preprocessing(model: ir.Model, input: str, how: Preprocessing | None) -> bool:
    """Writes how images become `input`; None forgets it. Returns whether anything changed."""
    data = None if how is None else json.loads(json.dumps(dataclasses.asdict(how)))
    return _set_entry(model, "preprocessing", input, data)
