"""Freeze and unfreeze layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer
from surgery.marks import marks, set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["Freeze", "Unfreeze"]


def _mark(model: ir.Model, selected: list[Layer], trainable: bool) -> Iterator[Change]:
    word = "trainable" if trainable else "frozen"
    if not any(layer.parameters for layer in selected):
        names = ", ".join(layer.name for layer in selected[:3])
        raise SurgeryError(f"none of the selected layers has parameters that could be {word} ({names})")
    for layer in selected:
        changed, restarted = [], []
        for role, parameter in layer.parameters.items():
            rate = 1.0 if trainable and marks(parameter).learning_rate == 0 else marks(parameter).learning_rate
            if rate != marks(parameter).learning_rate:
                restarted.append(role)
            if set_marks(parameter, trainable=trainable, learning_rate=rate):
                changed.append(role)
        if changed:
            again = f", learning rate of {', '.join(restarted)} × 1 instead of × 0" if restarted else ""
            yield Change(layer.name, f"{word} ({', '.join(changed)}){again}")


@pass_dataclass
class Freeze(Pass):
    """Keeps the parameters of some layers as they are; a frozen BatchNormalization keeps its statistics too.

    Idempotent.

    Attributes:
        layers: Which layers.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector

    def edit(self, model: ir.Model) -> Iterator[Change]:
        yield from _mark(model, select(model, self.layers), trainable=False)


@pass_dataclass
class Unfreeze(Pass):
    """Lets training change the parameters of some layers again. Idempotent.

    A multiplier of 0 of the learning rate, which freezes too (Caffe's ``lr_mult: 0``), becomes 1.

    Attributes:
        layers: Which layers.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector

    def edit(self, model: ir.Model) -> Iterator[Change]:
        yield from _mark(model, select(model, self.layers), trainable=True)
