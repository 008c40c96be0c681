"""Losses: each writes the mean over the batch of what predictions cost, from the network's logits.

A Softmax or Sigmoid at the end of a network is left out while training: the loss of the logits is the same number,
computed without overflow.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, TypeAdapter, ValidationError

from surgery.emit import Emitter
from surgery.errors import SurgeryError, nearest
from surgery.validation import explain

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Objective",
    "activation_loss",
    "loss_of",
    "strip_activation",
]

Objective = Any  # a loss, its name or settings, or a mapping from outputs to these; a mapping with `name` is settings


class _Loss(BaseModel):
    """A loss and the metric that is reported beside it.

    Attributes:
        weight: Its factor where the losses of several outputs are added.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: ClassVar[str]
    name: str
    weight: PositiveFloat = 1.0

    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape]:
        """The type and shape of the targets: by default the prediction's."""
        assert prediction.shape is not None
        return ir.DataType.FLOAT, prediction.shape

    @abstractmethod
    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Emits ``(loss, metric)``, two scalars."""


class CrossEntropy(_Loss):
    """−Σ_c t_c log softmax(x)_c over axis 1, as PyTorch's ``cross_entropy``.

    Attributes:
        label_smoothing: ε: the target becomes (1 − ε)·t + ε/classes (Szegedy et al. 2016, section 7).
        class_weights: A factor for each class; the mean is weighted, too. ``balanced``: of each class, the number of
            training examples by that of classes and of its own examples, so that all classes weigh the same (King and
            Zeng 2001; scikit-learn's formula).
        ignore_index: The class number of examples that do not count.
        soft_labels: Targets are probabilities `[N, classes, …]` instead of class numbers `[N, …]`; training goes by
            the data.
    """

    metric = "accuracy"
    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: tuple[NonNegativeFloat, ...] | Literal["balanced"] | None = None
    ignore_index: int | None = None
    soft_labels: bool = False

    def balanced(self, targets: np.ndarray, classes: int) -> CrossEntropy:
        """Returns the loss with numbers for ``balanced`` class weights, as `targets` have them; 1 for absent classes.

        Raises:
            SurgeryError: The targets are not class numbers below `classes`.
        """
        if self.class_weights != "balanced":
            return self
        counted = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        numbers = np.issubdtype(targets.dtype, np.integer) and counted.size > 0
        if not numbers or counted.min() < 0 or counted.max() >= classes:
            raise SurgeryError(f"class_weights: balanced needs class numbers from 0 to {classes - 1} as targets")
        counts = np.bincount(counted.ravel(), minlength=classes)
        even = counted.size / np.count_nonzero(counts)
        weights = tuple(float(even / count) if count else 1.0 for count in counts)
        return self.model_copy(update={"class_weights": weights})

    def target_of(self, prediction: ir.Value) -> tuple[ir.DataType, ir.Shape]:
        assert prediction.shape is not None
        classes = prediction.shape[1] if len(prediction.shape) > 1 else None
        if not isinstance(classes, int):
            raise SurgeryError(
                f"cross_entropy needs an output of shape [N, classes, …]; {prediction.name!r} has {prediction.shape}"
            )
        if self.class_weights == "balanced":
            raise SurgeryError("class_weights: balanced goes by the training examples; give the numbers here")
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise SurgeryError(f"there are {len(self.class_weights)} class weights, but the output has {classes} units")
        if self.soft_labels:
            if self.ignore_index is not None:
                raise SurgeryError("ignore_index is a class number; these targets are probabilities")
            return ir.DataType.FLOAT, prediction.shape
        return ir.DataType.INT64, ir.Shape([prediction.shape[0], *prediction.shape[2:]])

    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        assert prediction.shape is not None
        classes, axis = int(prediction.shape[1]), op.constant([1])  # type: ignore[arg-type]
        hit = _same(op, _best(op, prediction), _best(op, target) if self.soft_labels else target)
        counts = None  # 1 where an example counts
        if self.ignore_index is not None:
            there = op.Not(op.Equal(target, op.constant(np.array(self.ignore_index))))
            counts = op.Cast(there, to=int(ir.DataType.FLOAT))
            target = op.Where(there, target, op.constant(np.array(0)))
        wanted = target
        if not self.soft_labels:
            values = op.constant(np.array([0, 1], np.float32))
            wanted = op.OneHot(target, op.constant(np.array(classes)), values, axis=1)
        share = wanted
        if self.label_smoothing:
            share = op.Add(op.Mul(wanted, 1 - self.label_smoothing), self.label_smoothing / classes)
        if self.class_weights is not None:
            shape = [1, classes] + [1] * (len(prediction.shape) - 2)
            factors = op.constant(np.array(self.class_weights, np.float32).reshape(shape))
            share, wanted = op.Mul(share, factors), op.Mul(wanted, factors)
        cost = op.Neg(op.ReduceSum(op.Mul(op.LogSoftmax(prediction, axis=1), share), axis, keepdims=0))
        if counts is not None:
            cost, hit = op.Mul(cost, counts), op.Mul(hit, counts)
        if self.soft_labels or (counts is None and self.class_weights is None):
            return _mean(op, cost), _mean(op, hit)
        number = op.ReduceSum(wanted, axis, keepdims=0)  # the weight of each example
        number = number if counts is None else op.Mul(number, counts)
        return _ratio(op, cost, number), _mean(op, hit) if counts is None else _ratio(op, hit, counts)


class BinaryCrossEntropy(_Loss):
    """−t·log σ(x) − (1−t)·log(1−σ(x)), as log(1 + eˣ) − x·t, which does not overflow."""

    metric = "accuracy"
    name: Literal["binary_cross_entropy"] = "binary_cross_entropy"

    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        cost = op.Sub(op.Softplus(prediction), op.Mul(prediction, target))
        return _mean(op, cost), _mean(op, _same(op, op.Greater(prediction, 0.0), op.Greater(target, 0.5)))


class MeanSquaredError(_Loss):
    """(x − t)²."""

    metric = "mean_absolute_error"
    name: Literal["mean_squared_error"] = "mean_squared_error"

    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        error = op.Sub(prediction, target)
        return _mean(op, op.Mul(error, error)), _mean(op, op.Abs(error))


class MeanAbsoluteError(_Loss):
    """|x − t|."""

    metric = "mean_absolute_error"
    name: Literal["mean_absolute_error"] = "mean_absolute_error"

    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        error = _mean(op, op.Abs(op.Sub(prediction, target)))
        return error, error


class Huber(_Loss):
    """½·e² where |e| ≤ delta, delta·(|e| − ½·delta) beyond (Huber 1964).

    Attributes:
        delta: Where the loss turns from a square to a line.
    """

    metric = "mean_absolute_error"
    name: Literal["huber"] = "huber"
    delta: PositiveFloat = 1.0

    def write(self, op: Emitter, prediction: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        size = op.Abs(op.Sub(prediction, target))
        square = op.Min(size, op.constant(self.delta, ir.DataType.FLOAT))
        return _mean(op, op.Mul(square, op.Sub(size, op.Mul(square, 0.5)))), _mean(op, size)


Loss = Annotated[
    CrossEntropy | BinaryCrossEntropy | MeanSquaredError | MeanAbsoluteError | Huber, Field(discriminator="name")
]
LOSSES: dict[str, type[_Loss]] = {
    kind.model_fields["name"].default: kind
    for kind in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError, MeanAbsoluteError, Huber)
}
_adapter: TypeAdapter[Any] = TypeAdapter(Loss)


def loss_of(what: Any) -> _Loss:
    """Returns the loss that `what` names: a loss, its name, or its name with settings as a mapping.

    Raises:
        SurgeryError: There is no such loss, or it does not have such a setting.
    """
    if isinstance(what, _Loss):
        return what
    settings = {"name": what} if isinstance(what, str) else what
    name = settings.get("name") if isinstance(settings, dict) else None
    if name not in LOSSES:
        raise SurgeryError(
            f"no loss is named {name!r}{nearest(str(name), LOSSES)}; there are auto, {', '.join(LOSSES)}"
        )
    try:
        return _adapter.validate_python(settings)
    except ValidationError as error:
        place, message = explain(error, settings, _adapter.json_schema())
        raise SurgeryError(": ".join([f"loss {name}", *map(str, place), message])) from error


def _mean(op: Emitter, value: ir.Value) -> ir.Value:
    return op.ReduceMean(value, keepdims=0)


def _ratio(op: Emitter, value: ir.Value, number: ir.Value) -> ir.Value:
    """The sum of `value` by that of `number`; 0 where nothing counts."""
    total = op.Max(op.ReduceSum(number, keepdims=0), op.constant(1e-12, ir.DataType.FLOAT))
    return op.Div(op.ReduceSum(value, keepdims=0), total)


def _best(op: Emitter, value: ir.Value) -> ir.Value:
    return op.ArgMax(value, axis=1, keepdims=0)


def _same(op: Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    return op.Cast(op.Equal(a, b), to=int(ir.DataType.FLOAT))


_PASSING = {"Identity", "Flatten", "Reshape", "Squeeze"}  # what may stand behind the last activation
_OF_ACTIVATION = {"Softmax": "cross_entropy", "LogSoftmax": "cross_entropy", "Sigmoid": "binary_cross_entropy"}


def _on_classes(node: ir.Node) -> bool:
    """Whether a Softmax or LogSoftmax runs over axis 1."""
    shape, axis = node.outputs[0].shape, node.attributes.get_int("axis", -1)
    return axis == 1 or (shape is not None and axis + len(shape) == 1)


def _last_activation(output: ir.Value) -> tuple[ir.Node | None, str | None]:
    """The Softmax, LogSoftmax or Sigmoid that `output` comes from, and the loss that fits it."""
    node = output.producer()
    while node is not None and node.op_type in _PASSING:
        source = node.inputs[0]
        node = source.producer() if source is not None and len(source.uses()) == 1 else None
    fitting = _OF_ACTIVATION.get(node.op_type) if node is not None else None
    if node is not None and fitting == "cross_entropy" and not _on_classes(node):
        fitting = None
    return node, fitting


def activation_loss(output: ir.Value) -> str | None:
    """Returns the name of the loss that fits the last activation in front of `output`, or None where none does."""
    return _last_activation(output)[1]


def strip_activation(graph: ir.Graph, output: ir.Value, loss: str = "auto") -> str | None:
    """Takes the Softmax, LogSoftmax or Sigmoid that `loss` is written for away from `output`, which then gives logits.

    Args:
        graph: The graph, edited in place.
        output: One of its outputs.
        loss: A loss's name; ``auto`` takes any away.

    Returns:
        The name of the loss that fits what was taken away, or None where nothing was.
    """
    node, fitting = _last_activation(output)
    if node is None or fitting is None or loss not in ("auto", fitting):
        return None
    logits = node.inputs[0]
    assert logits is not None
    if node.outputs[0].is_graph_output():  # the output keeps its name
        identity = ir.node("Identity", [logits], outputs=[ir.Value(name=f"{output.name}/logits", shape=logits.shape)])
        identity.outputs[0].type = logits.type
        graph.insert_after(node, identity)
        graph.outputs[list(graph.outputs).index(node.outputs[0])] = identity.outputs[0]
        node.outputs[0].replace_all_uses_with(identity.outputs[0])
    else:
        node.outputs[0].replace_all_uses_with(logits)
    graph.remove(node, safe=True)
    return fitting
