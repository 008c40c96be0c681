"""The registry of converters. A new one is one more module or package in this folder, which registers itself:

    @converter("Keras", recognizes=lambda path: path.suffix in (".h5", ".keras"))
    def convert_keras(source: Path, *, weights: Path | None = None) -> ir.Model:
        ...

Such a module is imported whenever something is converted, so it imports its framework inside the function.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from surgery.errors import SurgeryError, nearest

__all__ = ["Converter", "converter", "find_converter"]

_registry: dict[str, Converter] = {}


@dataclasses.dataclass(frozen=True)
class Converter:
    """What converts one framework's files.

    Attributes:
        name: The framework's name.
        recognizes: Whether a path (a file or folder that exists) is one of its files.
        function: Takes the path and, by keyword, ``weights`` and the options of this framework; returns the model.
    """

    name: str
    recognizes: Callable[[Path], bool]
    function: Callable[..., ir.Model]

    def __call__(self, source: Path, options: dict[str, Any]) -> ir.Model:
        """Converts `source`.

        Raises:
            SurgeryError: An option is not one of this converter's, or the source cannot be converted.
        """
        known = list(inspect.signature(self.function).parameters)[1:]
        for option in options:
            if option not in known:
                raise SurgeryError(
                    f"{source}: converting from {self.name} has no option {option!r}"
                    f"{nearest(option, known) or '; it has ' + ', '.join(known)}"
                )
        return self.function(source, **options)


def converter(
    name: str, recognizes: Callable[[Path], bool]
) -> Callable[[Callable[..., ir.Model]], Callable[..., ir.Model]]:
    """Registers the decorated function as the converter from framework `name`."""

    def register(function: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
        _registry[name] = Converter(name, recognizes, function)
        return function

    return register


def find_converter(source: Path) -> Converter:
    """Returns the converter that recognizes `source`.

    Raises:
        SurgeryError: None does.
    """
    package = Path(__file__).parent
    for module in pkgutil.iter_modules([str(package)]):
        importlib.import_module(f"{__package__}.{module.name}")
    for candidate in _registry.values():
        if candidate.recognizes(source):
            return candidate
    kind = "this folder" if source.is_dir() else "a file of this kind"
    raise SurgeryError(f"{source}: no converter recognizes {kind}; known are {', '.join(_registry)}")
