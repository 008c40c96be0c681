"""Names of operators and values: those of Keras's layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["Names"]


class Names:
    """Names a graph's operators and values, each differently."""

    def __init__(self) -> None:
        self._nodes: dict[str, ir.Node] = {}
        self._named: set[ir.Node] = set()
        self._values: dict[str, ir.Value] = {}

    def layer(self, nodes: Sequence[ir.Node], name: str, outputs: Sequence[ir.Value]) -> None:
        """Names what a layer added to the graph.

        The operator that the layer itself named `name`, else the one that makes its first output, is ``<name>``; others
        have the name that the layer gave them, or ``<name>/<type>``. The first output is ``<name>``. What a layer
        inside has named keeps its name.
        """
        fresh = [node for node in nodes if node not in self._named]
        makes_output = outputs[0].producer() if outputs else None
        main = next((node for node in nodes if node.name == name), makes_output)
        for node in fresh:
            stem = f"{name}/{node.op_type}"
            if not re.fullmatch(re.escape(stem) + r"_\d+", str(node.name)) and node is not main:
                stem = str(node.name)  # one that the layer gave it
            node.name = _free(name if node is main else stem, self._nodes)
            self._nodes[node.name] = node
            self._named.add(node)
            for index, value in enumerate(node.outputs):
                self._name(value, f"{stem}.{index}" if index else stem)
        for index, value in enumerate(outputs):
            if value.producer() in nodes:
                self.take(value, f"{name}.{index}" if index else name)

    def take(self, value: ir.Value, name: str) -> None:
        """Gives `name` to `value`, from another value if need be, but for an input or output of the graph."""
        holder = self._values.get(name)
        if holder is not None and holder is not value and not (holder.is_graph_input() or holder.is_graph_output()):
            del self._values[name]
            self._name(holder, f"{name}/inner")
        self._name(value, name)

    def _name(self, value: ir.Value, name: str) -> None:
        if self._values.get(str(value.name)) is value:
            del self._values[str(value.name)]
        value.name = _free(name, self._values)
        self._values[value.name] = value


def _free(name: str, taken: dict[str, ir.Node] | dict[str, ir.Value]) -> str:
    """`name`, with a number behind it where that is taken."""
    free, count = name, 1
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    return free
