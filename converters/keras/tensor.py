"""A value of the graph as Keras sees it.

ONNX puts an image's channels first, most Keras networks last. So a value may be *moved*: Keras thinks of it as
[N, H, W, C], and in the graph it is [N, C, H, W]. Layer functions think in Keras's axes; `Layouts` gives a value in the
layout that an operator needs, with a Transpose where it does not have it, one for all that need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from converters.options import Dim
from surgery.emit import Emitter

__all__ = ["Layouts", "Tensor", "to_first", "to_last"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value and what Keras knows of it.

    Attributes:
        value: The value in the graph.
        dims: Its shape in Keras's order, the batch included; a name is a dimension of unknown size.
        moved: Whether its last axis is axis 1 in the graph.
        masked: Whether Keras carries a mask with it, which says what of a sequence counts.
    """

    value: ir.Value
    dims: tuple[Dim, ...]
    moved: bool = False
    masked: bool = False

    @property
    def rank(self) -> int:
        return len(self.dims)

    def axis(self, axis: int) -> int:
        """Where axis `axis` of Keras, which may be negative, is in the graph."""
        axis %= self.rank
        if not self.moved or axis == 0:
            return axis
        return 1 if axis == self.rank - 1 else axis + 1

    def unmasked(self) -> Tensor:
        """The same without its mask."""
        return dataclasses.replace(self, masked=False)


def to_first(items: Sequence[Any]) -> list[Any]:
    """[N, …, C] as [N, C, …]."""
    return [items[0], items[-1], *items[1:-1]]


def to_last(items: Sequence[Any]) -> list[Any]:
    """[N, C, …] as [N, …, C]."""
    return [items[0], *items[2:], items[1]]


class Layouts:
    """Changes layouts; remembers what is there already.

    Args:
        op: Writes operators.
    """

    def __init__(self, op: Emitter) -> None:
        self._op = op
        self._other: dict[ir.Value, ir.Value] = {}

    def get(self, tensor: Tensor, moved: bool) -> ir.Value:
        """The value of `tensor` moved, or as Keras has it."""
        value = tensor.value
        if tensor.moved == moved or tensor.rank < 3:
            return value
        if value not in self._other:
            order: list[int] = (to_first if moved else to_last)(range(tensor.rank))
            dims = (to_first if moved else list)(tensor.dims)
            other = self._op.Transpose(value, perm=order)
            other.shape, other.type = ir.Shape(dims), value.type
            self._other[value], self._other[other] = other, value
        return self._other[value]
