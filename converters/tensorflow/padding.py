"""TensorFlow's SAME padding, written out.

An axis of size n has ⌈n / stride⌉ windows; what these need more than n is zeros, one more behind than in front where it
is odd. Where n is not known and the stride is not 1, the graph computes it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from surgery.emit import Emitter
from surgery.errors import SurgeryError

__all__ = ["make_explicit"]

_WINDOWED = ("Conv", "MaxPool", "AveragePool", "ConvTranspose")
_LOWEST = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A window over one axis."""

    size: int | None
    kernel: int
    stride: int
    dilation: int

    @property
    def span(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    def total(self) -> int | None:
        """How much padding there is; None where that depends on a size that is not known."""
        if self.stride == 1:
            return self.span - 1
        if self.size is None:
            return None
        return max(0, (-(-self.size // self.stride) - 1) * self.stride + self.span - self.size)


def make_explicit(model: ir.Model) -> bool:
    """Replaces ``auto_pad`` by padding that is written out; returns whether there was any."""
    found = False
    for number, graph in enumerate(model.graphs()):
        found |= _make_explicit(graph, Emitter(graph, f"pad{number or ''}/"))
    return found


def _make_explicit(graph: ir.Graph, op: Emitter) -> bool:
    found = False
    for node in list(graph):
        auto = node.attributes.get_string("auto_pad", "NOTSET") if node.op_type in _WINDOWED else "NOTSET"
        if auto == "NOTSET":
            continue
        found = True
        axes = _axes(node)
        node.attributes.pop("auto_pad")
        if auto == "VALID":
            continue
        if node.op_type == "ConvTranspose":
            raise SurgeryError(f"{node.name}: a transposed convolution pads by {auto}; its input size must be known")
        totals = [axis.total() for axis in axes]
        if any(total is None for total in totals):
            _pad_at_run_time(op, node, axes, auto == "SAME_UPPER")
            continue
        smaller = [total // 2 for total in totals if total is not None]
        larger = [total - less for total, less in zip(totals, smaller, strict=True) if total is not None]
        pads = [*smaller, *larger] if auto == "SAME_UPPER" else [*larger, *smaller]
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    return found


def _axes(node: ir.Node) -> list[_Axis]:
    x, weight = node.inputs[0], node.inputs[1] if node.op_type.startswith("Conv") else None
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    if not kernel and weight is not None and weight.shape is not None:
        kernel = [int(d) for d in weight.shape[2:]]  # type: ignore[arg-type]
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    shape = x.shape if x is not None else None
    sizes = [d if isinstance(d, int) else None for d in shape[2:]] if shape is not None else [None] * rank
    return [_Axis(*each) for each in zip(sizes, kernel, strides, dilations, strict=True)]


def _pad_at_run_time(op: Emitter, node: ir.Node, axes: list[_Axis], upper: bool) -> None:
    """Puts a Pad in front; an average is divided by the share of its window that is no padding."""
    x = node.inputs[0]
    assert x is not None
    before = len(op.graph)
    span, stride = op.constant([a.span for a in axes]), op.constant([a.stride for a in axes])
    size = op.Shape(x, start=2)
    windows = op.Div(op.Add(size, op.constant([a.stride - 1 for a in axes])), stride)
    need = op.Sub(op.Add(op.Mul(op.Sub(windows, op.constant([1])), stride), span), size)
    total = op.Max(need, op.constant([0]))
    less = op.Div(total, op.constant([2]))
    more = op.Sub(total, less)
    none = op.constant([0, 0])
    pads = op.Concat(none, less if upper else more, none, more if upper else less, axis=0)
    padded = op.Pad(x, pads, _LOWEST if node.op_type == "MaxPool" else 0.0)
    node.replace_input_with(0, padded)
    if node.op_type == "AveragePool":
        ones = op.Pad(
            op.Expand(
                op.constant(np.ones((1, 1, *[1] * len(axes)), np.float32)), op.Concat(op.constant([1, 1]), size, axis=0)
            ),
            pads,
            0.0,
        )
        attributes = {"kernel_shape": [a.kernel for a in axes], "strides": [a.stride for a in axes]}
        share = op.AveragePool(ones, **attributes)
        _move(op.graph, before, node, ahead=True)
        output, before = node.outputs[0], len(op.graph)
        corrected = op.Div(output, share)
        for user, index in list(output.uses()):
            if user is not corrected.producer():
                user.replace_input_with(index, corrected)
        if output.is_graph_output():
            corrected.name, output.name = output.name, f"{output.name}/sum"
            op.graph.outputs[list(op.graph.outputs).index(output)] = corrected
        _move(op.graph, before, node, ahead=False)
        return
    _move(op.graph, before, node, ahead=True)


def _move(graph: ir.Graph, before: int, node: ir.Node, ahead: bool) -> None:
    """Moves the operators at the graph's end, from place `before` on, to `node`: an emitter writes at the end."""
    new = list(graph)[before:]
    graph.remove(new)
    if ahead:
        graph.insert_before(node, new)
    else:
        graph.insert_after(node, new)
