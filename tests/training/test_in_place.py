"""What a step writes over: the state of optimizers and large weights, but only where nothing reads them afterwards."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from surgery import runtime
from surgery.emit import Emitter
from surgery.training import in_place
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.settings import TrainSettings
from surgery.training.step import Step, training_step
from tests.graphs import parse
from tests.nets import batches, graph_with_input, lenet, model_of, parameter, torch_lenet, torch_losses

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
KERNELS = [False, *([True] if runtime.has_training_kernels() else [])]


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets small weights, too, wait for their readers."""
    monkeypatch.setattr(in_place, "_WORTH", 1)


def overwritten(training: Training) -> set[str]:
    """What has the same memory before and after a step."""
    before = dict(training.values)
    training._graph._turn ^= 1
    after = dict(training.values)
    training._graph._turn ^= 1
    return {name for name in before if before[name] is after[name]}


def head() -> ir.Model:
    op, x = graph_with_input("N", 3)
    x = op.Gemm(x, parameter(op, "fc.weight", torch.ones(3, 4)), _name="fc")
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1)})


@pytest.mark.parametrize(
    ("optimizer", "slots"), [("sgd", {"momentum"}), ("adam", {"m", "v"}), ("adadelta", {"v", "delta"})]
)
def test_states_and_a_heads_weight_are_written_over(optimizer: str, slots: set[str]) -> None:
    step = training_step(head(), TrainSettings(optimizer=optimizer).links())  # type: ignore[arg-type]
    training = Training(step, CPU)
    assert overwritten(training) >= {"fc.weight", *(f"fc.weight/{slot}" for slot in slots)}
    training.run(np.ones((2, 3), np.float32), np.array([0, 1]), 0.1)
    assert not (training.weights()["fc.weight"] == 1).all()
    assert (step.initial["fc.weight"] == 1).all()  # the model's own


def test_a_weight_that_is_read_later_is_not_written_over() -> None:
    training = Training(training_step(lenet(torch_lenet()), chain(Sgd())), CPU)
    assert "conv2.weight" not in overwritten(training)  # the gradient of what it reads needs it


@pytest.mark.parametrize("fused", KERNELS)
def test_all_weights_are_written_over_and_training_follows_pytorch(every_size: None, fused: bool) -> None:
    net = torch_lenet()
    training = Training(training_step(lenet(net), chain(Sgd()), fused=fused), CPU)
    weights = dict(net.named_parameters())
    assert overwritten(training) >= weights.keys()
    data = batches(30, 16, (1, 28, 28), 10)
    want = torch_losses(net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9), data)
    np.testing.assert_allclose([training.run(*batch, 0.01)[0] for batch in data], want, rtol=1e-4)
    for name, value in training.weights().items():
        np.testing.assert_allclose(value, weights[name].detach(), rtol=1e-3, atol=1e-4)


class Tied(nn.Module):
    """Reads one weight twice, once transposed, as language models read their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 6) / 2)
        self.last = nn.Parameter(torch.randn(6, 4) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.tanh(x @ self.weight) @ self.weight.T) @ self.last


def tied(net: Tied) -> ir.Model:
    op, x = graph_with_input("N", 6)
    weight = parameter(op, "weight", net.weight)
    x = op.Tanh(op.MatMul(op.Tanh(op.MatMul(x, weight)), op.Transpose(weight, perm=[1, 0])))
    x = op.MatMul(x, parameter(op, "last", net.last))
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1)})


def test_a_weight_that_is_read_twice_and_transposed_is_written_over_after_both(every_size: None) -> None:
    net = Tied()
    training = Training(training_step(tied(net), chain(Sgd())), CPU)
    assert overwritten(training) >= {"weight", "last"}
    data = batches(20, 8, (6,), 4)
    want = torch_losses(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), data)
    np.testing.assert_allclose([training.run(*batch, 0.1)[0] for batch in data], want, rtol=1e-5)


def reshaped() -> ir.Model:
    """Reads a weight twice, once in a shape that goes by the batch's: the runtimes do not copy it for that."""
    body = (
        "q0 = MatMul(x, a) q = Tanh(q0) s = Shape(x) n = Slice(s, one, three) r = Reshape(w, n) t0 = MatMul(q, r) "
        "t = Tanh(t0) h0 = MatMul(t, w) h = Tanh(h0) f = Flatten(h) y = MatMul(f, last)"
    )
    signature = "(float[N,P,Q] x) => (float[N,2] y) <int64[1] one = {1}, int64[1] three = {3}>"
    return parse(signature, body, {"a": [6, 6], "w": [6, 6], "last": [36, 2]})


@pytest.mark.parametrize("worth", [1, 2**16])
def test_a_view_of_a_weight_is_read_before_it_is_written_over(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_WORTH", worth)
    found = []
    for apart in (False, True):
        if apart:
            monkeypatch.setattr(Step, "overwritable", set())
        training = Training(training_step(reshaped(), chain(Sgd(momentum=0)), loss="mean_squared_error"), CPU)
        random = np.random.default_rng(0)
        for _ in range(5):
            x, y = random.normal(size=(8, 6, 6)), random.normal(size=(8, 2))
            training.run(x.astype(np.float32), y.astype(np.float32), 0.02)
        found.append(training.weights())
    for name, weight in found[0].items():
        assert np.array_equal(weight, found[1][name]), name


def graph_of_update(late: bool) -> tuple[ir.Graph, ir.Value]:
    """w − Σ x·w, written by hand; where it is `late`, 2·w is an output that nothing makes the update wait for."""
    x, w = (ir.Value(name=n, shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT)) for n in ("x", "w"))
    op = Emitter(ir.Graph([x, w], [], nodes=[], opset_imports={"": 17}))
    other = op.Mul(x, w)
    new = op.Sub(w, other)
    new.name = "new"
    op.graph.outputs.append(new)
    if late:
        op.graph.outputs.append(op.Mul(op.Identity(w), x))
    return op.graph, x


def test_only_what_the_new_value_is_computed_from_comes_before_it() -> None:
    for late in (False, True):
        graph, x = graph_of_update(late)
        assert in_place.overwritable(graph, [x], {"w": "new"}) == (set() if late else {"w"})


def test_a_step_keeps_no_copy_of_the_first_weights() -> None:
    training = Training(training_step(head(), chain(Sgd())), CPU)
    assert not training.step_graph.initial
    assert training.step_graph.size == 12
