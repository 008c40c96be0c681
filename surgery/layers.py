"""Layers: the way people count a network, computed from its graph.

A layer is an operator with the parameters it owns. A bias that is an Add of its own belongs to the MatMul or Conv
before it. Layers that own parameters are numbered from 1; operators without parameters are layers too, but not
numbered, so that "the first five layers" means five layers with weights, as in the name VGG-16.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import onnx_ir as ir

from surgery.errors import SurgeryError, nearest
from surgery.marks import marks

__all__ = ["Layer", "ancestors", "descendants", "find_image", "find_layer", "find_output", "head", "layers"]

# Which inputs of an operator are parameters, by ONNX's operator specification.
ROLES: dict[str, dict[int, str]] = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {0: "weight", 1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "BatchNormalization": {1: "scale", 2: "bias", 3: "mean", 4: "var"},
    "InstanceNormalization": {1: "scale", 2: "bias"},
    "GroupNormalization": {1: "scale", 2: "bias"},
    "LayerNormalization": {1: "scale", 2: "bias"},
    "RMSNormalization": {1: "scale"},
    "PRelu": {1: "slope"},
    "Gather": {0: "weight"},
    "Einsum": dict.fromkeys(range(8), "weight"),
    "LSTM": {1: "weight", 2: "recurrent_weight", 3: "bias", 7: "peephole"},
    "GRU": {1: "weight", 2: "recurrent_weight", 3: "bias"},
    "RNN": {1: "weight", 2: "recurrent_weight", 3: "bias"},
    # An Add or Mul with an array is a parameter of its own (a scale layer, a position embedding); with a single
    # number it is arithmetic.
    "Add": {0: "bias", 1: "bias"},
    "Mul": {0: "scale", 1: "scale"},
    "Expand": {0: "token"},  # likewise: a transformer's class token, the same for each example
}
STATISTICS = ("mean", "var")
_VIEWS = ("Transpose", "Identity")  # PyTorch exports a Linear layer's weight so
_HAS_BIAS_ADD = {"MatMul", "Conv", "ConvTranspose", "Einsum"}
_ONNX = ("", "ai.onnx")  # the two names of the default domain
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A read-only view of one operator of a graph and the parameters it owns.

    Attributes:
        index: Its number, from 1, among the layers that own parameters; None for one that owns none.
        name: The operator's name.
        node: The operator.
        nodes: The operator, and the Add that holds its bias if that is separate.
        parameters: Its parameters by role: ``weight``, ``bias``, ``scale``, ``mean``, ``var``, ``slope``, ….
    """

    index: int | None
    name: str
    node: ir.Node
    nodes: tuple[ir.Node, ...]
    parameters: dict[str, ir.Value]

    @property
    def op_type(self) -> str:
        """The operator's type, as ``Conv``."""
        return self.node.op_type

    @property
    def output(self) -> ir.Value:
        """The layer's output, behind its bias."""
        return self.nodes[-1].outputs[0]

    @property
    def size(self) -> int:
        """How many numbers its parameters hold."""
        return sum(math.prod(p.shape.numpy()) for p in self.parameters.values() if p.shape is not None)

    @property
    def trainable(self) -> bool:
        """Whether training may change any of its parameters (statistics aside)."""
        return any(not marks(p).frozen for role, p in self.parameters.items() if role not in STATISTICS)

    def __repr__(self) -> str:
        return f"Layer({self.index}, {self.name!r}, {self.op_type})"


def parameter_of(value: ir.Value | None) -> ir.Value | None:
    """The floating-point initializer that `value` is, also behind the Transpose or Identity of an exporter."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _VIEWS and node.domain in _ONNX else None
    return value if value is not None and value.dtype in _FLOATS else None


def stored_axes(value: ir.Value, axes: Iterable[int]) -> tuple[int, ...]:
    """Axes of `value` as axes of the initializer that it is a Transpose of."""
    axes = list(axes)
    while (node := value.producer()) is not None:
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "Transpose":
            rank = len(source.shape or ())
            perm = node.attributes.get_ints("perm", tuple(range(rank))[::-1])
            axes = [perm[axis] for axis in axes]
        value = source
    return tuple(sorted(axes))


def _parameter(node: ir.Node, index: int) -> ir.Value | None:
    """What input `index` of `node` has as its parameter: an initializer in a place where operators have weights."""
    if node.domain not in _ONNX or index not in ROLES.get(node.op_type, {}):
        return None
    found = parameter_of(node.inputs[index])
    if found is None or node.op_type not in ("Add", "Mul", "Expand"):
        return found
    return found if found.shape is not None and math.prod(found.shape.numpy()) > 1 else None


def _bias_add(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that holds the bias of `node`, and the bias, if that is an operator of its own."""
    if node.op_type not in _HAS_BIAS_ADD or (len(node.inputs) > 2 and node.op_type != "Einsum"):
        return None
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    (add, index) = next(iter(uses))
    is_add = add.op_type == "Add" and add.domain in _ONNX and len(add.inputs) == 2
    other = add.inputs[1 - index] if is_add else None
    if other is None or not (other.is_initializer() and other.dtype in _FLOATS and other.shape is not None):
        return None
    return (add, other) if _fits_units(node, other.shape.numpy()) else None


def _fits_units(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """Whether an array of `shape`, added to the output of `node`, has one number for each unit."""
    places = [i - len(shape) for i, d in enumerate(shape) if d != 1]  # counted from the end, as broadcasting does
    weight = node.inputs[1]
    if len(places) > 1 or weight is None or weight.shape is None:
        return False
    if node.op_type == "Einsum" or parameter_of(weight) is None:
        return True
    dims = weight.shape.numpy()
    axis, units = (-1, dims[-1]) if node.op_type == "MatMul" else (1 - len(dims), dims[0])
    if node.op_type == "ConvTranspose":
        units = dims[1] * node.attributes.get_int("group", 1)
    return math.prod(shape) == units and places in ([], [axis])


def layers(model: ir.Model) -> list[Layer]:
    """Returns the layers of `model` in graph order; the constant-making plumbing of exporters is left out."""
    result: list[Layer] = []
    biases: set[ir.Node] = set()
    count = 0
    for node in model.graph:
        if node in biases or _is_plumbing(node):
            continue
        parameters: dict[str, ir.Value] = {}
        roles = ROLES.get(node.op_type, {})
        for index in range(len(node.inputs)):
            if (parameter := _parameter(node, index)) is not None:
                role = roles[index]
                while role in parameters:
                    role += "_"
                parameters[role] = parameter
        nodes: tuple[ir.Node, ...] = (node,)
        if "weight" in parameters and (add := _bias_add(node)) is not None:
            nodes = (node, add[0])
            biases.add(add[0])
            parameters["bias"] = add[1]
        if parameters:
            count += 1
        name = node.name or node.outputs[0].name or node.op_type
        result.append(Layer(count if parameters else None, name, node, nodes, parameters))
    return result


def _is_plumbing(node: ir.Node) -> bool:
    """Whether `node` only computes shapes or constants."""
    if node.op_type in ("Constant", "ConstantOfShape", "Shape", "Size", "Range"):
        return True
    if node.op_type in _VIEWS and parameter_of(node.inputs[0]) is not None:
        return True
    dtype = node.outputs[0].dtype if node.outputs else None
    return dtype in (ir.DataType.INT64, ir.DataType.BOOL) and not any(o.is_graph_output() for o in node.outputs)


def ancestors(values: Iterable[ir.Value | None]) -> set[ir.Node]:
    """Returns the operators that `values` are computed from, their producers included."""
    found: set[ir.Node] = set()
    stack = [v.producer() for v in values if v is not None]
    while stack:
        node = stack.pop()
        if node is None or node in found:
            continue
        found.add(node)
        stack.extend(v.producer() for v in node.inputs if v is not None)
    return found


def descendants(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Returns the operators that need any of `values`."""
    found: set[ir.Node] = set()
    stack = [node for value in values for node in value.consumers()]
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        stack.extend(consumer for output in node.outputs for consumer in output.consumers())
    return found


def _parameter_names(layer: Layer) -> list[str]:
    """``layer1.0.conv1.weight`` and, as frameworks call the layer itself, ``layer1.0.conv1``."""
    names = [p.name for p in layer.parameters.values() if p.name]
    return names + [n.rpartition(".")[0] for n in names if "." in n]


# What a layer answers to; the earlier counts where several layers answer.
NAMES: tuple[Callable[[Layer], list[str]], ...] = (
    lambda layer: [layer.name],
    lambda layer: [o.name for node in layer.nodes for o in node.outputs if o.name],
    _parameter_names,
)


def known_names(view: Iterable[Layer]) -> list[str]:
    """The names by which users may know some layers, for suggestions."""
    return [name for layer in view for name in (layer.name, *(n for n in _parameter_names(layer) if "." in n))]


def find_layer(model: ir.Model, name: str) -> Layer:
    """Returns the layer named `name`, also by the name of its output or of a parameter.

    Raises:
        SurgeryError: There is none; the message names the nearest.
    """
    view = layers(model)
    for names_of in NAMES:
        for layer in view:
            if name in names_of(layer):
                return layer
    raise SurgeryError(f"no layer named {name!r}{nearest(name, known_names(view))}")


def find_image(model: ir.Model, name: str | None = None) -> ir.Value:
    """Returns the input that takes images, with four axes, named `name`; without a name, the only one.

    Raises:
        SurgeryError: There is none, or no name was given and there are several.
    """
    images = [v for v in model.graph.inputs if v.shape is not None and len(v.shape) == 4 and name in (None, v.name)]
    if len(images) != 1:
        names = ", ".join(f"{v.name} {v.shape}" for v in model.graph.inputs)
        raise SurgeryError(f"{len(images)} inputs could be images ({names}); say which with `input:`")
    return images[0]


def find_output(model: ir.Model, name: str | None = None) -> ir.Value:
    """Returns the graph output named `name`; without a name, the only one.

    Raises:
        SurgeryError: There is none of that name, or no name was given and there are several.
    """
    outputs = list(model.graph.outputs)
    names = [str(o.name) for o in outputs]
    if name is None:
        if len(outputs) != 1:
            raise SurgeryError(f"the model has {len(outputs)} outputs ({', '.join(names)}); say which with `output:`")
        return outputs[0]
    for output in outputs:
        if output.name == name:
            return output
    raise SurgeryError(f"no output named {name!r}; the model has {', '.join(names)}{nearest(name, names)}")


def head(model: ir.Model, output: str | None = None) -> Layer:
    """Returns the head: the last layer with weights in front of an output.

    Args:
        model: The model.
        output: The output's name; not needed where there is only one.

    Raises:
        SurgeryError: No Gemm, MatMul or Conv with weights of its own leads straight to the output.
    """
    end = find_output(model, output)
    by_node = {node: layer for layer in layers(model) for node in layer.nodes}
    value = end
    while (node := value.producer()) is not None:
        layer = by_node.get(node)
        if layer is not None and "weight" in layer.parameters and layer.op_type in ("Gemm", "MatMul", "Conv"):
            return layer
        data = [v for v in node.inputs if v is not None and not v.is_initializer() and v.dtype != ir.DataType.INT64]
        if not data or (layer is not None and layer.parameters) or len(data) > 1:
            break
        value = data[0]
    raise SurgeryError(
        f"output {end.name!r} has no head that can be found: going back from it, no Gemm, MatMul or Conv with weights "
        f"comes before {node.op_type + ' ' + repr(node.name) if node is not None else 'the input'}"
    )
