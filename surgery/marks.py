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
from typing import Any, ClassVar, Literal, get_args

import onnx_ir as ir
from pydantic import ConfigDict, TypeAdapter, ValidationError

from surgery.errors import SurgeryError

__all__ = [
    "Constraint",
    "Marks",
    "Preprocessing",
    "Resize",
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


ConstraintType = Literal["max_norm", "min_max_norm", "unit_norm", "non_neg"]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A set that a parameter is brought into after every update.

    Attributes:
        type: ``max_norm``: the L2 norm over `axes` is at most `value`, w · min(1, value / ‖w‖) (Srivastava et al. 2014,
            section 5.1). ``min_max_norm``: it is between `minimum` and `value`, or nearer to that,
            w · (rate · clip(‖w‖, minimum, value) / ‖w‖ + 1 − rate). ``unit_norm``: it is 1, w / ‖w‖. ``non_neg``: no
            number is negative. The names and formulas are Keras'.
        value: The upper bound of the norm.
        axes: The axes that the norm sums over, as in Keras' ``MaxNorm(axis=…)``: all but the output unit's.
        minimum: The lower bound of the norm.
        rate: Which share of the way ``min_max_norm`` goes in one update.
    """

    type: ConstraintType
    value: float = 1.0
    axes: tuple[int, ...] = ()
    minimum: float = 0.0
    rate: float = 1.0

    def __str__(self) -> str:
        match self.type:
            case "max_norm":
                return f"max_norm {self.value:g}"
            case "min_max_norm":
                slowly = "" if self.rate == 1 else f" at rate {self.rate:g}"
                return f"min_max_norm {self.minimum:g} to {self.value:g}{slowly}"
            case _:
                return self.type


@dataclasses.dataclass(frozen=True)
class Marks:
    """What training must know about one parameter.

    Attributes:
        trainable: Whether training changes it. False on a BatchNormalization's running statistics keeps them.
        learning_rate: Multiplier of the learning rate (Caffe's ``lr_mult``).
        decay: Multiplier of the weight decay (Caffe's ``decay_mult``).
        constraint: What the parameter is brought into after every update.
        l1: Adds the gradient of l1 · ‖w‖₁ to the loss's, whatever the weight decay.
        l2: Likewise that of ½ · l2 · ‖w‖²; Keras' ``L2(x)`` is an `l2` of 2·x.
    """

    trainable: bool = True
    learning_rate: float = 1.0
    decay: float = 1.0
    constraint: Constraint | None = None
    l1: float = 0.0
    l2: float = 0.0

    @property
    def frozen(self) -> bool:
        """Whether training leaves it as it is: not trainable, or with a learning rate of zero."""
        return not self.trainable or self.learning_rate == 0


Resize = int | tuple[int, int] | None


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
        resize: What an image is resized to before `size` is cut out of its middle: None, just enough to cover `size`;
            a number, its shorter side (torchvision's 256); height and width, whatever its proportions (Keras, Caffe).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    color: Literal["rgb", "bgr", "gray"] = "rgb"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize = None

    @property
    def least(self) -> tuple[int, int] | None:
        """The height and width that images have at least after `resize`; None where they just cover `size`."""
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize


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
    kind = data["type"]
    if kind not in get_args(ConstraintType):
        raise ValueError(f"{kind!r} is not a constraint; there are {', '.join(get_args(ConstraintType))}")
    value, minimum, rate = (_read_number(data.get(key, default)) for key, default in _BOUNDS.items())
    if value == 0:
        raise ValueError("a bound of 0 leaves nothing")
    if minimum > value:
        raise ValueError(f"no norm is between {minimum:g} and {value:g}")
    return Constraint(kind, value, tuple(int(axis) for axis in data["axes"]), minimum, rate)


_BOUNDS = {"value": 1.0, "minimum": 0.0, "rate": 1.0}
_READERS: dict[str, Callable[[Any], Any]] = {
    "trainable": _read_flag,
    "learning_rate": _read_number,
    "decay": _read_number,
    "l1": _read_number,
    "l2": _read_number,
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
            data = _plain(value) if isinstance(value, Constraint) else value
            parameter.metadata_props[_PREFIX + name] = json.dumps(data)
    return True


def _plain(constraint: Constraint) -> dict[str, Any]:
    data = dataclasses.asdict(constraint)
    return {key: value for key, value in data.items() if key in ("type", "value", "axes") or value != _BOUNDS[key]}


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
