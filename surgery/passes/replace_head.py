"""Replace the head: other units, other classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, NonNegativeInt, model_validator

from surgery.errors import SurgeryError, nearest
from surgery.io import infer_shapes
from surgery.layers import Layer, ancestors, descendants, find_output, head
from surgery.marks import labels, set_labels
from surgery.passes.activations import ACTIVATION_OPS, Activation, activation_node, insert_activation
from surgery.passes.base import Change, Pass, given, pass_dataclass
from surgery.passes.dense import layer_stem, read_units, write_units
from surgery.passes.editing import add_constant, bypass, constant_of, forget_shapes
from surgery.passes.initializers import Initializer, Units, initialize

__all__ = ["ReplaceHead"]

_DONE = "surgery.replace_head"  # on the head: the arguments it was made with
_UNIQUE = Field(json_schema_extra={"uniqueItems": True})
_RESHAPING = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast"}
_POOLING = {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax"}


@pass_dataclass
class ReplaceHead(Pass):
    """Gives an output another head: new units, trainable, with first values of their own.

    The head is the Gemm, MatMul or Conv in front of the output (a Conv may stand in front of pooling, as in
    SqueezeNet); its activation is the last one before the output, and what stands in between stays. It gets a bias
    where it had none. Applied again with the same arguments it changes nothing, so that it does not undo training;
    with others (another seed, say) it starts anew.

    Attributes:
        units: How many units; as many as `labels` where only those are given.
        activation: What stands at the output: linear, softmax, sigmoid, tanh, relu, ….
        initializer: The first weights: glorot (uniform; Glorot and Bengio 2010), he (normal; He et al. 2015), zeros,
            or glorot_uniform, glorot_normal, he_uniform, he_normal. Biases start at 0.
        seed: Of the first weights.
        keep: Units of the old head, by number or label, whose weights become those of the first new units.
        labels: Names of the new classes.
        output: The output; needed where there are several.
    """

    shorthand: ClassVar[str | None] = "units"
    together: ClassVar[dict[str, Any]] = {"anyOf": [given("units"), given("labels")]}

    units: Units | None = None
    activation: Activation = "softmax"
    initializer: Initializer = "glorot"
    seed: NonNegativeInt = 0
    keep: Annotated[list[NonNegativeInt | str], _UNIQUE] = Field(default_factory=list)
    labels: Annotated[list[str], _UNIQUE, Field(min_length=1)] | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _fitting_counts(self) -> ReplaceHead:
        if self.units is None and self.labels is None:
            raise ValueError("needs `units` or `labels`")
        if self.units is not None and self.labels is not None and len(self.labels) != self.units:
            raise ValueError(f"{len(self.labels)} labels do not fit {self.units} units")
        for field, items in (("labels", self.labels or []), ("keep", self.keep)):
            if twice := _repeated(items):
                raise ValueError(f"`{field}` has {twice[0]!r} twice")
        if len(self.keep) > self._count:
            raise ValueError(f"{len(self.keep)} units to keep are more than {self._count} units")
        return self

    @property
    def _count(self) -> int:
        return self.units or len(self.labels or [])

    def edit(self, model: ir.Model) -> Iterator[Change]:
        end = find_output(model, self.output)
        if end.dtype is not None and not end.dtype.is_floating_point():
            raise SurgeryError(
                f"output {end.name!r} of {end.dtype} gives no scores; cut what makes it of them off first"
            )
        output, layer = str(end.name), head(model, self.output)
        arguments = json.dumps(self.arguments(), ensure_ascii=False)
        if layer.node.metadata_props.get(_DONE) == arguments:
            return
        rows, bias = read_units(layer)
        old_labels = labels(model, output)
        kept = [_unit(k, len(rows), old_labels) for k in self.keep]
        if twice := _repeated(kept):
            raise SurgeryError(f"`keep` has unit {twice[0]} twice, by its number and by its label")
        tail = _tail(layer, end)
        group = layer.node.attributes.get_int("group", 1) if layer.op_type == "Conv" else 1
        if self._count % group:
            raise SurgeryError(f"head {layer.name!r} is a Conv of {group} groups; {self._count} units do not divide")

        name = layer_stem(layer)
        new_rows = initialize(self.initializer, (self._count, *rows.shape[1:]), self.seed, f"{name}.weight")
        new_bias = np.zeros(self._count)
        new_rows[: len(kept)], new_bias[: len(kept)] = rows[kept], bias[kept]
        write_units(layer, new_rows, new_bias, name)
        _resize(tail, len(rows), self._count)
        infer_shapes(model)
        layer.node.metadata_props[_DONE] = arguments
        what = f"{len(rows)} → {self._count} units, {self.initializer} weights"
        yield Change(layer.name, f"{what}, units {', '.join(map(str, kept))} kept" if kept else what)
        yield from self._activate(model, layer, tail, output)
        names = self.labels or ([old_labels[k] for k in kept] if old_labels and len(kept) == self._count else None)
        below = descendants(layer.node.outputs)
        for value in model.graph.outputs:
            if value.producer() in below | {layer.node} and set_labels(model, str(value.name), names):
                yield Change(str(value.name), "labels " + (", ".join(names) if names else "forgotten"))

    def _activate(self, model: ir.Model, layer: Layer, tail: list[ir.Node], output: str) -> Iterator[Change]:
        """Puts the activation where the old one stood, or at the end."""
        old = _activation(tail)
        if old is not None and old.op_type == activation_node(self.activation):
            return
        axis = _unit_axis(layer, tail[: tail.index(old)] if old else tail)
        place = old.outputs[0] if old else find_output(model, output)
        new = insert_activation(model, place, self.activation, f"{layer.name}/{self.activation}", axis)
        if old is not None:
            bypass(old)
            if (node := new.producer()) is not old and node is not None:
                node.name = old.name
        yield Change(output, f"{old.op_type if old else 'linear'} → {self.activation}")


def _repeated(items: Sequence[int | str]) -> list[int | str]:
    return [item for item, count in Counter(items).items() if count > 1]


def _unit(wanted: int | str, count: int, names: list[str] | None) -> int:
    """The number of a unit of the old head."""
    if isinstance(wanted, str):
        if names is None:
            raise SurgeryError(f"cannot keep {wanted!r}: the old head has no labels; give the unit's number")
        if wanted not in names:
            raise SurgeryError(f"cannot keep {wanted!r}: the old head has no such label{nearest(wanted, names)}")
        if names.count(wanted) > 1:
            raise SurgeryError(
                f"cannot keep {wanted!r}: several units of the old head have that label; give the number"
            )
        return names.index(wanted)
    if wanted >= count:
        raise SurgeryError(f"cannot keep unit {wanted}: the old head has units 0 to {count - 1}")
    return wanted


def _tail(layer: Layer, end: ir.Value) -> list[ir.Node]:
    """The operators behind the head, those that compute shapes included.

    Raises:
        SurgeryError: One of them depends on how many units there are.
    """
    between = descendants([layer.output]) & ancestors([end])
    tail = [node for node in layer.node.graph or () if node in between]
    for node in tail:
        shapes = node.outputs[0].dtype == ir.DataType.INT64
        if not shapes and node.op_type not in ACTIVATION_OPS | _RESHAPING | _POOLING | {"Dropout"}:
            raise SurgeryError(
                f"{node.op_type} {node.name!r} stands between the head {layer.name!r} and output {end.name!r} and may "
                "depend on the number of units; cut it off first"
            )
    return tail


def _activation(tail: list[ir.Node]) -> ir.Node | None:
    """The last activation, if nothing but a change of shape comes behind it."""
    for node in reversed(tail):
        if node.op_type in ACTIVATION_OPS:
            return node
        if node.op_type not in _RESHAPING and node.outputs[0].dtype != ir.DataType.INT64:
            return None
    return None


def _unit_axis(layer: Layer, tail: list[ir.Node]) -> int:
    """The axis that counts units, behind the operators of `tail`."""
    axis = 1 if layer.op_type == "Conv" else -1
    for node in tail:
        if node.op_type == "Transpose" and "perm" in node.attributes:
            perm = list(node.attributes["perm"].as_ints())
            axis = perm.index(axis % len(perm))
        elif node.op_type in ("Flatten", "Reshape", "Squeeze") and axis > 0:
            axis = 1
    return axis


def _resize(tail: list[ir.Node], old: int, new: int) -> None:
    """Puts the new number of units into the shapes that Reshapes behind the head are given."""
    for node in tail:
        if node.op_type == "Reshape":
            value = node.inputs[1]
            producer = value.producer() if value is not None else None
            if constant_of(value) is not None:
                _resize_constant(node, 1, old, new)
            elif producer is not None and producer.op_type == "Concat":
                for index in range(1, len(producer.inputs)):  # the first is the number of examples
                    _resize_constant(producer, index, old, new)
            forget_shapes(node.outputs)


def _resize_constant(node: ir.Node, index: int, old: int, new: int) -> None:
    value = node.inputs[index]
    data = constant_of(value)
    if value is None or data is None or old == new:
        return
    places = [i for i, size in enumerate(data) if size == old and (i or len(data) == 1)]
    if not places:
        return
    shape = np.array(data)
    shape[places[-1]] = new
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.replace_input_with(index, add_constant(graph, shape, f"{node.name}.shape"))
    if value.is_initializer() and not value.uses():
        graph.initializers.pop(value.name or "")
