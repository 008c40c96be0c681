"""What a .t7 file holds: Lua's tables, and Torch's tensors, storages and objects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Function", "Storage", "Table", "Tensor", "TorchObject", "describe"]


@dataclasses.dataclass(eq=False)
class Storage:
    """A flat array of numbers, which tensors look at.

    Attributes:
        kind: The type of its numbers: ``Float``, ``Long``, ….
        data: The numbers.
    """

    kind: str
    data: np.ndarray


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage.

    Attributes:
        kind: The type of its numbers: ``Float``, ``Long``, ….
        shape: Its sizes; empty where it holds nothing.
        strides: How far apart neighbours along each axis are in the storage.
        offset: Where it begins in the storage, from 0.
        storage: The storage; None where it holds nothing.
    """

    kind: str
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape) if self.shape and self.storage is not None else 0

    @property
    def key(self) -> tuple[Any, ...]:
        """What two tensors have in common that are views of the same numbers."""
        return id(self.storage), self.offset, self.shape, self.strides

    def numpy(self) -> np.ndarray:
        """Its numbers, not copied."""
        if self.storage is None or not self.size:
            return np.zeros(0, np.float32)
        data = self.storage.data
        strides = [stride * data.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides, writeable=False)


class Table:
    """A Lua table.

    Attributes:
        entries: By key: a text, a number (whole ones are ints), or an object, by its identity.
    """

    def __init__(self) -> None:
        self.entries: dict[Any, Any] = {}

    def items(self) -> list[Any]:
        """What Lua's ``ipairs`` goes over: the entries 1, 2, … up to the first that is missing."""
        return list(self._numbered())

    def _numbered(self) -> Iterator[Any]:
        index = 1
        while (value := self.entries.get(index)) is not None:
            yield value
            index += 1


@dataclasses.dataclass(eq=False)
class TorchObject:
    """An object of a Torch class.

    Attributes:
        type: The class: ``nn.Linear``.
        fields: Its fields by name.
    """

    type: str
    fields: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Function:
    """A Lua function, of which nothing is kept."""


def describe(value: Any) -> str:
    """Says in words what `value` is."""
    if isinstance(value, TorchObject):
        return value.type
    if isinstance(value, Tensor):
        return f"torch.{value.kind}Tensor"
    if isinstance(value, Storage):
        return f"torch.{value.kind}Storage"
    if value is None:
        return "nothing"
    words = {Table: "table", Function: "function", str: "text", bool: "boolean", int: "number", float: "number"}
    return f"a {words[type(value)]}"
