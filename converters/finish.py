"""What every conversion ends with: labels, preprocessing, the check of the result."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from converters.trial import LIGHT, try_once, weights_as_inputs
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.marks import Preprocessing, set_labels, set_preprocessing
from surgery.proto import light_proto

__all__ = ["apply_labels", "apply_preprocessing", "check", "read_labels"]


def read_labels(labels: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    """Returns class names given as a list or as a file: text with one a line, or JSON, see `_read_json_labels`.

    Raises:
        SurgeryError: The file cannot be read.
    """
    if not isinstance(labels, str | os.PathLike):
        return [str(label) for label in labels]
    path = Path(labels)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return _read_json_labels(text)
        return [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise SurgeryError(
            f"{path}: the labels cannot be read ({error}); give a text file, one label a line"
        ) from error


def _read_json_labels(text: str) -> list[str]:
    """Class names in a JSON list, or by class number, alone or last in a list, as Keras' imagenet_class_index.json.

    Raises:
        ValueError: The file has something else.
    """
    data = json.loads(text)
    if isinstance(data, dict) and set(data) == {str(number) for number in range(len(data))}:
        data = [data[str(number)] for number in range(len(data))]
    names = [name[-1] if isinstance(name, list) and name else name for name in data] if isinstance(data, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("it has neither a list of names nor names by class number")
    return names


def apply_labels(model: ir.Model, labels: Sequence[str] | str | os.PathLike[str]) -> None:
    """Names the classes of the output that has as many units as there are `labels`.

    Raises:
        SurgeryError: No output has that many units.
    """
    names = read_labels(labels)
    sizes = {output: _classes(output) for output in model.graph.outputs}
    chosen = [output for output, size in sizes.items() if size == len(names)]
    if not chosen and len(sizes) == 1 and None in sizes.values():
        chosen = list(sizes)
    if not chosen:
        found = ", ".join(f"{output.name!r} {size or 'unknown'}" for output, size in sizes.items())
        raise SurgeryError(f"{len(names)} labels were given, but the outputs have other numbers of units: {found}")
    for output in chosen:
        set_labels(model, str(output.name), names)


def _classes(output: ir.Value) -> int | None:
    """The number of units of an output: its axis 1, where there is one."""
    if output.shape is None or len(output.shape) < 2:
        return None
    size = output.shape[1]
    return size if isinstance(size, int) else None


def apply_preprocessing(model: ir.Model, how: Preprocessing) -> None:
    """Says how images become the model's input: the only one, or the first with four axes.

    The layout is the model's, where its shape leaves no doubt: an option may have changed it.
    """
    inputs = list(model.graph.inputs)
    images = [i for i in inputs if i.shape is not None and len(i.shape) == 4]
    for value in images[:1] or inputs[:1]:
        set_preprocessing(model, str(value.name), dataclasses.replace(how, layout=_layout(value, how)))


def _layout(value: ir.Value, how: Preprocessing) -> Literal["NCHW", "NHWC"]:
    if value.shape is None or len(value.shape) != 4:
        return how.layout
    channels = 1 if how.color == "gray" else 3
    first, last = value.shape[1] == channels, value.shape[3] == channels
    return how.layout if first == last else "NCHW" if first else "NHWC"


def check(model: ir.Model, source: Path) -> None:
    """Infers shapes, runs ONNX's checker, and the model itself once.

    Raises:
        SurgeryError: The converted graph is inconsistent, which is a fault of the converter or of the source.
    """
    model.ir_version = IR_VERSION
    infer_shapes(model)
    proto, _ = light_proto(model, LIGHT)
    weights_as_inputs(proto, model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise SurgeryError(f"{source}: the converted model is not valid ONNX ({str(error).splitlines()[0]})") from error
    try_once(model, source)
