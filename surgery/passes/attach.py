"""Attach another model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import onnx_ir as ir
from pydantic import Field

from surgery.errors import SurgeryError
from surgery.io import load
from surgery.layers import find_layer
from surgery.marks import labels, preprocessing, set_labels, set_preprocessing
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import opset

__all__ = ["Attach"]

_DONE = "surgery.attach"  # on the attached operators: the arguments they were attached with


@pass_dataclass
class Attach(Pass):
    """Attaches another model behind a layer: its input becomes the layer's output, its outputs join the network's.

    So one backbone gets several heads; `prune_outputs` removes the outputs that are not needed. Marks and labels come
    along. Applied again with the same arguments it changes nothing.

    Attributes:
        model: The other model's file, from the current folder.
        to: The layer whose output it works on.
        input: Which of its inputs that is; needed where it has several. The others become the network's.
        prefix: What names that are taken already get in front, and a slash; by default the file's name.
    """

    model: Annotated[str, Field(min_length=1)]
    to: str
    input: str | None = None
    prefix: Annotated[str, Field(min_length=1)] | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        arguments = json.dumps(self.arguments(), ensure_ascii=False)
        if any(node.metadata_props.get(_DONE) == arguments for node in model.graph):
            return
        source = find_layer(model, self.to).output
        other = load(self.model)
        target = self._input(other)
        _check(self.model, model, other, source, target)
        names = {str(o.name): labels(other, str(o.name)) for o in other.graph.outputs}
        images = {str(i.name): preprocessing(other, str(i.name)) for i in other.graph.inputs if i is not target}
        outputs, inputs = list(other.graph.outputs), [i for i in other.graph.inputs if i is not target]
        _rename(model, other, self.prefix or Path(self.model).stem)
        nodes = list(other.graph)
        target.replace_all_uses_with(source)
        _move(model, other)
        for node in nodes:
            node.metadata_props[_DONE] = arguments
        for value, known in zip(outputs, names.values(), strict=True):
            set_labels(model, str(value.name), known)
        for value, how in zip(inputs, images.values(), strict=True):
            set_preprocessing(model, str(value.name), how)
        yield Change(self.to, f"{self.model} attached: {len(nodes)} operators")
        for value in outputs:
            yield Change(str(value.name), f"output added, {value.shape}")

    def _input(self, other: ir.Model) -> ir.Value:
        inputs = list(other.graph.inputs)
        chosen = [i for i in inputs if self.input in (None, i.name)]
        if len(chosen) != 1:
            found = ", ".join(str(i.name) for i in inputs)
            raise SurgeryError(f"{self.model}: its inputs are {found}; say which one is meant with `input:`")
        if chosen[0].is_graph_output() or not chosen[0].uses():
            raise SurgeryError(f"{self.model}: input {chosen[0].name!r} feeds nothing")
        return chosen[0]


def _check(path: str, model: ir.Model, other: ir.Model, source: ir.Value, target: ir.Value) -> None:
    """Whether the two fit."""
    if opset(model) != opset(other):
        raise SurgeryError(
            f"{path}: has operator set {opset(other)}, the network {opset(model)}; convert one with "
            "onnx.version_converter"
        )
    for domain, version in other.opset_imports.items():
        if model.opset_imports.get(domain, version) != version:
            raise SurgeryError(f"{path}: has version {version} of {domain}, the network {model.opset_imports[domain]}")
    if source.dtype != target.dtype:
        raise SurgeryError(f"{path}: input {target.name!r} takes {target.dtype}, {source.name!r} is {source.dtype}")
    if source.shape is None or target.shape is None:
        return
    given, taken = list(source.shape), list(target.shape)
    pairs = zip(given, taken, strict=False)
    if len(given) != len(taken) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        raise SurgeryError(
            f"{path}: input {target.name!r} takes {target.shape}, which {source.name!r} of {source.shape} does not fit"
        )


def _named(graph: ir.Graph) -> dict[str, list[ir.Value | ir.Node]]:
    """Values and operators by name; subgraphs have names of their own, which may not be the same as outer ones."""
    found: dict[str, list[ir.Value | ir.Node]] = {}
    for part in (graph, *graph.subgraphs()):
        things: list[ir.Value | ir.Node] = [*part.inputs, *part.initializers.values()]
        for node in part:
            things += [node, *node.outputs]
        for thing in things:
            if thing.name:
                found.setdefault(thing.name, []).append(thing)
    return found


def _rename(model: ir.Model, other: ir.Model, prefix: str) -> None:
    """Gives what has a name that `model` has already one of its own."""
    taken, own = set(_named(model.graph)), _named(other.graph)
    for name, things in own.items():
        if name not in taken:
            continue
        new, count = f"{prefix}/{name}", 1
        while new in taken or new in own:
            count += 1
            new = f"{prefix}_{count}/{name}"
        taken.add(new)
        for thing in things:
            graph = thing.graph if isinstance(thing, ir.Value) and thing.is_initializer() else None
            if graph is not None:
                graph.initializers.pop(name)
            thing.name = new
            if isinstance(thing, ir.Value) and graph is not None:
                graph.initializers[new] = thing


def _move(model: ir.Model, other: ir.Model) -> None:
    """Moves all of `other` into `model`."""
    graph = model.graph
    nodes, outputs, inputs = list(other.graph), list(other.graph.outputs), list(other.graph.inputs)
    weights = list(other.graph.initializers.values())
    other.graph.outputs.clear()
    other.graph.inputs.clear()
    other.graph.initializers.clear()
    other.graph.remove(nodes)
    for value in weights:
        graph.initializers[str(value.name)] = value
    graph.inputs.extend(i for i in inputs if i.uses())
    graph.extend(nodes)
    graph.outputs.extend(outputs)
    for domain, version in other.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    model.functions.update(other.functions)
