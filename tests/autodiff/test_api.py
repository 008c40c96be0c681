"""Gradients as a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from surgery import runtime
from surgery.autodiff.api import gradient
from surgery.errors import SurgeryError

pytestmark = pytest.mark.training

PERCEPTRON = """
<ir_version: 8, opset_import: ["" : 17]>
perceptron (float[n, 3] x) => (float[n, 2] y, int64[n] best, float loss)
<
  float[3, 4] w = {0.5, -0.25, 1, 0.75, 0.1, 0.2, -0.3, 0.4, 1.5, -1, 0.5, 0.25},
  float[4, 2] v = {1, -1, 0.5, 2, -0.5, 0.25, 0.75, 1}
>
{
  h = MatMul(x, w)
  a = Tanh(h)
  y = MatMul(a, v)
  best = ArgMax<axis: int = 1, keepdims: int = 0>(y)
  squares = Mul(y, y)
  loss = ReduceMean<keepdims: int = 0>(squares)
}
"""
X = np.array([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], np.float32)


def _model(text: str = PERCEPTRON) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def _run(model: ir.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = [str(o.name) for o in model.graph.outputs]
    session = runtime.session(model, ["CPUExecutionProvider"], threads=1)
    return dict(zip(names, session.run(None, {k.replace("__", "/"): v for k, v in feeds.items()}), strict=True))


def _twin() -> dict[str, torch.Tensor]:
    weights = {k: torch.tensor(v.const_value.numpy()) for k, v in _model().graph.initializers.items()}
    t: dict[str, Any] = {"x": torch.tensor(X), **weights}
    for value in t.values():
        value.requires_grad_()
    t["a"] = torch.tanh(t["x"] @ t["w"])
    t["y"] = t["a"] @ t["v"]
    t["loss"] = (t["y"] ** 2).mean()
    return t


def test_of_a_loss_by_input_and_weights() -> None:
    model = _model()
    found = _run(gradient(model, of="loss", wrt=["x", "w", "v"]), x=X)
    t = _twin()
    for name, expected in zip("xwv", torch.autograd.grad(t["loss"], [t["x"], t["w"], t["v"]]), strict=True):
        np.testing.assert_allclose(found[f"gradient/{name}"], expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["y"], t["y"].detach().numpy(), rtol=1e-5)
    assert [o.name for o in model.graph.outputs] == ["y", "best", "loss"]  # left as it was


def test_of_a_class_score() -> None:
    graph = gradient(_model(), of="y", wrt=["x"])
    assert [i.name for i in graph.graph.inputs] == ["x", "y/weight"]
    one_hot = np.array([[0, 1], [0, 1]], np.float32)
    found = _run(graph, x=X, y__weight=one_hot)["gradient/x"]
    t = _twin()
    np.testing.assert_allclose(found, torch.autograd.grad(t["y"][:, 1].sum(), t["x"])[0].numpy(), rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, [2.0, -1.0]])
def test_of_a_weighted_sum(weight: Any) -> None:
    found = _run(gradient(_model(), of="y", wrt=["x"], weight=weight), x=X)["gradient/x"]
    t = _twin()
    expected = torch.autograd.grad((t["y"] * torch.tensor(weight)).sum(), t["x"])[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_by_a_value_in_between() -> None:
    found = _run(gradient(_model(), of="loss", wrt=["a", "x"]), x=X)
    t = _twin()
    for name, expected in zip("ax", torch.autograd.grad(t["loss"], [t["a"], t["x"]]), strict=True):
        np.testing.assert_allclose(found[f"gradient/{name}"], expected.numpy(), rtol=1e-5)


def test_gradient_of_a_gradient() -> None:
    first = gradient(_model(), of="y", wrt=["x"], weight=1.0)
    found = _run(gradient(first, of="gradient/x", wrt=["w"], weight=1.0), x=X)["gradient/w"]
    t = _twin()
    inner = torch.autograd.grad(t["y"].sum(), t["x"], create_graph=True)[0]
    np.testing.assert_allclose(found, torch.autograd.grad(inner.sum(), t["w"])[0].numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("of", "wrt", "weight", "message"),
    [
        ("lost", ["x"], None, "no value named 'lost'; did you mean 'loss'"),
        ("loss", ["xx"], None, "no value named 'xx'"),
        ("best", ["x"], None, "'best' cannot be differentiated: it is of type INT64"),
        ("h", ["v"], 1.0, "'h' does not depend on 'v'"),
        ("y", ["x"], [[[1.0]]], r"a weight of shape \[1, 1, 1\] does not fit 'y'"),
    ],
)
def test_errors(of: str, wrt: list[str], weight: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        gradient(_model(), of=of, wrt=wrt, weight=weight)


STEPS = """
<ir_version: 8, opset_import: ["" : 17]>
steps (float[n, 3] x) => (float[n, 3] y)
<float[3] w = {1, 2, 3}, float[3] v = {1, 2, 3}>
{
  h = Mul(x, w)
  floor = Floor(h)
  kept = Add(floor, h)
  y = Mul(kept, v)
}
"""


def test_steps_stop_only_their_own_way() -> None:
    found = _run(gradient(_model(STEPS), of="y", wrt=["w"], weight=1.0), x=X)["gradient/w"]
    np.testing.assert_allclose(found, X.sum(0) * [1, 2, 3], rtol=1e-6)


def test_a_value_that_only_steps_follow_is_an_error() -> None:
    text = STEPS.replace("Add(floor, h)", "Add(floor, x)")
    with pytest.raises(
        SurgeryError, match=r"'w' would get no gradient: Floor '.*', between it and 'y', has no derivative"
    ):
        gradient(_model(text), of="y", wrt=["w"], weight=1.0)


def test_an_operator_without_a_rule_is_named() -> None:
    text = STEPS.replace("floor = Floor(h)", "floor = Det(h)").replace("float[n, 3] x", "float[3, 3] x")
    with pytest.raises(SurgeryError, match=r"no gradient is known for Det"):
        gradient(_model(text), of="y", wrt=["w"], weight=1.0)
