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

__all__ = ["Converter", "converter", "find_converter", "find_network"]

_SHOWN = 8  # names in a message
_registry: dict[str, Converter] = {}


@dataclasses.dataclass(frozen=True)
class Converter:
    """What converts one framework's files.

    Attributes:
        name: The framework's name.
        recognizes: Whether a path (a file or folder that exists) is one of its files.
        function: Takes the path and, by keyword, ``weights`` and the options of this framework; returns the model.
        networks: The files in a folder that each stand for a network; by default all that it recognizes.
    """

    name: str
    recognizes: Callable[[Path], bool]
    function: Callable[..., ir.Model]
    networks: Callable[[Path], list[Path]] | None = None

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
    name: str, recognizes: Callable[[Path], bool], networks: Callable[[Path], list[Path]] | None = None
) -> Callable[[Callable[..., ir.Model]], Callable[..., ir.Model]]:
    """Registers the decorated function as the converter from framework `name`."""

    def register(function: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
        _registry[name] = Converter(name, recognizes, function, networks)
        return function

    return register


def find_converter(source: Path) -> Converter:
    """Returns the converter that recognizes `source`.

    Raises:
        SurgeryError: None does.
    """
    for candidate in _converters():
        if candidate.recognizes(source):
            return candidate
    raise SurgeryError(f"{source}: no converter recognizes a file of this kind; known are {', '.join(_registry)}")


def find_network(folder: Path) -> Path:
    """Returns what to convert in `folder`: itself, where a framework has folders for networks, or its one network.

    Raises:
        SurgeryError: There are several networks in it, or none.
    """
    if any(candidate.recognizes(folder) for candidate in _converters()):
        return folder
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = sorted(
        path
        for candidate in _converters()
        for path in (candidate.networks(folder) if candidate.networks else filter(candidate.recognizes, files))
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise SurgeryError(f"{folder}: no converter recognizes a file in this folder; known are {', '.join(_registry)}")
    names = ", ".join(path.name for path in found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    raise SurgeryError(
        f"{folder}: a folder is a source where it has one network, or a card.yaml that names its files; this one has "
        f"{names}: name the file to convert"
    )


def _converters() -> list[Converter]:
    package = Path(__file__).parent
    for module in pkgutil.iter_modules([str(package)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return list(_registry.values())
