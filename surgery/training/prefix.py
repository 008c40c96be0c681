"""The frozen prefix: the part of a graph whose values are the same for an example in every epoch, cut off.

It is what no trained parameter, no changing statistic and no randomness comes before. What is left of the network reads
the values at the cut as inputs of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from surgery.autodiff.constants import fold_shapes
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.layers import ancestors, descendants, layers
from surgery.passes.editing import constant_of
from surgery.training.forward import changing_parameters, free_batch

__all__ = ["Split", "split"]

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
# What costs no more than to read its result: it may be computed again each time, where its inputs are smaller.
_CHEAP = {
    *("Abs", "Add", "Cast", "Clip", "Concat", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten"),
    *("Gather", "Gelu", "Greater", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "Log", "Max", "Min"),
    *("Mul", "Neg", "Not", "OneHot", "PRelu", "Pad", "Pow", "Reciprocal", "Relu", "Reshape", "Resize", "Selu", "Shape"),
    *("Sigmoid", "Slice", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile"),
    *("Transpose", "Unsqueeze", "Upsample", "Where"),
}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}  # whose cost is known
_TWO_SIZES = (5, 7)  # of a batch
Shapes = dict[ir.Value, tuple[int, ...]]  # of an example
_FREE = 8  # multiplications for each byte of the result: what does less is as fast as reading that


@dataclasses.dataclass(frozen=True)
class Split:
    """A network in two.

    Attributes:
        prefix: From the network's inputs to those values at the cut that are computed.
        rest: From the values at the cut to the outputs; its marks are the network's.
        cut: The values at the cut, by name, with the type and shape `[…]` of an example's.
        operators: How many operators the prefix has.
        end: Why it ends where it does, where frozen layers come behind; empty otherwise.
    """

    prefix: ir.Model
    rest: ir.Model
    cut: dict[str, tuple[ir.DataType, tuple[int, ...]]]
    operators: int
    end: str = ""

    @property
    def bytes_per_example(self) -> int:
        """The size of the values at the cut."""
        return sum(math.ceil(dtype.itemsize * math.prod(shape)) for dtype, shape in self.cut.values())


def split(model: ir.Model, outputs: Collection[str]) -> Split | str | None:
    """Cuts the frozen prefix off.

    Of all cuts behind its last operator that is worth anything, it takes one where the values are smallest.

    Args:
        model: A model with marks, which is left as it is.
        outputs: The names of the outputs that are trained.

    Returns:
        The two parts; why it is of no use to cut; or None where nothing worth anything is frozen.
    """
    model = model.clone()
    InlinePass()(model)
    graph = model.graph
    graph.outputs[:] = [o for o in graph.outputs if o.name in outputs]
    RemoveUnusedNodesPass()(model)
    free_batch(graph)
    try:
        infer_shapes(model)
    except SurgeryError:  # which training tells of
        return None
    fixed, first = _fixed_nodes(model)
    work = [n for n in fixed if n.op_type not in _CHEAP]
    if not work:
        if first is not None and first.op_type == "Dropout":
            return f"dropout {first.name!r}, which comes before any layer, drops others each time"
        return None
    whole = next((o for o in graph.outputs if o.producer() in fixed), None)
    if whole is not None:
        return f"nothing of output {whole.name!r} is trained"
    shapes = _example_shapes(model, fixed)
    cut = _smallest_cut(graph, fixed, shapes)
    if cut is None:
        return "the shape of its results is not known"
    before = ancestors(cut)
    done = [n for n in fixed if n in before]
    size = sum(_size(v, shapes) or 0 for v in cut)
    known = all(n.op_type in _PRODUCTS | _CHEAP for n in done)
    if known and sum(_multiplications(n, shapes) for n in done) <= _FREE * size:
        return f"it is computed as fast as its {size:,} bytes an example are read"
    behind = set() if first is None or first.op_type != "Dropout" else descendants(first.outputs)
    more = any(layer.node in behind and layer.parameters and not layer.trainable for layer in layers(model))
    end = f"dropout {first.name!r} behind it drops others each time" if more and first is not None else ""
    return dataclasses.replace(_cut(model, {str(v.name): shapes[v] for v in cut}, len(done)), end=end)


def _fixed_nodes(model: ir.Model) -> tuple[list[ir.Node], ir.Node | None]:
    """The operators that give the same for an example each time, and the first one that does not; constants aside."""
    graph = model.graph
    changing: set[ir.Value] = set(changing_parameters(model))
    of_data = descendants(graph.inputs)
    fixed: list[ir.Node] = []
    first = None
    for node in graph:
        if node not in of_data and not any(v in changing for v in node.inputs):
            continue
        if any(v in changing for v in node.inputs) or _varies(node):
            changing.update(node.outputs)
            first = first or node
        else:
            fixed.append(node)
    return fixed, first


def _varies(node: ir.Node) -> bool:
    """Whether an operator draws random numbers or mixes a batch's examples, or may, as what holds a graph."""
    if node.op_type == "Dropout":
        ratio = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        return (node.attributes.get_float("ratio", 0.5) if ratio is None else float(ratio)) != 0
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return (
        node.op_type in _RANDOM
        or (node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) == 1)
        or any(a.type in graphs for a in node.attributes.values())
    )


def _example_shapes(model: ir.Model, fixed: list[ir.Node]) -> Shapes:
    """The shapes of an example's part of the values that have one.

    What symbolic shapes leave open, as where an exporter's Reshape computes with the batch's size, two sizes tell: a
    value's first dimension is the batch's where it is that of each, and the others are the same.
    """
    graph = model.graph
    values = [*graph.inputs, *(o for n in fixed for o in n.outputs if o.name)]
    shapes = {v: _dims(v.shape[1:]) for v in values if v.shape is not None and len(v.shape) and v.shape[0] == "batch"}
    found = {v: dims for v, dims in shapes.items() if dims is not None}
    if all(v in found or v.dtype is None or not v.dtype.is_floating_point() for v in values):
        return found
    first, second = (_shapes_at(model, batch) for batch in _TWO_SIZES)
    for value in values:
        a, b = first.get(str(value.name)), second.get(str(value.name))
        if a and b and (a[0], b[0]) == _TWO_SIZES and a[1:] == b[1:]:
            found[value] = a[1:]
    return found


def _dims(shape: Iterable[object]) -> tuple[int, ...] | None:
    dims = tuple(d for d in shape)
    return dims if all(isinstance(d, int) for d in dims) else None  # type: ignore[return-value]


def _shapes_at(model: ir.Model, batch: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all values for so many examples, as far as they follow."""
    model = model.clone()
    free_batch(model.graph)
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([batch, *value.shape[1:]])
    changing = {str(v.name) for v in changing_parameters(model)}
    infer_shapes(model)
    while fold_shapes(model.graph, changing):
        infer_shapes(model)
    values = [*model.graph.inputs, *(o for n in model.graph for o in n.outputs)]
    shapes = {str(v.name): _dims(v.shape) for v in values if v.shape is not None}
    return {name: dims for name, dims in shapes.items() if dims is not None}


def _size(value: ir.Value, shapes: Shapes) -> int | None:
    """The bytes of an example's part of a value; None where it has none that is known."""
    if value.dtype is None or value not in shapes:
        return None
    return math.ceil(value.dtype.itemsize * math.prod(shapes[value]))


def _multiplications(node: ir.Node, shapes: Shapes) -> int:
    """How many an example takes; 0 where that is not known."""
    x, weight = [*node.inputs, None][:2]
    if node.op_type not in _PRODUCTS or node.outputs[0] not in shapes or x is None or weight is None:
        return 0
    inner = list(weight.shape or ())[1:] if node.op_type == "Conv" else list(shapes.get(x, ()))[-1:]
    return math.prod(shapes[node.outputs[0]]) * math.prod(d for d in inner if isinstance(d, int))


def _smallest_cut(graph: ir.Graph, fixed: list[ir.Node], shapes: Shapes) -> list[ir.Value] | None:
    """The values that separate the operators worth caching from what needs them, the smallest in all.

    A smallest cut is where the greatest flow is stopped (Ford and Fulkerson 1956): through a value flows at most its
    size; operators that are not cheap are on the side of the source. Of equal ones it is the last.
    """
    inside = set(fixed)
    values = {v: _size(v, shapes) for n in fixed for v in _around(n) if _is_data(v, inside)}
    values |= {v: _size(v, shapes) for v in graph.inputs}
    flow = _Flow()
    for value, size in values.items():
        flow.edge((value, "in"), (value, "out"), math.inf if size is None else max(size, 1))
        if value.producer() is None:
            flow.edge("source", (value, "in"), math.inf)
        for user in value.consumers():  # who is behind the cut needs what it reads there
            flow.edge((value, "out"), user if user in inside else "sink", math.inf)
    for node in fixed:
        if node.op_type not in _CHEAP:
            flow.edge("source", node, math.inf)
        for value in _around(node):  # who is before it, all that it reads and gives
            if value in values:
                flow.edge(node, (value, "in"), math.inf)
        for value in node.outputs:  # and a value, what gives it
            flow.edge((value, "in"), node, math.inf)
    behind = flow.sink_side()
    if behind is None:
        return None
    return [v for v in values if (v, "in") not in behind and (v, "out") in behind]


def _around(node: ir.Node) -> list[ir.Value]:
    """What an operator reads and gives."""
    return [v for v in (*node.inputs, *node.outputs) if v is not None]


def _is_data(value: ir.Value, fixed: set[ir.Node]) -> bool:
    return value.is_graph_input() if value.producer() is None else value.producer() in fixed


class _Flow:
    """The greatest flow from ``source`` to ``sink`` (Edmonds and Karp 1972)."""

    def __init__(self) -> None:
        self._room: dict[object, dict[object, float]] = collections.defaultdict(dict)

    def edge(self, start: object, end: object, room: float) -> None:
        self._room[start][end] = max(room, self._room[start].get(end, 0))
        self._room[end].setdefault(start, 0)

    def sink_side(self) -> set[object] | None:
        """The places from which the sink can still be reached when nothing more flows; None where all of it flows."""
        while (path := self._path()) is not None:
            room = min(self._room[a][b] for a, b in path)
            if math.isinf(room):
                return None
            for a, b in path:
                self._room[a][b] -= room
                self._room[b][a] += room
        found: set[object] = {"sink"}
        queue: list[object] = ["sink"]
        while queue:
            place = queue.pop()
            before = [other for other in self._room[place] if other not in found and self._room[other][place] > 0]
            found.update(before)
            queue += before
        return found

    def _path(self) -> list[tuple[object, object]] | None:
        """A shortest path with room."""
        came: dict[object, object] = {"source": "source"}
        queue: collections.deque[object] = collections.deque(["source"])
        while queue:
            place = queue.popleft()
            if place == "sink":
                steps: list[object] = [place]
                while steps[-1] != "source":
                    steps.append(came[steps[-1]])
                return list(itertools.pairwise(reversed(steps)))
            for other, room in self._room[place].items():
                if room > 0 and other not in came:
                    came[other] = place
                    queue.append(other)
        return None


def _cut(model: ir.Model, shapes: dict[str, tuple[int, ...]], operators: int) -> Split:
    prefix, rest = model.clone(), model
    values = {str(v.name): v for v in [*rest.graph.inputs, *(o for n in rest.graph for o in n.outputs)]}
    cut = {}
    for name, shape in shapes.items():
        value = values[name]
        assert value.dtype is not None
        cut[name] = value.dtype, shape
        if value.is_graph_input():
            continue
        own = ir.val(name, value.dtype, ["batch", *shape])
        value.name = f"{name}/before the cut"
        value.replace_all_uses_with(own)
        rest.graph.inputs.append(own)
    RemoveUnusedNodesPass()(rest)
    rest.graph.inputs[:] = [v for v in rest.graph.inputs if v.name in cut]
    ends = {str(v.name): v for v in [*prefix.graph.inputs, *(o for n in prefix.graph for o in n.outputs)]}
    prefix.graph.outputs[:] = [ends[name] for name in cut if not ends[name].is_graph_input()]
    RemoveUnusedNodesPass()(prefix)
    prefix.graph.inputs[:] = [v for v in prefix.graph.inputs if v.uses()]
    prefix.ir_version = IR_VERSION
    return Split(prefix, rest, cut, operators)
