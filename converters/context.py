"""What the layer functions of all converters are given to emit operators with: values whose shapes are known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from converters.options import Dim
from surgery.emit import Emitter
from surgery.errors import SurgeryError

__all__ = ["BaseContext", "unique_name"]

_MOST_NUMBERS = 2**40  # of one value


class BaseContext(ABC):
    """One layer at work.

    Attributes:
        op: Writes operators (`surgery.emit.Emitter`).
    """

    op: Emitter

    @property
    @abstractmethod
    def x(self) -> ir.Value:
        """What the layer reads first. It has a shape; a dimension is an int, or a name where any size goes."""

    @abstractmethod
    def error(self, message: str) -> SurgeryError:
        """An error that names the file and this layer."""

    @abstractmethod
    def unknown_dim(self) -> str:
        """A new name for a dimension of which nothing is known."""

    def dims(self, value: ir.Value | None = None) -> list[Dim]:
        """The dimensions of `value`, by default of `x`."""
        value = value if value is not None else self.x
        assert value.shape is not None
        return [d if isinstance(d, int) else str(d.value) for d in value.shape]

    def rank(self, value: ir.Value | None = None) -> int:
        return len(self.dims(value))

    def shaped(self, value: ir.Value, dims: Sequence[Dim | None]) -> ir.Value:
        """Says the shape of `value`; None is a dimension of which nothing is known. Returns `value`."""
        value.shape = ir.Shape([self.unknown_dim() if d is None else d for d in dims])
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        sizes = [d for d in dims if isinstance(d, int)]
        shown = "×".join(str(d) for d in dims)
        if any(size <= 0 for size in sizes):
            raise self.error(f"its output would have the shape {shown}: the input is too small")
        if math.prod(sizes) > _MOST_NUMBERS:
            raise self.error(f"its output would have the shape {shown}, more than any machine holds")
        return value

    def reshape(self, value: ir.Value, dims: Sequence[Dim | None], kept: dict[int, int] | None = None) -> ir.Value:
        """Emits a Reshape of `value`.

        Args:
            value: What to reshape.
            dims: The new dimensions.
            kept: For new dimensions that are old ones of unknown size: new axis → old axis.
        """
        kept = kept or {}
        unknown = [i for i, d in enumerate(dims) if not isinstance(d, int)]
        target = [d if isinstance(d, int) else 0 if kept.get(i) == i else -1 for i, d in enumerate(dims)]
        if target.count(-1) <= 1:
            shape: Any = self.op.constant(target)
        else:
            parts = []
            free = [i for i in unknown if i not in kept]
            if len(free) > 1:
                raise self.error("has more than one dimension of unknown size; give the input's with `shape`")
            for i, d in enumerate(dims):
                if isinstance(d, int):
                    parts.append(self.op.constant([d]))
                elif i in kept:
                    parts.append(self.op.Shape(value, start=kept[i], end=kept[i] + 1))
                else:
                    parts.append(self.op.constant([-1]))
            shape = self.op.Concat(*parts, axis=0)
        return self.shaped(self.op.Reshape(value, shape), dims)


def unique_name(name: str, taken: Counter[str]) -> str:
    """Returns `name`, or with a number behind where `taken` has it; counts it there."""
    taken[name] += 1
    while taken[name] > 1:
        name = f"{name}_{taken[name]}"
        taken[name] += 1
    return name
