"""Copying units: what has to change behind a layer whose units are copied, so that the outputs stay the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.layers import Layer, parameter_of, stored_axes
from surgery.passes.activations import ACTIVATION_OPS
from surgery.passes.editing import add_constant, constant_of, drop_unused

__all__ = ["Copies", "Copying"]

_UNARY = (ACTIVATION_OPS - {"Softmax", "LogSoftmax", "PRelu"}) | {
    *("Abs", "Cast", "Dropout", "Erf", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Sin", "Cos", "Sqrt"),
}
_POOLS = {"MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"}
_BY_CHANNEL = {"BatchNormalization": (1, 2, 3, 4), "InstanceNormalization": (1, 2)}
_BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"}
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"}
_READERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclasses.dataclass(frozen=True)
class Copies:
    """What becomes of the units that lie along an axis of a value.

    Attributes:
        source: The old unit that each new one is or copies.
        share: By what the weights that read each are multiplied; of a unit and its copies, they add up to 1.
        axis: The axis.
    """

    source: np.ndarray
    share: np.ndarray
    axis: int


class Copying:
    """Collects the changes behind a layer; makes them when all are known to be possible.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._edits: list[Callable[[], None]] = []
        self._edited: set[ir.Value] = set()
        self._met: set[ir.Value] = set()
        self.readers: list[str] = []  # the layers whose weights are divided

    def make(self) -> None:
        """Makes the changes."""
        for edit in self._edits:
            edit()

    def repeat(self, value: ir.Value | None, axis: int, copies: Copies, *, shared: bool = False) -> None:
        """Has a parameter's rows along `axis` copied; those of weights that read copies, divided (`shared`)."""
        parameter = parameter_of(value)
        if value is None or parameter is None or parameter.const_value is None:
            raise self._error(f"{value.name if value is not None else 'a weight'!r} is no parameter")
        inside: ir.Value | None = value
        while inside is not None:
            if len(inside.uses()) > 1 or parameter in self._edited:
                raise self._error(f"the parameter {parameter.name!r} has several users")
            inside = None if inside is parameter else inside.producer().inputs[0]  # type: ignore[union-attr]
        self._edited.add(parameter)
        (stored,) = stored_axes(value, (axis,))
        self._edits.append(lambda: _repeat(parameter, stored, copies, shared))

    def follow(self, value: ir.Value, copies: Copies) -> None:
        """Goes on behind `value`, whose units are copied."""
        if value.is_graph_output():
            raise self._error(f"its units are those of the output {value.name!r}")
        if value in self._met:
            raise self._error(f"it leads to {value.name!r} in two ways")
        self._met.add(value)
        for node, index in value.uses():
            self._through(node, index, copies)

    def _through(self, node: ir.Node, index: int, copies: Copies) -> None:
        kind, axis = node.op_type, copies.axis
        x = node.inputs[index]
        assert x is not None
        if node.domain not in ("", "ai.onnx"):
            raise self._stuck(node)
        if kind in ("Shape", "Size"):  # answered anew when it runs
            return
        if index == 0 and kind in _READERS:
            self._read(node, copies)
        elif index == 0 and kind in _BY_CHANNEL and axis == 1:
            for place in _BY_CHANNEL[kind]:
                self.repeat(node.inputs[place], 0, copies)
            self.follow(node.outputs[0], copies)
        elif index == 0 and (kind in _UNARY or (kind in _POOLS and axis == 1)):
            self.follow(node.outputs[0], copies)
        elif kind in _BINARY:
            self._combine(node, index, copies)
        elif kind == "Concat":
            self._join(node, index, copies)
        elif index == 0 and kind in ("Flatten", "Reshape"):
            self._flatten(node, copies)
        elif index == 0 and kind in _REDUCTIONS | {"Squeeze"} and min(self._axes(node, x)) > axis:
            self.follow(node.outputs[0], copies)
        elif kind == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(range(self._rank(x)))[::-1])
            self.follow(node.outputs[0], dataclasses.replace(copies, axis=list(perm).index(axis)))
        else:
            raise self._stuck(node)

    def _read(self, node: ir.Node, copies: Copies) -> None:
        """Divides the weights that read the units."""
        x, weight = node.inputs[:2]
        assert x is not None
        group = node.attributes.get_int("group", 1)
        old = int(copies.source.max()) + 1
        if node.op_type in ("Conv", "ConvTranspose") and copies.axis == 1 and group == 1:
            self.repeat(weight, 1 if node.op_type == "Conv" else 0, copies, shared=True)
        elif node.op_type == "Conv" and copies.axis == 1 and group == old and _first(weight) == group:  # depthwise
            self.repeat(weight, 0, copies)
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                self.repeat(node.inputs[2], 0, copies)
            self._edits.append(lambda: node.attributes.add(ir.AttrInt64("group", len(copies.source))))
            self.follow(node.outputs[0], copies)
            return
        elif node.op_type == "Gemm" and copies.axis == 1 and not node.attributes.get_int("transA", 0):
            self.repeat(weight, node.attributes.get_int("transB", 0), copies, shared=True)
        elif node.op_type == "MatMul" and copies.axis == self._rank(x) - 1 and weight is not None:
            self.repeat(weight, max(self._rank(weight) - 2, 0), copies, shared=True)
        else:
            raise self._stuck(node)
        self.readers.append(str(node.name))

    def _combine(self, node: ir.Node, index: int, copies: Copies) -> None:
        """An operator on each number and one of a constant, which may differ from unit to unit."""
        other = node.inputs[1 - index] if len(node.inputs) == 2 else None
        x, array = node.inputs[index], constant_of(other)
        if other is None or x is None or array is None or (node.op_type == "PRelu" and index):
            raise self._stuck(node)
        axis = copies.axis - self._rank(x) + array.ndim
        if axis >= 0 and array.shape[axis] > 1:
            self.repeat(other, axis, copies)
        self.follow(node.outputs[0], copies)

    def _join(self, node: ir.Node, index: int, copies: Copies) -> None:
        x = node.inputs[index]
        assert x is not None
        axis = node.attributes.get_int("axis", 1)
        axis += self._rank(x) if axis < 0 else 0
        if axis != copies.axis:
            raise self._stuck(node)
        sources, shares, offset = [], [], 0
        for place, value in enumerate(node.inputs):
            size = value.shape[axis] if value is not None and value.shape is not None else None
            if not isinstance(size, int):
                raise self._stuck(node)
            own = place == index
            sources.append((copies.source if own else np.arange(size)) + offset)
            shares.append(copies.share if own else np.ones(size))
            offset += size
        self.follow(node.outputs[0], Copies(np.concatenate(sources), np.concatenate(shares), axis))

    def _flatten(self, node: ir.Node, copies: Copies) -> None:
        """[N, C, H, W] as [N, C·H·W]."""
        x, y = node.inputs[0], node.outputs[0]
        before, after = (v.shape if v is not None else None for v in (x, y))
        inner = before[2:] if before is not None else [None]
        size = math.prod(d for d in inner if isinstance(d, int))
        old = int(copies.source.max()) + 1
        whole = all(isinstance(d, int) for d in inner) and after is not None and len(after) == 2
        if copies.axis != 1 or not whole or after is None or after[1] != old * size:
            raise self._stuck(node)
        if node.op_type == "Reshape":
            self._edits.append(lambda: _reshape(node))
        source = (copies.source[:, None] * size + np.arange(size)).reshape(-1)
        self.follow(y, Copies(source, np.repeat(copies.share, size), 1))

    def _axes(self, node: ir.Node, x: ir.Value) -> list[int]:
        found = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = node.attributes.get_ints("axes", ()) if found is None else found.reshape(-1).tolist()
        if not axes:
            raise self._stuck(node)
        return [int(a) + (self._rank(x) if a < 0 else 0) for a in axes]

    def _rank(self, value: ir.Value) -> int:
        if value.shape is None:
            raise self._error(f"the shape of {value.name!r} is not known")
        return len(value.shape)

    def _stuck(self, node: ir.Node) -> SurgeryError:
        return self._error(f"{node.op_type} {node.name!r} behind it does not treat each unit alone")

    def _error(self, reason: str) -> SurgeryError:
        return SurgeryError(f"layer {self._layer.name!r} cannot be made wider: {reason}")


def _first(value: ir.Value | None) -> int | None:
    size = value.shape[0] if value is not None and value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _repeat(parameter: ir.Value, axis: int, copies: Copies, shared: bool) -> None:
    assert parameter.const_value is not None
    array = parameter.const_value.numpy()
    new = np.take(array, copies.source, axis)
    if shared:
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        new = (new.astype(np.float64) * copies.share.reshape(shape)).astype(array.dtype)
    dtype = parameter.const_value.dtype
    parameter.const_value = ir.Tensor(np.ascontiguousarray(new), dtype=dtype, name=parameter.name)
    parameter.shape = ir.Shape(new.shape)


def _reshape(node: ir.Node) -> None:
    """Lets the second dimension follow from the first."""
    assert isinstance(node.graph, ir.Graph)
    old = node.inputs[1]
    node.attributes.pop("allowzero", None)
    node.replace_input_with(1, add_constant(node.graph, np.array([0, -1]), f"{node.name}/shape"))
    drop_unused(node.graph, [old])
