"""Insert dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from surgery.errors import SurgeryError
from surgery.layers import Layer, descendants, layers
from surgery.passes.activations import ACTIVATION_OPS
from surgery.passes.base import Change, Pass, given, pass_dataclass
from surgery.passes.editing import add_constant, constant_of, drop_unused, insert_behind, opset
from surgery.selectors import Selector, select

__all__ = ["InsertDropout"]

Rate = Annotated[float, Field(ge=0, lt=1)]

# What belongs to a layer's output: dropout comes behind it. Behind pooling, too: the maximum over units, some of which
# are dropped and the others made larger for it, would be larger in training than in inference.
_OUTPUT = ACTIVATION_OPS | {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"}
_OUTPUT |= {"MaxPool", "AveragePool", "LpPool", "LRN"}
# Behind what a dropout still is that layer's.
_PASSING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"}


@pass_dataclass
class InsertDropout(Pass):
    """Drops inputs or units at random while training; inference stays the same (Srivastava et al. 2014).

    A hidden layer's dropout comes behind its normalization, activation and pooling; never behind a head. Where a layer
    has a dropout already, that one gets the rate; a rate of 0 switches it off. Idempotent.

    Attributes:
        input: The share of the network's inputs to drop (the paper uses 0.2).
        hidden: The share of the units to drop of every layer with weights that has another behind it (0.5).
        rate: The share of the units to drop of `layers`.
        layers: Which layers.
    """

    shorthand: ClassVar[str | None] = "hidden"
    together: ClassVar[dict[str, Any]] = {
        "anyOf": [given("input"), given("hidden"), given("rate")],
        "allOf": [
            {"anyOf": [{"not": given("rate")}, given("layers")]},
            {"anyOf": [{"not": given("layers")}, given("rate")]},
        ],
    }

    input: Rate | None = None
    hidden: Rate | None = None
    rate: Rate | None = None
    layers: Selector | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> InsertDropout:
        if (self.rate is None) != (self.layers is None):
            raise ValueError("`rate` and `layers` go together")
        if self.input is None and self.hidden is None and self.rate is None:
            raise ValueError("needs `input`, `hidden`, or `rate` with `layers`")
        return self

    def edit(self, model: ir.Model) -> Iterator[Change]:
        view = layers(model)
        hidden = [layer for layer in view if "weight" in layer.parameters and _weights_behind(view, layer)]
        rates: dict[ir.Node, tuple[Layer, float | None]] = {}
        if self.hidden is not None:
            rates.update({layer.node: (layer, self.hidden) for layer in hidden})
        if self.layers is not None:
            for layer in select(model, self.layers):
                if not _weights_behind(view, layer):
                    raise SurgeryError(
                        f"layer {layer.name!r} has no layer with weights behind it, and dropout never comes behind "
                        "the head; leave it out of `layers`"
                    )
                rates[layer.node] = (layer, self.rate)
        if self.input is not None:
            yield from _drop_inputs(model, self.input)
        for layer, rate in rates.values():
            assert rate is not None
            yield from _drop(model, layer, rate)


def _weights_behind(view: list[Layer], layer: Layer) -> bool:
    behind = descendants(layer.nodes[-1].outputs)
    return any(other.node in behind and "weight" in other.parameters for other in view)


def _drop_inputs(model: ir.Model, rate: float) -> Iterator[Change]:
    inputs = [v for v in model.graph.inputs if v.dtype is not None and v.dtype.is_floating_point()]
    if not inputs:
        raise SurgeryError("the model has no input of floating-point numbers to drop")
    for value in inputs:
        existing = [node for node in value.consumers() if node.op_type == "Dropout"]
        yield from _set_or_insert(model, value, existing, rate, str(value.name))


def _drop(model: ir.Model, layer: Layer, rate: float) -> Iterator[Change]:
    outputs = layer.nodes[-1].outputs  # a recurrent layer has several
    value = place = next((o for o in outputs if o.uses()), outputs[0])
    existing = [layer.node] if layer.op_type == "Dropout" else []
    own = True  # what follows still belongs to the layer's output
    while len(users := _users(value)) == 1 and not value.is_graph_output():
        node = users[0]
        if node.op_type == "Dropout":
            existing.append(node)
        elif node.op_type not in _OUTPUT | _PASSING or node.inputs[0] is not value:
            break
        own = own and node.op_type in _OUTPUT
        value = node.outputs[0]
        if own:
            place = value
    else:
        existing += [node for node in users if node.op_type == "Dropout"]
    yield from _set_or_insert(model, place, existing, rate, layer.name)


def _users(value: ir.Value) -> list[ir.Node]:
    """What computes with `value`; an exporter's questions about its shape do not count."""
    return [node for node in value.consumers() if node.op_type not in ("Shape", "Size")]


def _set_or_insert(
    model: ir.Model, value: ir.Value, existing: list[ir.Node], rate: float, name: str
) -> Iterator[Change]:
    for node in existing:
        if _rate(node, model) != np.float32(rate):
            yield Change(str(node.name), f"drops {rate:g} instead of {_rate(node, model):g}")
            _set_rate(model, node, rate)
    if existing or not rate:
        return
    node = insert_behind(value, "Dropout", f"{name}/dropout", outputs=False)
    _set_rate(model, node, rate)
    yield Change(str(node.name), f"drops {rate:g}")


def _rate(node: ir.Node, model: ir.Model) -> float:
    """The share that a Dropout drops: an attribute before operator set 12, an input since."""
    if opset(model) < 12:
        return node.attributes.get_float("ratio", 0.5)
    ratio = node.inputs[1] if len(node.inputs) > 1 else None
    data = constant_of(ratio)
    if ratio is not None and data is None:
        raise SurgeryError(f"Dropout {node.name!r} computes its rate; it cannot be set")
    return 0.5 if data is None else float(data)


def _set_rate(model: ir.Model, node: ir.Node, rate: float) -> None:
    if opset(model) < 12:
        node.attributes["ratio"] = ir.AttrFloat32("ratio", rate)
        return
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    old = node.inputs[1]
    node.replace_input_with(1, add_constant(model.graph, np.array(rate, np.float32), f"{node.name}.ratio"))
    drop_unused(model.graph, [old])
