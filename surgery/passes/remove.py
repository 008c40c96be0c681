"""Remove layers that leave the shape as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer, parameter_of
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import bypass
from surgery.selectors import Selector, select

__all__ = ["Remove"]


@pass_dataclass
class Remove(Pass):
    """Removes layers and joins what is before them with what is behind: activations, dropout, normalizations.

    Any layer with one input of the shape of its output can go. Not idempotent: the second time there is nothing left
    that the selector matches, which is an error.

    Attributes:
        layers: Which layers.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector

    def edit(self, model: ir.Model) -> Iterator[Change]:
        selected = select(model, self.layers)
        for layer in selected:
            _check(layer)
        for layer in selected:
            for node in reversed(layer.nodes):
                _bypass(node)
            yield Change(layer.name, f"{layer.op_type} removed")


def _data(node: ir.Node) -> list[ir.Value]:
    """The inputs that are neither parameters nor constants."""
    inputs = [v for v in node.inputs if v is not None and not v.is_initializer() and parameter_of(v) is None]
    return [v for v in inputs if (p := v.producer()) is None or p.op_type != "Constant"]


def _check(layer: Layer) -> None:
    sources = _data(layer.node)
    if len(sources) != 1:
        raise SurgeryError(
            f"{layer.op_type} {layer.name!r} joins {len(sources)} inputs; only a layer with one can be removed"
        )
    before, after = sources[0].shape, layer.output.shape
    if before is None or after is None or list(before) != list(after):
        raise SurgeryError(
            f"{layer.op_type} {layer.name!r} turns {before} into {after}; only a layer that leaves the shape as it is "
            "can be removed"
        )
    if sources[0].dtype != layer.output.dtype:
        raise SurgeryError(f"{layer.op_type} {layer.name!r} changes the type of numbers; it cannot be removed")
    used = [o for o in layer.node.outputs[1:] if o.uses() or o.is_graph_output()]
    if used:
        raise SurgeryError(f"output {used[0].name!r} of {layer.op_type} {layer.name!r} is used; it cannot be removed")


def _bypass(node: ir.Node) -> None:
    """Bypasses `node`, whichever of its inputs is the data."""
    index = list(node.inputs).index(_data(node)[0])
    bypass(node, index)
