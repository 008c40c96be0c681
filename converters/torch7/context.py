"""What a module function is given, and the registry of module functions.

A module type is one function, registered by its type's name without the package; nothing else has to be edited to add
one:

    @module("ReLU6")
    def relu6(c: Context) -> ir.Value:
        return c.op.Clip(c.x, 0.0, 6.0)

It returns the module's output, a value or a list (Lua's table) of them. Where a value's shape is not that of the input,
it says so with `Context.shaped`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Union

import numpy as np
import onnx_ir as ir

from converters.context import BaseContext
from converters.torch7.objects import Storage, Table, Tensor, TorchObject, describe
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.marks import set_marks

if TYPE_CHECKING:
    from converters.torch7.build import Builder

__all__ = ["PACKAGES", "Context", "ModuleFunction", "Nested", "find_module", "known_types", "module"]

Nested = Union[ir.Value, "list[Nested]"]
"""A value, or a table of them."""
ModuleFunction = Callable[["Context"], "Nested | None"]

PACKAGES = ("nn", "cudnn", "cunn", "inn", "fbnn", "fbcunn", "nngraph")
"""Packages that have the modules that are known here."""

_MOST = 2**31 - 1  # of a whole number
_registry: dict[str, ModuleFunction] = {}


def module(*types: str) -> Callable[[ModuleFunction], ModuleFunction]:
    """Registers the decorated function for module `types`, written without their package."""

    def register(function: ModuleFunction) -> ModuleFunction:
        _registry.update(dict.fromkeys(types, function))
        return function

    return register


def find_module(type: str) -> ModuleFunction | None:
    """Returns the function for a type such as ``nn.Linear``, if there is one."""
    _load()
    package, _, name = type.rpartition(".")
    return _registry.get(name) if package in PACKAGES else None


def known_types() -> list[str]:
    """The module types that can be converted, without their package."""
    _load()
    return sorted(_registry)


def _load() -> None:
    from converters.torch7 import modules as _  # noqa: F401  (importing registers them)


class Context(BaseContext):
    """One module at work.

    Attributes:
        builder: The whole network's state.
        module: The module as the file has it.
        name: Its name in the graph.
        path: Where it is in the network: its place in each container, from 1.
        input: What it reads: a value, or a list of them where Torch has a table. A value has a shape; a dimension is an
            int, or a name where any size goes.
        op: Writes operators (`surgery.emit.Emitter`).
    """

    def __init__(self, builder: Builder, module: TorchObject, name: str, path: tuple[str, ...], input: Nested) -> None:
        self.builder = builder
        self.module = module
        self.name = name
        self.path = path
        self.input = input
        self.op: Emitter = builder.op

    @property
    def x(self) -> ir.Value:
        if not isinstance(self.input, ir.Value):
            raise self.error("reads a tensor, and is given a table")
        return self.input

    @property
    def table(self) -> list[Nested]:
        """What it reads where that is a table."""
        if isinstance(self.input, ir.Value):
            raise self.error("reads a table, and is given a tensor")
        return self.input

    @property
    def values(self) -> list[ir.Value]:
        """What it reads where that is a table of tensors, at least one."""
        values = [value for value in self.table if isinstance(value, ir.Value)]
        if len(values) != len(self.table) or not values:
            raise self.error("reads a table of tensors, and is given another")
        return values

    @property
    def package(self) -> str:
        """The package of its type."""
        return self.module.type.rpartition(".")[0]

    def error(self, message: str) -> SurgeryError:
        """An error that names the file and this module."""
        return SurgeryError(f"{self.builder.path}: module {self.name!r} ({self.module.type}): {message}")

    def unknown_dim(self) -> str:
        return self.builder.unknown_dim()

    # The module's fields.

    def has(self, field: str) -> bool:
        """Whether the module has `field`."""
        return self.module.fields.get(field) is not None

    def number(self, field: str, default: float | None = None) -> float:
        """A field that is a number; `default` where there is none."""
        value = self.module.fields.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(f"needs a number as its {field}, and has {describe(value)}")
        return float(value)

    def integer(self, field: str, default: int | None = None, least: int | None = None) -> int:
        """A field that is a whole number, not below `least`."""
        number = self.number(field, default)
        if not number.is_integer() or abs(number) > _MOST or (least is not None and number < least):
            raise self.error(f"its {field} is {number:g}, which cannot be")
        return int(number)

    def flag(self, field: str, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self.module.fields.get(field)
        return default if value is None else value is not False

    def integers(self, field: str) -> list[int]:
        """A field that is a LongStorage or a table of whole numbers."""
        value = self.module.fields.get(field)
        if isinstance(value, Storage):
            numbers = [int(n) for n in value.data[:_MOST_INTEGERS]]
        elif isinstance(value, Table) and all(isinstance(n, int) for n in value.items()):
            numbers = value.items()[:_MOST_INTEGERS]
        else:
            raise self.error(f"needs whole numbers as its {field}, and has {describe(value)}")
        if any(abs(n) > _MOST for n in numbers):
            raise self.error(f"its {field} is {numbers}, which cannot be")
        return numbers

    def tensor(self, field: str) -> Tensor | None:
        """A field that is a tensor with something in it."""
        value = self.module.fields.get(field)
        if value is not None and not isinstance(value, Tensor):
            raise self.error(f"needs a tensor as its {field}, and has {describe(value)}")
        return value if value is not None and value.size else None

    @property
    def modules(self) -> list[TorchObject]:
        """The modules in this one."""
        table = self.module.fields.get("modules")
        found = table.items() if isinstance(table, Table) else []
        if not all(isinstance(each, TorchObject) for each in found):
            raise self.error("has something among its modules that is none")
        return found

    # The graph.

    def run(self, module: TorchObject, place: int | str, input: Nested) -> Nested:
        """Converts a module in this one, which reads `input`; `place` is where it is."""
        return self.builder.run(module, (*self.path, str(place)), input)

    def need_rank(self, *ranks: int, value: ir.Value | None = None) -> None:
        """Raises unless what it reads has one of these numbers of dimensions, the batch's included."""
        rank = self.rank(value)
        if rank not in ranks:
            raise self.error(
                f"needs an input of {' or '.join(map(str, ranks))} dimensions with the batch's, and has one of {rank}; "
                "say the network's with `shape`, as 3x224x224"
            )

    def size(self, axis: int, value: ir.Value | None = None) -> int:
        """The size of an axis that must be known."""
        size = self.dims(value)[axis]
        if not isinstance(size, int):
            raise self.error(
                f"needs to know the size of axis {axis} of its input; say the network's with "
                + ("`batch`" if axis == 0 else "`shape`, as 3x224x224")
            )
        return size

    def axis(self, dimension: int, value: ir.Value | None = None, example: int | None = None, extra: int = 0) -> int:
        """A dimension of Torch, counted from 1 or from the end, as an axis.

        Args:
            dimension: The dimension.
            value: Of what; by default of the input.
            example: How many dimensions one example has, where dimensions are counted without the batch's.
            extra: How many axes more than there are.
        """
        rank = self.rank(value)
        axis = dimension - 1
        if dimension < 0:
            axis = rank + extra + dimension
        elif example is not None and rank == example + 1:
            axis = dimension
        if not 0 <= axis < rank + extra:
            raise self.error(f"dimension {dimension} is out of range for an input with {rank} dimensions")
        return axis

    def parameter(self, field: str, role: str, shape: Sequence[int]) -> ir.Value:
        """Returns the parameter in `field` as an initializer ``<name>.<role>``; the same tensor is the same one."""
        tensor = self.tensor(field)
        if tensor is None:
            raise self.error(f"has no {field}; the file was saved without its parameters")
        if tensor.size != math.prod(shape):
            have, want = ("×".join(map(str, s)) for s in (tensor.shape, shape))
            raise self.error(f"its {field} is {have} and must be {want}")
        return self.builder.parameter(self, tensor, role, tuple(shape))

    def add_parameter(self, role: str, data: np.ndarray, trainable: bool = True) -> ir.Value:
        """Returns a new initializer ``<name>.<role>``."""
        value = self.builder.add_parameter(f"{self.name}.{role}", np.ascontiguousarray(data, np.float32))
        if not trainable:
            set_marks(value, trainable=False)
        return value


_MOST_INTEGERS = 100  # dimensions and the like
