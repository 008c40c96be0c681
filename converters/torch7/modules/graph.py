"""nngraph's modules."""

from __future__ import annotations

import itertools
from typing import Any

import onnx_ir as ir

from converters.torch7.context import Context, Nested, module
from converters.torch7.objects import Table, TorchObject

__all__: list[str] = []


@module("gModule")
def graph_module(c: Context) -> Nested:
    """Runs the nodes in the order of ``forwardnodes``, as nngraph's gmodule.lua does.

    A node gives what it makes to its children, each of which knows by its ``mapindex`` at which place. A node without a
    module passes on what it reads, or with a ``selectindex`` one entry of that.
    """
    nodes = c.module.fields.get("forwardnodes")
    out = c.module.fields.get("outnode")
    if not isinstance(nodes, Table) or not isinstance(out, TorchObject):
        raise c.error("has no forwardnodes or no outnode")
    start = c.module.fields.get("innode")
    places = itertools.count(1)
    read: dict[Table, dict[int, Nested]] = {}
    for node in nodes.items():
        data = _data(c, node)
        if node is start:
            if _old_input(c, node, read):
                continue
            made = c.input
        else:
            made = _run(c, data, read.get(data, {}), places)
        for child in _children(c, node):
            _give(c, child, data, made, read)
    found = _inputs(c, read.get(_data(c, out), {}))
    return found[0] if len(found) == 1 else found


def _run(c: Context, data: Table, read: dict[int, Nested], places: Any) -> Nested:
    """What one node makes of what it reads."""
    values = _inputs(c, read)
    value = values[0] if len(values) == 1 else values
    module = data.entries.get("module")
    if module is not None:
        if not isinstance(module, TorchObject):
            raise c.error("has a node whose module is none")
        return c.run(module, _place(data, places), value)
    index = data.entries.get("selectindex")
    if index is None:
        return value
    if not isinstance(index, int) or isinstance(value, ir.Value) or not 1 <= index <= len(value):
        raise c.error(f"has a node that takes entry {index} of something that has none")
    return value[index - 1]


def _place(data: Table, places: Any) -> str:
    """The name that was given to the node, else its place among those with a module."""
    place = str(next(places))
    annotations = data.entries.get("annotations")
    name = annotations.entries.get("name") if isinstance(annotations, Table) else None
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) < 100 else place


def _inputs(c: Context, read: dict[int, Nested]) -> list[Nested]:
    if sorted(read) != list(range(1, len(read) + 1)) or not read:
        raise c.error("has a node that reads what no node makes before")
    return [read[index] for index in sorted(read)]


def _give(c: Context, child: Any, data: Table, made: Nested, read: dict[Table, dict[int, Nested]]) -> None:
    to = _data(c, child)
    index = _mapindex(c, to).get(data)
    if not isinstance(index, int):
        raise c.error("has a node that does not know at which place it reads another")
    read.setdefault(to, {})[index] = made


def _old_input(c: Context, node: Any, read: dict[Table, dict[int, Nested]]) -> bool:
    """Gives the input to the children as the oldest nngraph does, where it is the input that knows the places."""
    data = _data(c, node)
    places = _mapindex(c, data)
    if not places:
        return False
    children = _children(c, node)
    table = [c.input] if len(children) <= 1 or isinstance(c.input, ir.Value) else c.input
    for child in children:
        index = places.get(_data(c, child))
        if not isinstance(index, int) or not 1 <= index <= len(table):
            raise c.error(f"reads entry {index} of an input of {len(table)}")
        mine = read.setdefault(_data(c, child), {})
        mine[len(mine) + 1] = table[index - 1]
    return True


def _data(c: Context, node: Any) -> Table:
    data = node.fields.get("data") if isinstance(node, TorchObject) else None
    if not isinstance(data, Table):
        raise c.error("has a node without data")
    return data


def _mapindex(c: Context, data: Table) -> dict[Any, Any]:
    table = data.entries.get("mapindex")
    return table.entries if isinstance(table, Table) else {}


def _children(c: Context, node: Any) -> list[Any]:
    table = node.fields.get("children")
    return table.items() if isinstance(table, Table) else []
