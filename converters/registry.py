"""The registry of converters. A new one is one more module or package in this folder, which registers itself:

    @converter("Keras", recognizes=lambda path: path.suffix in (".h5", ".keras"))
    def convert_keras(source: Path, *, weights: Path | None = None) -> ir.Model:
        ...

    @reference("Keras")
    def run_keras(source: Path, inputs: dict[str, np.ndarray], *, weights: Path | None = None) -> list[np.ndarray]:
        keras = load_extra("keras", "keras", "comparing with Keras")
        ...

Such a module is imported whenever something is converted, so it imports its framework inside the function.

The reference is what `converters.verify` and ``surgery convert --verify`` compare with: the framework's own outputs, at
inference. It is given the source as the converter is, the inputs by the names that they have in the converted model
(and in their order and layout), and of the converter's options those that are parameters of it. It returns the outputs
in the order of the converted model's, or some or all of them by its outputs' names.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError, nearest

__all__ = ["Converter", "Outputs", "converter", "find_converter", "find_network", "load_extra", "reference"]

Outputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]
"""What a network computes: by output name, or in the order of the outputs."""

_SHOWN = 8  # names in a message
_registry: dict[str, Converter] = {}
_references: dict[str, Callable[..., Outputs]] = {}


@dataclasses.dataclass(frozen=True)
class Converter:
    """What converts one framework's files.

    Attributes:
        name: The framework's name.
        recognizes: Whether a path (a file or folder that exists) is one of its files.
        function: Takes the path and, by keyword, ``weights`` and the options of this framework; returns the model.
        networks: The files in a folder that each stand for a network; by default all that it recognizes.
        names: Whether a text that is no path names a network, as PyTorch's ``module:factory`` does.
    """

    name: str
    recognizes: Callable[[Path], bool]
    function: Callable[..., ir.Model]
    networks: Callable[[Path], list[Path]] | None = None
    names: Callable[[str], bool] | None = None

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

    def run_reference(self, source: Path, inputs: dict[str, np.ndarray], options: dict[str, Any]) -> Outputs:
        """Returns what the framework itself computes from `inputs`.

        Raises:
            SurgeryError: The framework is not installed, or cannot run `source`, or there is no reference.
        """
        function = _references.get(self.name)
        if function is None:
            raise SurgeryError(f"{source}: there is nothing to compare a conversion from {self.name} with")
        known = list(inspect.signature(function).parameters)[2:]
        return function(source, inputs, **{key: value for key, value in options.items() if key in known})


def converter(
    name: str,
    recognizes: Callable[[Path], bool],
    networks: Callable[[Path], list[Path]] | None = None,
    names: Callable[[str], bool] | None = None,
) -> Callable[[Callable[..., ir.Model]], Callable[..., ir.Model]]:
    """Registers the decorated function as the converter from framework `name`."""

    def register(function: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
        _registry[name] = Converter(name, recognizes, function, networks, names)
        return function

    return register


def reference(name: str) -> Callable[[Callable[..., Outputs]], Callable[..., Outputs]]:
    """Registers the decorated function as what runs the networks of framework `name` in that framework."""

    def register(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        _references[name] = function
        return function

    return register


def load_extra(module: str, extra: str, purpose: str) -> Any:
    """Imports and returns `module`.

    Args:
        module: Its name.
        extra: The extra of this package that installs it.
        purpose: What needs it, in words: "converting from PyTorch".

    Raises:
        SurgeryError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SurgeryError(f"{purpose} needs {module} ({error}): pip install 'onnx-surgery[{extra}]'") from error


def find_converter(source: Path) -> Converter:
    """Returns the converter that recognizes `source`, a path or a name.

    Raises:
        SurgeryError: None does.
    """
    there = source.exists()
    for candidate in _converters():
        if candidate.recognizes(source) if there else candidate.names is not None and candidate.names(str(source)):
            return candidate
    if not there:
        raise SurgeryError(f"{source}: no such file or folder")
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
