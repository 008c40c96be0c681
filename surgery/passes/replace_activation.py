"""Replace activations."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.passes.activations import ACTIVATION_OPS, Activation, activation_node, insert_activation
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import bypass
from surgery.selectors import Selector, select

__all__ = ["ReplaceActivation"]


@pass_dataclass
class ReplaceActivation(Pass):
    """Puts other activations where some are. Idempotent, except that linear leaves none to find again.

    Attributes:
        layers: Which layers; those of them that are no activations are left as they are. ``{type: Relu}`` is all of a
            kind.
        activation: What comes instead: relu, gelu, leaky_relu, …; linear removes them.
    """

    layers: Selector
    activation: Activation

    def edit(self, model: ir.Model) -> Iterator[Change]:
        selected = [layer for layer in select(model, self.layers) if layer.op_type in ACTIVATION_OPS]
        if not selected:
            raise SurgeryError(f"replace_activation: none of the selected layers is an activation ({self.layers!r})")
        for layer in selected:
            node = layer.node
            if node.op_type == activation_node(self.activation):
                continue
            rank = len(node.outputs[0].shape or ())
            axis = node.attributes.get_int("axis", 1 if rank > 3 else -1)  # the units', for a softmax
            new = insert_activation(model, node.outputs[0], self.activation, f"{layer.name}/{self.activation}", axis)
            bypass(node)
            if (producer := new.producer()) not in (None, node):
                assert producer is not None
                producer.name = layer.name
            yield Change(layer.name, f"{layer.op_type} → {self.activation}")
