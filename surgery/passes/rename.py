"""Rename layers, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError, nearest
from surgery.layers import Layer, known_names, layers
from surgery.marks import labels, preprocessing, set_labels, set_preprocessing
from surgery.passes.base import Change, Pass, pass_dataclass

__all__ = ["Rename"]

Name = Annotated[str, Field(min_length=1)]


@pass_dataclass
class Rename(Pass):
    """Renames inputs, outputs, layers (with their parameters, ``conv1.weight``) or single parameters.

    Labels and preprocessing go along. Idempotent: what has its new name already is left alone.

    Attributes:
        names: New names by old ones: ``{conv1: stem, prob: class}``.
    """

    shorthand: ClassVar[str | None] = "names"

    names: Annotated[dict[Name, Name], Field(min_length=1)]

    def edit(self, model: ir.Model) -> Iterator[Change]:
        for old, new in self.names.items():
            if old == new or not (found := _find(model, old)):
                if old != new and not _find(model, new):
                    known = [*_values(model), *known_names(layers(model))]
                    raise SurgeryError(f"rename: nothing is named {old!r}{nearest(old, known)}")
                continue
            if _find(model, new) or new in {o.name for n in model.graph for o in n.outputs}:
                raise SurgeryError(f"rename: {old!r} cannot become {new!r}, which is there already")
            for thing in found:
                _rename(model, thing, old, new)
            yield Change(old, f"is now {new}")


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """The inputs, outputs and weights by name."""
    graph = model.graph
    return {str(v.name): v for v in [*graph.inputs, *graph.outputs, *graph.initializers.values()]}


def _find(model: ir.Model, name: str) -> list[ir.Value | Layer]:
    """The input, output or weight and the layer of a name; an output and its layer may both have it."""
    found: list[ir.Value | Layer] = [v for n, v in _values(model).items() if n == name]
    return found + [layer for layer in layers(model) if layer.name == name]


def _rename(model: ir.Model, thing: ir.Value | Layer, old: str, new: str) -> None:
    graph = model.graph
    if isinstance(thing, ir.Value):
        if thing.is_graph_output() and (names := labels(model, old)) is not None:
            set_labels(model, old, None)
            set_labels(model, new, names)
        if thing.is_graph_input() and (how := preprocessing(model, old)) is not None:
            set_preprocessing(model, old, None)
            set_preprocessing(model, new, how)
        _name_value(graph, thing, new)
        return
    thing.node.name = new
    for value in [*thing.parameters.values(), *(o for node in thing.nodes for o in node.outputs)]:
        name = str(value.name)
        interface = value.is_graph_output()  # has a name of its own, which others rely on
        if not interface and (name == old or name.startswith(f"{old}.")):
            _name_value(graph, value, new + name[len(old) :])


def _name_value(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.is_initializer():
        graph.initializers.pop(str(value.name))
        value.name = name
        graph.initializers[name] = value
        if value.const_value is not None:
            value.const_value.name = name
    else:
        value.name = name
