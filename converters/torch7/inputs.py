"""What input a network takes, as far as its modules tell: Torch's files do not say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Union

from converters.options import Dim
from converters.torch7.objects import Storage, Table, Tensor, TorchObject

__all__ = ["NestedDims", "find_dims"]

NestedDims = Union["tuple[Dim, ...] | None", "list[NestedDims]"]
"""The dimensions of an input without the batch's, None where unknown; or those of a table of them."""

_DEEPEST = 100
_MOST_STEPS = 20_000
_IMAGE: tuple[Dim, ...] = ("height", "width")
_VOLUME: tuple[Dim, ...] = ("depth", *_IMAGE)

# Types that pass on what they read as it is, or change its numbers only.
_SAME = {
    *("Identity", "Copy", "Contiguous", "Dropout", "ReLU", "Tanh", "Sigmoid", "Threshold", "MulConstant"),
    *("AddConstant", "Abs", "Power", "Square", "Sqrt", "LeakyReLU", "ELU", "HardTanh", "PReLU", "Clamp", "Mul"),
}


def find_dims(root: TorchObject) -> NestedDims:
    """Returns what `root` reads."""
    return _Search().module(root)


class _Search:
    """One search, of bounded length."""

    def __init__(self) -> None:
        self._depth = 0
        self._steps = 0

    def module(self, module: Any) -> NestedDims:
        """What one module reads; None where it does not tell."""
        self._steps += 1
        if not isinstance(module, TorchObject) or self._depth >= _DEEPEST or self._steps > _MOST_STEPS:
            return None
        self._depth += 1
        name = module.type.rpartition(".")[2]
        found = _CONTAINERS[name](self, module) if name in _CONTAINERS else _leaf(name, module.fields)
        self._depth -= 1
        return found

    def first(self, module: TorchObject) -> NestedDims:
        """Of a Sequential: what its first module reads that tells, behind such as pass on what they read."""
        for child in _children(module):
            found = self.module(child)
            if found is not None:
                return found
            if not isinstance(child, TorchObject) or child.type.rpartition(".")[2] not in _SAME:
                return None
        return None

    def any(self, module: TorchObject) -> NestedDims:
        """Of modules that read the same: what the first reads that tells."""
        return _first(self.module(child) for child in _children(module))

    def each(self, module: TorchObject) -> NestedDims:
        """Of modules that each read one entry of a table."""
        return [self.module(child) for child in _children(module)]

    def graph(self, module: TorchObject) -> NestedDims:
        """Of nngraph's gModule: what reads its input node."""
        node = module.fields.get("innode")
        count = module.fields.get("nInputs", 1)
        if not isinstance(node, TorchObject):
            return None
        children = _nodes(node)
        if isinstance(count, int) and 1 < count <= _DEEPEST:
            by_number: list[NestedDims] = [None] * count
            for child in (grandchild for split in children for grandchild in _nodes(split)):
                index = _data(child).get("selectindex")
                if isinstance(index, int) and 1 <= index <= count:
                    by_number[index - 1] = self.node(child)
            return by_number
        if len(children) > 1:  # the oldest files: a child for each input
            return [self.node(child) for child in children]
        return _first(self.node(child) for child in children)

    def node(self, node: Any) -> NestedDims:
        """What a node of a graph reads, or where it passes that on, what the nodes behind it read."""
        self._steps += 1
        if not isinstance(node, TorchObject) or self._depth >= _DEEPEST or self._steps > _MOST_STEPS:
            return None
        self._depth += 1
        module = _data(node).get("module")
        found = self.module(module)
        passes_on = not isinstance(module, TorchObject) or module.type.rpartition(".")[2] in _SAME
        if found is None and passes_on:
            found = _first(self.node(child) for child in _nodes(node))
        self._depth -= 1
        return found


_CONTAINERS: dict[str, Callable[[_Search, TorchObject], NestedDims]] = {
    "Sequential": _Search.first,
    "Concat": _Search.any,
    "DepthConcat": _Search.any,
    "ConcatTable": _Search.any,
    "DataParallel": _Search.any,
    "DataParallelTable": _Search.any,
    "NoBackprop": _Search.any,
    "ParallelTable": _Search.each,
    "gModule": _Search.graph,
}


def _first(found: Iterable[NestedDims]) -> NestedDims:
    return next((each for each in found if each is not None), None)


def _children(module: TorchObject) -> list[Any]:
    table = module.fields.get("modules")
    return table.items() if isinstance(table, Table) else []


def _data(node: Any) -> dict[Any, Any]:
    table = node.fields.get("data") if isinstance(node, TorchObject) else None
    return table.entries if isinstance(table, Table) else {}


def _nodes(node: TorchObject) -> list[Any]:
    table = node.fields.get("children")
    return table.items() if isinstance(table, Table) else []


def _leaf(name: str, fields: dict[Any, Any]) -> tuple[Dim, ...] | None:
    if name.startswith("Spatial"):
        return _image(name, fields)
    if name.startswith("Volumetric"):
        return (_whole(fields.get("nInputPlane")) or "channels", *_VOLUME)
    weight = fields.get("weight")
    if name == "Linear" and isinstance(weight, Tensor) and len(weight.shape) == 2:
        return (weight.shape[1],)
    mean = fields.get("running_mean")
    if name == "BatchNormalization" and isinstance(mean, Tensor) and mean.size:
        return (mean.size,)
    size = fields.get("size")
    if name == "Reshape" and isinstance(size, Storage) and len(size.data):
        return (math.prod(int(n) for n in size.data[:_DEEPEST]),)  # any shape of so many numbers; a flat one
    return None


def _image(name: str, fields: dict[Any, Any]) -> tuple[Dim, ...]:
    channels = _whole(fields.get("nInputPlane"))
    mean = fields.get("running_mean")
    if channels is None and isinstance(mean, Tensor) and mean.size:
        channels = mean.size
    return (channels or "channels", *_IMAGE)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None
