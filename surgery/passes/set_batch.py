"""Set the size of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.resizing import set_shape

__all__ = ["SetBatch"]


@pass_dataclass
class SetBatch(Pass):
    """Sets how many examples a batch has, or that any number goes. Idempotent.

    Reshapes that name the old size are freed of it.

    Attributes:
        size: The number of examples; a word, such as N, is the name of a dimension of any size.
        axis: The axis of the inputs that counts examples.
    """

    shorthand: ClassVar[str | None] = "size"

    size: Annotated[int, Field(gt=0, lt=2**31)] | Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    axis: Annotated[int, Field(ge=0)] = 0

    def edit(self, model: ir.Model) -> Iterator[Change]:
        shapes = {}
        for value in model.graph.inputs:
            if value.shape is None or len(value.shape) <= self.axis:
                raise SurgeryError(f"input {value.name!r} of shape {value.shape} has no axis {self.axis}")
            old = value.shape[self.axis]
            if (old if isinstance(old, int) else old.value) != self.size:
                shapes[value] = ir.Shape([*value.shape[: self.axis], self.size, *value.shape[self.axis + 1 :]])
        if not shapes:
            return
        before = {value: value.shape for value in shapes}
        set_shape(model, shapes)
        for value, shape in shapes.items():
            yield Change(str(value.name), f"{before[value]} → {shape}")
