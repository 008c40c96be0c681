"""Reverse-mode differentiation of an ONNX graph: rules by operator emit the gradient's operators into the same graph.

Griewank and Walther, Evaluating Derivatives, 2nd ed., section 3.2: from the outputs back, each operator turns the
gradients of its outputs into those of its inputs. Only what leads from a wanted value to a target is visited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from surgery.autodiff.opset import raise_opset
from surgery.autodiff.recompute import Recomputation
from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest

__all__ = ["FLOATS", "Context", "backward", "differentiable", "fused_rule", "no_gradient", "registered", "rule"]

Gradients = Sequence[ir.Value | None]
Rule = Callable[["Context"], Gradients]

_rules: dict[str, Rule] = {}
_fused_rules: dict[str, Rule] = {}
# For an operator that some of its inputs have no gradient of, whatever their type: which ones. None: all.
_stops: dict[str, frozenset[int] | None] = {}
FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of some operators: it returns the gradient of each input, None for none.

    It may return fewer than there are inputs, emits standard ONNX operators only, and works at any of opsets 13–21.
    """

    def register(function: Rule) -> Rule:
        _rules.update(dict.fromkeys(op_types, function))
        return function

    return register


def fused_rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Registers a rule that uses the onnxruntime-training build's kernels; NotImplemented leaves it to `rule`'s."""

    def register(function: Rule) -> Rule:
        _fused_rules.update(dict.fromkeys(op_types, function))
        return function

    return register


def no_gradient(*op_types: str, inputs: Iterable[int] | None = None) -> None:
    """Registers operators whose derivative is zero or undefined everywhere that matters; `inputs`: for these only."""
    _stops.update(dict.fromkeys(op_types, None if inputs is None else frozenset(inputs)))


def registered(*, fused: bool = False) -> frozenset[str]:
    """The operators that have a rule; `fused`: one that uses the onnxruntime-training build's kernels."""
    _load_rules()
    return frozenset(_fused_rules if fused else _rules)


def _load_rules() -> None:
    from surgery.autodiff import rules as _  # noqa: F401  (importing registers them)


class Context:
    """What a rule sees: one operator, the gradients of its outputs, and an emitter.

    Attributes:
        node: The operator.
        op: The emitter to write with.
        opset: The graph's version of the default operator set.
    """

    def __init__(self, node: ir.Node, gradients: Mapping[int, ir.Value], wanted: set[ir.Value], op: Emitter) -> None:
        self.node = node
        self.op = op
        self.opset = op.graph.opset_imports.get("", 1)
        self._gradients = gradients
        self._wanted = wanted

    def x(self, index: int = 0) -> ir.Value:
        """Input `index`, which the operator must have."""
        value = self.node.inputs[index]
        if value is None:
            raise SurgeryError(f"{self.node.op_type} {self.node.name!r} has no input {index}")
        return value

    def has(self, index: int) -> bool:
        """Whether the optional input `index` is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def y(self, index: int = 0) -> ir.Value:
        """Output `index`."""
        return self.node.outputs[index]

    def extra_output(self, index: int, dtype: ir.DataType) -> ir.Value:
        """Output `index`, which the operator is made to give if it does not yet."""
        if index >= len(self.node.outputs):
            self.node.resize_outputs(index + 1)
        value = self.node.outputs[index]
        if not value.name:
            value.name = self.op.fresh(f"{self.node.op_type}_extra")
        if value.dtype is None:
            value.dtype = dtype
        return value

    @property
    def dy(self) -> ir.Value:
        """The gradient of output 0."""
        return self._gradients[0]

    def dy_of(self, index: int) -> ir.Value | None:
        """The gradient of output `index`, or None where the targets do not depend on it."""
        return self._gradients.get(index)

    def wants(self, index: int) -> bool:
        """Whether the gradient of input `index` is needed."""
        return self.has(index) and self.node.inputs[index] in self._wanted

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of attribute `name`, as a Python number, string, list or tensor."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value

    def dims(self, value: ir.Value) -> list[int | None]:
        """The dimensions of `value`, None for each that is not known beforehand.

        Raises:
            SurgeryError: Not even the rank is known.
        """
        if value.shape is None:
            raise SurgeryError(
                f"{self.node.op_type} {self.node.name!r}: the rank of {value.name!r} is unknown; give the model's "
                "inputs shapes so that it can be inferred"
            )
        return [d if isinstance(d, int) else None for d in value.shape]

    def rank(self, value: ir.Value) -> int:
        """The number of dimensions of `value`."""
        return len(self.dims(value))

    def axis(self, value: ir.Value, default: int = -1, name: str = "axis") -> int:
        """Attribute `name`, counted from the front of `value`'s dimensions."""
        axis = int(self.attr(name, default))
        return axis + self.rank(value) if axis < 0 else axis

    def shape_of(self, value: ir.Value) -> ir.Value:
        """The shape of `value` as an int64 tensor: a constant where it is known."""
        if value.shape is not None and value.shape.is_static():
            return self.op.constant(list(value.shape.numpy()))
        return self.op.Shape(value)

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], *, keepdims: bool = True) -> ir.Value:
        """A ReduceMean, ReduceMax and so on over `axes`, which are an attribute before operator set 18."""
        emit = getattr(self.op, op_type)
        axes = [int(a) for a in axes]
        if self.opset >= 18 or op_type == "ReduceSum":
            return emit(value, self.op.constant(axes), keepdims=int(keepdims))
        return emit(value, axes=axes, keepdims=int(keepdims))

    def constant_of(self, index: int) -> Any:
        """The value of input `index` as a numpy array if it is a constant, else None."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is None or value in self._wanted:  # what is trained is none
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def unbroadcast(self, gradient: ir.Value, like: ir.Value, shape: ir.Shape | None = None) -> ir.Value:
        """Sums `gradient` over the axes along which `like` was broadcast.

        Args:
            gradient: What to sum.
            like: Whose shape the result has.
            shape: The shape of `gradient`; by default that of output 0.
        """
        target, source = like.shape, self.y().shape if shape is None else shape
        if target is None or source is None:
            self.dims(like if target is None else self.y())  # says which rank is unknown
        assert target is not None
        assert source is not None
        lead = len(source) - len(target)
        axes = list(range(lead))
        for axis, dim in enumerate(target, start=lead):
            known = isinstance(dim, int) or (dim.value is not None and dim == source[axis])
            if not known:
                return self._unbroadcast_at_run_time(gradient, like, len(source))
            if dim == 1 and source[axis] != 1:
                axes.append(axis)
        if not axes:
            return gradient
        if len(axes) == lead:
            return self.op.ReduceSum(gradient, self.op.constant(axes), keepdims=0)
        summed = self.op.ReduceSum(gradient, self.op.constant(axes), keepdims=1)
        return self.op.Reshape(summed, self.shape_of(like)) if lead else summed

    def _unbroadcast_at_run_time(self, gradient: ir.Value, like: ir.Value, rank: int) -> ir.Value:
        op = self.op
        padded = op.Concat(op.constant([1] * (rank - self.rank(like))), op.Shape(like), axis=0)
        axes = op.Squeeze(op.NonZero(op.Not(op.Equal(padded, op.Shape(gradient)))), op.constant([0]))
        summed = op.ReduceSum(gradient, axes, keepdims=1, noop_with_empty_axes=1)
        return op.Reshape(summed, op.Shape(like))


def differentiable(node: ir.Node, index: int) -> bool:
    """Whether a gradient can flow from an output of `node` to its input `index`."""
    if node.op_type in _stops and node.domain == "":
        stops = _stops[node.op_type]
        if stops is None or index in stops:
            return False
    return True


def backward(
    graph: ir.Graph,
    targets: Mapping[ir.Value, ir.Value],
    wrt: Sequence[ir.Value],
    *,
    fused: bool = False,
    recompute: bool = False,
    emitter: Emitter | None = None,
) -> dict[ir.Value, ir.Value]:
    """Emits into `graph` the gradient of the targets with respect to some of its values.

    Args:
        graph: A graph in topological order, its shapes inferred, without control flow and model-local functions.
        targets: What to differentiate, each with its own gradient (ones for a scalar loss).
        wrt: What to differentiate by: inputs, initializers or values in between.
        fused: Use the kernels of the onnxruntime-training build.
        recompute: Compute activations again instead of keeping them; see `surgery.autodiff.recompute`.
        emitter: What to write with.

    Returns:
        The gradient of each value of `wrt` that the targets depend on; of the value's shape and type.

    Raises:
        SurgeryError: An operator on the way has no rule; the message names it.
    """
    _load_rules()
    raise_opset(graph)
    op = emitter or Emitter(graph, "grad/")
    wanted: set[ir.Value] = set(wrt)
    path: list[ir.Node] = []
    for node in graph:
        if any(v in wanted and differentiable(node, i) for i, v in enumerate(node.inputs) if v is not None):
            outputs = [o for o in node.outputs if o.dtype is None or o.dtype in FLOATS]
            wanted.update(outputs)
            if outputs:
                path.append(node)

    pending: dict[ir.Value, list[ir.Value]] = {value: [seed] for value, seed in targets.items()}

    def collect(value: ir.Value) -> ir.Value | None:
        parts = pending.pop(value, None)
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else op.Add(*parts) if len(parts) == 2 else op.Sum(*parts)
        total.shape, total.dtype = value.shape, value.dtype
        return total

    again = Recomputation(path if recompute else [], op)
    for node in reversed(path):
        kept = {o: pending[o][:] for o in node.outputs if o in pending and o in wrt}
        gradients = {i: g for i, o in enumerate(node.outputs) if (g := collect(o)) is not None}
        for output in kept:
            pending[output] = [gradients[output.index() or 0]]
        if not gradients:
            continue
        context = Context(again.twin(node, next(iter(gradients.values())), wanted), gradients, wanted, op)
        for value, gradient in zip(node.inputs, _apply(context, fused), strict=False):
            if value is not None and gradient is not None and value in wanted:
                pending.setdefault(value, []).append(gradient)
    return {value: g for value in wrt if (g := collect(value)) is not None}


def _apply(context: Context, fused: bool) -> Gradients:
    node = context.node
    if node.domain in ("", "ai.onnx"):
        if fused and node.op_type in _fused_rules:
            gradients = _fused_rules[node.op_type](context)
            if gradients is not NotImplemented:
                return gradients
        if node.op_type in _rules:
            return _rules[node.op_type](context)
    known = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
    raise SurgeryError(
        f"no gradient is known for {known} {node.name!r}{nearest(node.op_type, _rules)}; freeze every layer up to it "
        f"(freeze: {{until: {node.name}}}) or cut it off"
    )
