"""Options that several converters have: the inputs' shapes, the function for layers that are not known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgery.errors import SurgeryError

__all__ = ["Dim", "Shape", "custom_function", "input_shapes"]

Dim = int | str
"""A dimension: its size, or a name where any size goes."""
Shape = int | str | Sequence[int | str] | Mapping[str, str | Sequence[int | str]]
"""An input's shape without the batch, ``3x224x224`` or a sequence, or those of several inputs by name."""


def input_shapes(shape: Shape | None) -> dict[str, list[Dim]]:
    """Input shapes by name, "" for one not named. Text is such as ``3x224x224`` or ``data=3x?x?,info=3``."""
    if shape is None:
        return {}
    if isinstance(shape, str):
        parts = [part.rpartition("=") for part in shape.split(",")]
        return {name.strip(): _dims(dims.split("x")) for name, _, dims in parts}
    if isinstance(shape, int):
        return {"": _dims([shape])}
    if isinstance(shape, Mapping):
        return {name: _dims(dims.split("x") if isinstance(dims, str) else dims) for name, dims in shape.items()}
    if isinstance(shape, Sequence):
        return {"": _dims(shape)}
    raise SurgeryError(f"the shape {shape!r} is not one; write 3x224x224, or 3x?x? for any size")


def _dims(dims: Sequence[int | str]) -> list[Dim]:
    names = ("channels", "height", "width") if len(dims) == 3 else [f"size{i}" for i in range(len(dims))]
    try:
        return [name if d == "?" else int(d) for d, name in zip(dims, names, strict=True)]
    except (ValueError, TypeError) as error:
        shown = "x".join(str(d) for d in dims)
        raise SurgeryError(f"the shape {shown!r} is not one; write 3x224x224, or 3x?x? for any size") from error


def custom_function(custom: str | Callable[..., Any] | None, what: str = "custom") -> Callable[..., Any] | None:
    """The function that ``module:function`` names."""
    if custom is None or callable(custom):
        return custom
    module, _, name = str(custom).partition(":")
    if not module or not name:
        raise SurgeryError(f"{what} {custom!r}: write module:function")
    sys.path.insert(0, "")  # a module may lie in the folder where the user is
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module does
        raise SurgeryError(
            f"{what} {custom!r}: the module cannot be imported ({' '.join(str(error).split())})"
        ) from error
    finally:
        sys.path.remove("")
    if function is None:
        raise SurgeryError(f"{what} {custom!r}: {module} has no {name!r}")
    if not callable(function):
        raise SurgeryError(f"{what} {custom!r}: {name} is not a function")
    return function
