"""Losses and their gradients equal PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import sklearn.utils.class_weight
import torch
from torch.nn import functional as F

import surgery
from surgery import runtime
from surgery.autodiff import backward
from surgery.data import Dataset
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes
from surgery.training.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    loss_of,
)
from surgery.training.settings import TrainSettings
from tests.nets import graph_with_input, model_of, parameter

pytestmark = pytest.mark.training
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(6, 5)) * 3).astype(np.float32)
MAP = (RNG.normal(size=(2, 5, 3, 4)) * 3).astype(np.float32)
CLASSES = np.array([0, 4, 2, 2, 1, 3])
CLASS_MAP = RNG.integers(0, 5, (2, 3, 4))
SOFT = RNG.dirichlet(np.ones(5), 6).astype(np.float32)
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 3.0)
W = torch.tensor(WEIGHTS)
VALUES = RNG.normal(size=(6, 5)).astype(np.float32) * 2
SIGNS = RNG.integers(0, 2, (6, 5)).astype(np.float32)


def computed(loss: Any, logits: np.ndarray, target: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The loss, the metric and the gradient of the logits, by the runtime."""
    x = ir.val("x", ir.DataType.FLOAT, ("batch", *logits.shape[1:]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="loss")
    op = Emitter(graph)
    t = ir.val("t", *loss.target_of(x))
    graph.inputs.append(t)
    cost, metric = loss.write(op, x, t)
    for value in (cost, metric):
        value.shape, value.dtype = ir.Shape(()), ir.DataType.FLOAT
    graph.outputs.extend([cost, metric] if cost is not metric else [cost, op.Identity(metric)])
    model = ir.Model(graph, ir_version=IR_VERSION)
    infer_shapes(model)
    (gradient,) = backward(graph, {cost: op.constant(1.0, ir.DataType.FLOAT)}, [x], emitter=op).values()
    graph.outputs.append(gradient)
    gradient.type, gradient.shape = x.type, x.shape
    results = runtime.session(model, ["CPUExecutionProvider"]).run(None, {"x": logits, "t": target})
    return float(results[0]), float(results[1]), results[2]


CASES: list[Any] = [
    pytest.param(CrossEntropy(), LOGITS, CLASSES, F.cross_entropy, id="classes"),
    pytest.param(
        CrossEntropy(label_smoothing=0.1), LOGITS, CLASSES, lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
        id="smoothing",
    ),
    pytest.param(
        CrossEntropy(class_weights=WEIGHTS), LOGITS, CLASSES, lambda x, t: F.cross_entropy(x, t, W), id="weights"
    ),
    pytest.param(
        CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.2), LOGITS, CLASSES,
        lambda x, t: F.cross_entropy(x, t, W, label_smoothing=0.2), id="weights and smoothing",
    ),
    pytest.param(
        CrossEntropy(ignore_index=2), LOGITS, CLASSES, lambda x, t: F.cross_entropy(x, t, ignore_index=2), id="ignored"
    ),
    pytest.param(
        CrossEntropy(ignore_index=-100, class_weights=WEIGHTS, label_smoothing=0.1), LOGITS,
        np.array([0, -100, 2, -100, 1, 3]),
        lambda x, t: F.cross_entropy(x, t, W, ignore_index=-100, label_smoothing=0.1), id="all at once",
    ),
    pytest.param(CrossEntropy(), MAP, CLASS_MAP, F.cross_entropy, id="a class for each pixel"),
    pytest.param(
        CrossEntropy(ignore_index=0, class_weights=WEIGHTS), MAP, CLASS_MAP,
        lambda x, t: F.cross_entropy(x, t, W, ignore_index=0), id="pixels, ignored and weighted",
    ),
    pytest.param(CrossEntropy(soft_labels=True), LOGITS, SOFT, F.cross_entropy, id="probabilities"),
    pytest.param(
        CrossEntropy(soft_labels=True, label_smoothing=0.1, class_weights=WEIGHTS), LOGITS, SOFT,
        lambda x, t: F.cross_entropy(x, t, W, label_smoothing=0.1), id="probabilities, weighted and smoothed",
    ),
    pytest.param(BinaryCrossEntropy(), LOGITS * 30, SIGNS, F.binary_cross_entropy_with_logits, id="binary"),
    pytest.param(MeanSquaredError(), LOGITS, VALUES, F.mse_loss, id="squares"),
    pytest.param(MeanAbsoluteError(), LOGITS, VALUES, F.l1_loss, id="absolute"),
    pytest.param(Huber(), LOGITS, VALUES, F.huber_loss, id="huber"),
    pytest.param(Huber(delta=2.5), LOGITS, VALUES, lambda x, t: F.huber_loss(x, t, delta=2.5), id="huber 2.5"),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "logits", "target", "reference"), CASES)
def test_loss_and_gradient(
    loss: Any, logits: np.ndarray, target: np.ndarray, reference: Callable[..., torch.Tensor]
) -> None:
    x = torch.tensor(logits, requires_grad=True)
    want = reference(x, torch.tensor(target))
    want.backward()
    cost, _, gradient = computed(loss, logits, target)
    assert cost == pytest.approx(float(want.detach()), rel=1e-5)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-4, atol=1e-7)


def test_accuracy_counts_what_is_not_ignored() -> None:
    best = LOGITS.argmax(1)
    target = best.copy()
    target[:2] = (best[:2] + 1) % 5
    assert computed(CrossEntropy(), LOGITS, target)[1] == pytest.approx(4 / 6)
    target[0] = -1
    assert computed(CrossEntropy(ignore_index=-1), LOGITS, target)[1] == pytest.approx(4 / 5)
    assert computed(CrossEntropy(soft_labels=True), LOGITS, SOFT)[1] == pytest.approx((best == SOFT.argmax(1)).mean())


def test_nothing_that_counts_costs_nothing() -> None:
    cost, accuracy, gradient = computed(CrossEntropy(ignore_index=1), LOGITS, np.ones(6, np.int64))
    assert (cost, accuracy) == (0, 0)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cros_entropy", "did you mean 'cross_entropy'"),
        ({"name": "huber", "delt": 1}, "huber: delt: unknown key; did you mean .delta.*there are name, weight, delta"),
        ({"name": "huber", "delta": -1}, "delta: Input should be greater than 0"),
        (7, "no loss is named"),
    ],
)
def test_unknown_losses_and_settings(what: object, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        loss_of(what)


def test_class_weights_must_be_as_many_as_classes() -> None:
    with pytest.raises(SurgeryError, match="2 class weights, but the output has 5 units"):
        computed(CrossEntropy(class_weights=(1, 2)), LOGITS, CLASSES)


def two_headed() -> tuple[ir.Model, torch.nn.ModuleDict]:
    """A hidden layer, a softmax head `kind` and a linear head `box`."""
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({n: torch.nn.Linear(i, o) for n, i, o in (("h", 6, 8), ("kind", 8, 3), ("box", 8, 4))})
    op, x = graph_with_input("N", 6)

    def linear(name: str, value: ir.Value) -> ir.Value:
        weight, bias = (parameter(op, f"{name}.{role}", p) for role, p in net[name].named_parameters())
        return op.Gemm(value, weight, bias, transB=1, _name=f"{name}/gemm")

    hidden = op.Relu(linear("h", x), _name="relu")
    kind = op.Softmax(linear("kind", hidden), axis=1, _name="softmax")
    return model_of(op.graph, {"kind": kind, "box": linear("box", hidden)}), net


def test_several_outputs_are_trained_with_their_weights_as_in_pytorch() -> None:
    model, net = two_headed()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    targets = {"kind": rng.integers(0, 3, 40), "box": rng.normal(size=(40, 4)).astype(np.float32)}
    losses = {"kind": "cross_entropy", "box": {"name": "huber", "weight": 0.25}}
    result = surgery.train(
        model, Dataset(x, targets), losses=losses, epochs=1, batch_size=40, optimizer={"name": "sgd", "momentum": 0},
        learning_rate=0.1, validation=Dataset(x, targets),
    )  # fmt: skip
    hidden = torch.relu(net["h"](torch.tensor(x)))
    kind = F.cross_entropy(net["kind"](hidden), torch.tensor(targets["kind"]))
    box = F.huber_loss(net["box"](hidden), torch.tensor(targets["box"]))
    (kind + 0.25 * box).backward()
    record = result.history[0]
    assert record["kind_loss"] == pytest.approx(float(kind), rel=1e-5)
    assert record["box_loss"] == pytest.approx(float(box), rel=1e-5)
    assert record["loss"] == pytest.approx(float(kind + 0.25 * box), rel=1e-5)
    assert {"kind_accuracy", "box_mean_absolute_error", "val_kind_accuracy", "val_loss"} <= record.keys()
    for name, p in net.named_parameters():
        array = result.model.graph.initializers[name].const_value
        assert array is not None
        np.testing.assert_allclose(array.numpy(), (p - 0.1 * p.grad).detach(), rtol=1e-4, atol=1e-6)


def test_targets_and_losses_must_name_the_same_outputs() -> None:
    model, _ = two_headed()
    data = Dataset(np.zeros((4, 6), np.float32), np.zeros(4, np.int64))
    with pytest.raises(SurgeryError, match="targets for a single array"):
        surgery.train(model, data, losses={"kind": "cross_entropy", "box": "huber"})
    with pytest.raises(SurgeryError, match="2 outputs"):
        surgery.train(model, data)
    assert surgery.train(model, data, output="kind", epochs=1).history[0]["loss"] > 0


def test_losses_exclude_loss_and_output() -> None:
    with pytest.raises(ValueError, match="leave `loss` and `output` out"):
        TrainSettings(losses={"a": "huber"}, output="a")  # type: ignore[dict-item]


def test_logits_with_class_numbers_are_trained_by_cross_entropy() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 3)
    op, x = graph_with_input("N", 6)
    weight, bias = parameter(op, "w", net.weight), parameter(op, "b", net.bias)
    model = model_of(op.graph, {"y": op.Gemm(x, weight, bias, transB=1, _name="fc")})
    examples, targets = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32), np.arange(9) % 3
    want = F.cross_entropy(net(torch.tensor(examples)), torch.tensor(targets))
    assert surgery.evaluate(model, (examples, targets)).loss == pytest.approx(float(want.detach()), rel=1e-5)


def test_a_network_with_two_inputs_is_trained_by_their_names() -> None:
    torch.manual_seed(0)
    table, net = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2)
    op, ids = graph_with_input("N", 5)
    ids.dtype = ir.DataType.INT64
    mask = ir.val("mask", ir.DataType.FLOAT, ("N", 5, 1))
    op.graph.inputs.append(mask)
    rows = op.Mul(op.Gather(parameter(op, "table", table.weight), ids, _name="embed"), mask)
    pooled = op.ReduceSum(rows, op.constant([1]), keepdims=0)
    weight, bias = parameter(op, "w", net.weight), parameter(op, "b", net.bias)
    model = model_of(op.graph, {"y": op.Gemm(pooled, weight, bias, transB=1, _name="fc")})
    rng = np.random.default_rng(0)
    examples = {"data": rng.integers(0, 10, (16, 5)), "mask": rng.integers(0, 2, (16, 5, 1)).astype(np.float32)}
    targets = rng.integers(0, 2, 16)
    result = surgery.train(
        model, (examples, targets), epochs=1, batch_size=16, learning_rate=0.5, optimizer={"name": "sgd", "momentum": 0}
    )
    logits = net((table(torch.tensor(examples["data"])) * torch.tensor(examples["mask"])).sum(1))
    loss = F.cross_entropy(logits, torch.tensor(targets))
    loss.backward()
    assert result.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    trained = result.model.graph.initializers["table"].const_value
    assert trained is not None
    assert table.weight.grad is not None
    np.testing.assert_allclose(trained.numpy(), (table.weight - 0.5 * table.weight.grad).detach(), rtol=1e-4, atol=1e-6)
    with pytest.raises(SurgeryError, match="inputs are data, mask"):
        surgery.train(model, ({"data": examples["data"]}, targets))


def test_balanced_class_weights_are_scikit_learns() -> None:
    targets = np.random.default_rng(0).choice(4, 200, p=[0.6, 0.25, 0.1, 0.05])
    want = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(4), y=targets)
    loss = loss_of({"name": "cross_entropy", "class_weights": "balanced"})
    np.testing.assert_allclose(loss.balanced(targets, 4).class_weights, want)
    pixels = np.append(targets, [255] * 7).reshape(9, 23)
    ignoring = loss_of({"name": "cross_entropy", "class_weights": "balanced", "ignore_index": 255})
    np.testing.assert_allclose(ignoring.balanced(pixels, 4).class_weights, want)
    assert loss.balanced(targets, 5).class_weights[4] == 1  # of which there are none
    with pytest.raises(SurgeryError, match="balanced needs class numbers from 0 to 2"):
        loss.balanced(targets, 3)
    with pytest.raises(SurgeryError, match="goes by the training examples"):
        loss.target_of(ir.val("y", ir.DataType.FLOAT, ("N", 4)))
