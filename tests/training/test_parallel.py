"""A step whose batch is divided among threads is the undivided one, and PyTorch's.

The networks are far too small to be worth a thread: the threshold is taken away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from surgery import runtime
from surgery.marks import set_marks
from surgery.passes import Freeze
from surgery.training.optimizers import MovingAverage, Sgd, chain
from surgery.training.parallel import Shards
from surgery.training.runner import Training
from surgery.training.settings import TrainSettings
from surgery.training.step import training_step
from tests.nets import Residual, batches, graph_with_input, model_of, parameter, residual

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
FUSED = runtime.has_training_kernels()
torch.set_num_threads(1)
Data = list[tuple[Any, Any]]
DATA: Data = batches(10, 8, (2, 6, 6), 4)
rng = np.random.default_rng(1)
SOFT: Data = [(x, rng.dirichlet(np.ones(4), len(y)).astype(np.float32)) for x, y in DATA]
REAL: Data = [(x, rng.normal(size=(len(y), 4)).astype(np.float32)) for x, y in DATA]
BINARY: Data = [(x, (y > 0).astype(np.float32)) for x, y in REAL]


@pytest.fixture(autouse=True)
def _tiny_networks_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.training.shards._WORTH", 1)


def network() -> nn.Sequential:
    """Smooth, so that rounding cannot switch a unit."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Tanh()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def twin(net: nn.Sequential, activation: str = "Softmax") -> ir.Model:
    op, x = graph_with_input("N", 2, 6, 6)
    kinds = {nn.Tanh: "Tanh", nn.AdaptiveAvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}
    for name, module in net.named_children():
        weights = [parameter(op, f"{name}.{role}", p) for role, p in module.named_parameters()]
        if isinstance(module, nn.Conv2d):
            x = op.Conv(x, *weights, pads=[int(module.padding[0])] * 4, _name=name)
        elif isinstance(module, nn.Linear):
            x = op.Gemm(x, *weights, transB=1, _name=name)
        else:
            x = getattr(op, kinds[type(module)])(x, _name=name)
    return model_of(op.graph, {"prob": getattr(op, activation)(x)})


def train(model: ir.Model, data: Data, shards: int, rate: float = 0.05, **how: Any) -> tuple[Training, np.ndarray]:
    """A training on `data` divided among `shards`, and what it measured, batch by batch."""
    how = {"links": chain(Sgd()), "batch_size": 8, "fused": FUSED, **how}
    step = training_step(model, threads=shards, **how)
    assert step.shards == shards
    training = Training(step, CPU)
    return training, np.array([training.run(examples, targets, rate) for examples, targets in data])


def divided(model: ir.Model, data: Data, rate: float = 0.05, **how: Any) -> tuple[Training, np.ndarray]:
    """The training among two shards, after comparing it, and that among three, with the undivided one."""
    whole, want = train(model, data, 1, rate, **how)
    for shards in (3, 2):
        training, got = train(model, data, shards, rate, **how)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
        same(training, whole.weights(), 1e-6)
        for name, value in whole.values.items():
            np.testing.assert_allclose(training.values[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6)
    return training, got


def same(training: Training, want: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name, weight in training.weights().items():
        np.testing.assert_allclose(weight, want[name], rtol=tolerance, atol=tolerance, err_msg=name)


def torch_train(
    net: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    loss: Callable[..., torch.Tensor] = nn.functional.cross_entropy,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> list[float]:
    """PyTorch's usual loop; `before` and `after` each step something else."""
    losses = []
    for examples, targets in data:
        optimizer.zero_grad()
        cost = loss(net(torch.from_numpy(examples)), torch.from_numpy(targets))
        cost.backward()  # type: ignore[no-untyped-call]
        before()
        optimizer.step()
        after()
        losses.append(cost.item())
    return losses


def _detached(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def momentum(parameters: Any, rate: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_divided_step_is_pytorchs(name: str, clip: float | None) -> None:
    net, rate = network(), 0.05 if name == "sgd" else 0.001
    links = TrainSettings(optimizer=name, clip_norm=clip).links()  # type: ignore[arg-type]
    training, got = divided(twin(net), DATA, rate, links=links)
    optimizer = momentum(net.parameters()) if name == "sgd" else torch.optim.Adam(net.parameters(), rate)
    norms = []

    def before() -> None:
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), clip or np.inf)))

    np.testing.assert_allclose(got[:, 0], torch_train(net, DATA, optimizer, before=before), rtol=1e-5)
    assert clip is None or min(norms) > clip  # it is about the whole gradient: clipped by shards, it would be another
    same(training, _detached(net))


def test_a_moving_average_and_frozen_layers_are_pytorchs() -> None:
    net = network()
    model = twin(net)
    Freeze(layers={"first": 1})(model)
    net[0].requires_grad_(False)
    averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(net)  # which copies, the first time
    training, got = divided(model, DATA, average=MovingAverage(decay=0.9))
    optimizer = momentum(p for p in net.parameters() if p.requires_grad)
    want = torch_train(net, DATA, optimizer, after=lambda: averaged.update_parameters(net))
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)
    same(training, _detached(averaged.module))
    assert "0.weight" not in training.weights()
    np.testing.assert_allclose(training.values["6.weight"].numpy(), _detached(net)["6.weight"], atol=1e-5)


def _smooth(*values: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(*values, label_smoothing=0.2)


@pytest.mark.parametrize(
    ("loss", "data", "oracle", "activation"),
    [
        ({"name": "cross_entropy", "label_smoothing": 0.2}, DATA, _smooth, "Softmax"),
        ({"name": "cross_entropy", "soft_labels": True}, SOFT, nn.functional.cross_entropy, "Softmax"),
        ("mean_squared_error", REAL, nn.functional.mse_loss, "Identity"),
        ("mean_absolute_error", REAL, nn.functional.l1_loss, "Identity"),
        ("huber", REAL, nn.functional.huber_loss, "Identity"),
        ("auto", BINARY, nn.functional.binary_cross_entropy_with_logits, "Sigmoid"),
    ],
    ids=["smooth", "soft", "mse", "mae", "huber", "bce"],
)
def test_losses_are_pytorchs(loss: Any, data: Data, oracle: Callable[..., torch.Tensor], activation: str) -> None:
    net = network()
    training, got = divided(twin(net, activation), data, loss=loss)
    np.testing.assert_allclose(got[:, 0], torch_train(net, data, momentum(net.parameters()), oracle), rtol=1e-5)
    same(training, _detached(net))


def test_frozen_statistics_are_pytorchs() -> None:
    net = Residual()
    model = residual(net)
    for number in (1, 2):
        for role in ("running_mean", "running_var"):
            set_marks(model.graph.initializers[f"bn{number}.{role}"], trainable=False)
    net.eval()
    data: Data = batches(10, 8, (3, 8, 8), 4)
    training, got = divided(model, data)
    np.testing.assert_allclose(got[:, 0], torch_train(net, data, momentum(net.parameters())), rtol=1e-5)
    same(training, _detached(net))


class Two(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.end = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, data: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.left(data) + self.right(other))
        return self.end(hidden), hidden.mean(1, keepdim=True)


def test_several_inputs_and_outputs_with_weights_are_pytorchs() -> None:
    net = Two()
    op, x = graph_with_input("N", 5)
    other = ir.val("other", ir.DataType.FLOAT, ("N", 3))
    op.graph.inputs.append(other)

    def linear(value: ir.Value, name: str) -> ir.Value:
        weights = [parameter(op, f"{name}.{role}", p) for role, p in getattr(net, name).named_parameters()]
        return op.Gemm(value, *weights, transB=1, _name=name)  # type: ignore[no-any-return]

    hidden = op.Tanh(op.Add(linear(x, "left"), linear(other, "right")))
    mean = op.ReduceMean(hidden, np.array([1]))
    model = model_of(op.graph, {"class": op.Softmax(linear(hidden, "end")), "mean": mean})
    loss = {"class": "cross_entropy", "mean": {"name": "mean_squared_error", "weight": 3.0}}
    random, data, want = np.random.default_rng(2), [], []
    optimizer = momentum(net.parameters())
    for _ in range(10):
        inputs = {n: random.normal(size=(8, k)).astype(np.float32) for n, k in (("data", 5), ("other", 3))}
        targets = {"class": random.integers(0, 4, 8), "mean": random.normal(size=(8, 1)).astype(np.float32)}
        data.append((inputs, targets))
        scores, value = net(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        costs = (
            nn.functional.cross_entropy(scores, torch.from_numpy(targets["class"])),
            nn.functional.mse_loss(value, torch.from_numpy(targets["mean"])),
        )
        total = costs[0] + 3 * costs[1]
        right = float((scores.argmax(1).numpy() == targets["class"]).mean())
        error = np.abs(value.detach().numpy() - targets["mean"]).mean()
        want.append([total.item(), costs[0].item(), right, costs[1].item(), error])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    training, got = divided(model, data, loss=loss)
    assert training.step_graph.measures == [
        "loss",
        "class_loss",
        "class_accuracy",
        "mean_loss",
        "mean_mean_absolute_error",
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    same(training, _detached(net))


class Block(nn.Module):
    """A class token in front of five others, attention with two heads, a classifier of the token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = (nn.Parameter(torch.randn(1, n, 8)) for n in (1, 6))
        self.norm, self.qkv, self.end = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        return self.end((x + mixed.transpose(1, 2).reshape(len(x), 6, 8))[:, 0])  # type: ignore[no-any-return]


def test_a_transformer_block_with_a_class_token_is_pytorchs() -> None:
    net = Block()
    op, x = graph_with_input("N", 5, 8)
    of = {name: parameter(op, name, p) for name, p in net.named_parameters()}
    count = op.Gather(op.Shape(x), np.array([0]))

    def shaped(value: ir.Value, *rest: int) -> ir.Value:
        return op.Reshape(value, op.Concat(count, np.array(rest), axis=0))  # type: ignore[no-any-return]

    token = op.Expand(of["token"], op.Concat(count, np.array([1, 8]), axis=0))
    x = op.Add(op.Concat(token, x, axis=1), of["place"])
    normal = op.LayerNormalization(x, of["norm.weight"], of["norm.bias"], axis=-1)
    qkv = op.Add(op.MatMul(normal, op.Transpose(of["qkv.weight"], perm=[1, 0])), of["qkv.bias"])
    parts = op.Split(qkv, axis=2, num_outputs=3, _outputs=3)
    q, k, v = (op.Transpose(shaped(part, 6, 2, 4), perm=[0, 2, 1, 3]) for part in parts)
    scores = op.Softmax(op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), 0.5), axis=-1)
    mixed = shaped(op.Transpose(op.MatMul(scores, v), perm=[0, 2, 1, 3]), 6, 8)
    first = op.Gather(op.Add(x, mixed), np.array(0), axis=1)
    scores = op.Gemm(first, of["end.weight"], of["end.bias"], transB=1)
    model, data = model_of(op.graph, {"prob": op.Softmax(scores, axis=1)}), batches(10, 8, (5, 8), 4)
    training, got = divided(model, data, 0.02)
    np.testing.assert_allclose(got[:, 0], torch_train(net, data, momentum(net.parameters(), 0.02)), rtol=1e-5)
    same(training, _detached(net))


def test_batches_that_cannot_be_divided_evenly_are_pytorchs() -> None:
    """Fewer examples than shards, too; what is measured is of the whole batch."""
    data = [(x[:count], y[:count]) for (x, y), count in zip(DATA, [8, 1, 5, 2, 7, 1, 4, 8, 3, 8], strict=True)]
    net, right = network(), []

    def loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        right.append((scores.argmax(1) == targets).double().mean().item())
        return nn.functional.cross_entropy(scores, targets)

    training, got = divided(twin(net), data)
    np.testing.assert_allclose(got[:, 0], torch_train(net, data, momentum(net.parameters()), loss), rtol=1e-5)
    np.testing.assert_allclose(got[:, 1], right, rtol=1e-6)
    assert len(set(right)) > 3
    same(training, _detached(net))


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_in_a_thread_reaches_the_caller(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not waited for; the others' threads have come to their end, and the training can go on."""
    training, _ = train(twin(network()), DATA[:1], 3)
    before, run, ended = training.weights(), Shards._run, []

    def fail(self: Shards, number: int, *args: Any) -> Any:
        if number == broken:
            raise MemoryError("no room")
        time.sleep(0.05)
        ended.append(number)
        return run(self, number, *args)

    monkeypatch.setattr(Shards, "_run", fail)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            training.run(*DATA[1], 0.05)
        except MemoryError as error:
            caught.append(error)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(60)
    assert not caller.is_alive()
    assert [str(error) for error in caught] == ["no room"]
    assert len(ended) == 2
    for name, weight in training.weights().items():
        np.testing.assert_array_equal(weight, before[name])
    monkeypatch.setattr(Shards, "_run", run)
    want, _ = train(twin(network()), DATA[:2], 3)
    training.run(*DATA[1], 0.05)
    same(training, want.weights(), 0)
