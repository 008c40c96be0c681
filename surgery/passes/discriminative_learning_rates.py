"""Smaller learning rates for earlier layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError
from surgery.layers import STATISTICS, Layer, layers
from surgery.marks import marks, set_marks
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.selectors import Selector, select

__all__ = ["DiscriminativeLearningRates"]


@pass_dataclass
class DiscriminativeLearningRates(Pass):
    """Lets earlier layers learn more slowly: from the head down, each has its learning rate divided once more by a
    factor (Howard and Ruder 2018, section 3.2).

    What counts is how many layers with weights lie behind a layer, on the longest way: parallel branches have the
    same rates, and a normalization that of the layer in front of it. Sets the multipliers that `learning_rate` sets;
    one of 0, which freezes, stays. Idempotent.

    Attributes:
        factor: What the rate is divided by with each layer (2.6 in the paper).
        groups: Layers that have one rate together, from the head down: ``[head, layer4*, layer3*]``; all others
            come below the last group.
    """

    shorthand: ClassVar[str | None] = "factor"

    factor: Annotated[float, Field(ge=1)] = 2.6
    groups: Annotated[list[Selector], Field(min_length=1)] | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        view = layers(model)
        places = _depths(model, view) if self.groups is None else _in_groups(model, view, self.groups)
        rates: dict[ir.Value, float] = {}
        for layer, place in places.items():
            for role, parameter in layer.parameters.items():
                if role not in STATISTICS:  # of shared weights, the place that is nearest to the head counts
                    rates[parameter] = max(rates.get(parameter, 0.0), self.factor**-place)
        if not rates:
            raise SurgeryError("discriminative_learning_rates: the model has no layer with parameters")
        for layer in view:
            own = [p for role, p in layer.parameters.items() if role not in STATISTICS]
            changed = [p for p in own if marks(p).learning_rate and set_marks(p, learning_rate=rates[p])]
            if changed:
                yield Change(layer.name, f"learning rate × {rates[changed[0]]:.3g}")


def _depths(model: ir.Model, view: list[Layer]) -> dict[Layer, int]:
    """How many layers with weights lie behind each layer, on the longest way."""
    weighted = {layer.node for layer in view if any("weight" in role for role in layer.parameters)}
    behind: dict[ir.Node, int] = {}
    for node in reversed(model.graph):
        after = [consumer for output in node.outputs for consumer in output.consumers() if consumer in behind]
        behind[node] = max((behind[consumer] + (consumer in weighted) for consumer in after), default=0)
    return {layer: behind[layer.node] for layer in view if layer.parameters}


def _in_groups(model: ir.Model, view: list[Layer], groups: list[Selector]) -> dict[Layer, int]:
    place: dict[ir.Node, int] = {}
    for number, selector in enumerate(groups):
        for layer in select(model, selector):
            place.setdefault(layer.node, number)
    return {layer: place.get(layer.node, len(groups)) for layer in view if layer.parameters}
