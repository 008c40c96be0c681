"""Every optimizer follows PyTorch's, or a reference from the paper, for fifty steps, on whichever runtime is installed.

The network is smooth, so that rounding cannot switch a unit, and has a weight that ends in ones, to which the graph
gives its numbers their rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import surgery
from surgery.errors import SurgeryError
from surgery.marks import set_marks
from surgery.training.callbacks import Callback
from surgery.training.checkpoint import Checkpoints
from surgery.training.optimizers import MovingAverage, Sgd, chain
from surgery.training.runner import Evaluation, Training
from surgery.training.settings import TrainSettings, changed
from surgery.training.step import evaluation_step, training_step
from tests.nets import Residual, batches, graph_with_input, model_of, parameter, residual

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
torch.set_num_threads(1)
Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
DATA = batches(50, 8, (2, 6, 6), 4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 1), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 4)
    )


def twin(net: nn.Sequential) -> ir.Model:
    op, x = graph_with_input("N", 2, 6, 6)
    for name, module in net.named_children():
        weights = [parameter(op, f"{name}.{role}", p) for role, p in module.named_parameters()]
        if isinstance(module, nn.Conv2d):
            x = op.Conv(x, *weights, _name=name)
        elif isinstance(module, nn.Linear):
            x = op.Gemm(x, *weights, transB=1, _name=name)
        else:
            kind = {nn.Tanh: "Tanh", nn.AvgPool2d: "GlobalAveragePool", nn.Flatten: "Flatten"}[type(module)]
            x = getattr(op, kind)(x, _name=name)
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1)})


def train(
    model: ir.Model, data: list[tuple[np.ndarray, ...]] = DATA, rate: float | None = None, **how: Any
) -> Training:
    """A training of `model` on `data`, batch by batch."""
    settings = TrainSettings(batch_size=8, **how)
    step = training_step(
        model,
        settings.links(),
        accumulate=settings.accumulate > 1,
        momentum=settings.cycles_momentum,
        average=settings.ema,
    )
    training = Training(step, CPU)
    for examples, targets in data:
        training.run(examples, targets, settings.initial_rate if rate is None else rate)
    return training


def loss_of(net: nn.Module, examples: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    return nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets))


def torch_train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> None:
    """PyTorch's usual loop; `before` and `after` each step something else."""
    for examples, targets in DATA:
        optimizer.zero_grad()
        loss_of(net, examples, targets).backward()
        before()
        optimizer.step()
        with torch.no_grad():
            after()


def same(training: Training, net: nn.Module, tolerance: float = 1e-5) -> None:
    """Compares the weights, which must have moved."""
    start = dict(network().named_parameters())
    for name, weight in net.named_parameters():
        np.testing.assert_allclose(training.weights()[name], weight.detach(), rtol=1e-5, atol=tolerance, err_msg=name)
        if weight.requires_grad:
            assert not np.allclose(weight.detach(), start[name].detach(), atol=20 * tolerance), name


OPTIMIZERS: dict[str, tuple[dict[str, Any], Make]] = {
    "sgd": ({"optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 0.1}, lambda p: torch.optim.SGD(p, 0.1)),
    "momentum, decay": (
        {"optimizer": "sgd", "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        {"optimizer": {"name": "sgd", "momentum": 0.8, "nesterov": True}},
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, nesterov=True),
    ),
    "dampening": (
        {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.4}},
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, dampening=0.4),
    ),
    "adam": ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.001)),
    "adam, decay, epsilon": (
        {"optimizer": {"name": "adam", "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3}, "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, 0.001, (0.8, 0.99), 1e-3, 0.1),
    ),
    "amsgrad": (
        {"optimizer": {"name": "adam", "beta2": 0.9, "amsgrad": True}},
        lambda p: torch.optim.Adam(p, 0.001, (0.9, 0.9), amsgrad=True),
    ),
    "adamw": ({"optimizer": "adamw", "learning_rate": 0.01}, lambda p: torch.optim.AdamW(p, 0.01)),
    "adamw, decay": (
        {"optimizer": "adamw", "weight_decay": 0.5},
        lambda p: torch.optim.AdamW(p, 0.001, weight_decay=0.5),
    ),
    "adamax": ({"optimizer": "adamax"}, lambda p: torch.optim.Adamax(p, 0.002)),
    "nadam": ({"optimizer": "nadam"}, lambda p: torch.optim.NAdam(p, 0.002)),
    "nadam, momentum decay": (
        {"optimizer": {"name": "nadam", "momentum_decay": 0.1}, "weight_decay": 0.1, "regularization": "decoupled"},
        lambda p: torch.optim.NAdam(p, 0.002, momentum_decay=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "rmsprop": ({"optimizer": "rmsprop", "learning_rate": 0.001}, lambda p: torch.optim.RMSprop(p, 0.001)),
    "rmsprop, momentum": (
        {"optimizer": {"name": "rmsprop", "rho": 0.9, "momentum": 0.5, "epsilon": 1e-6}, "learning_rate": 0.001},
        lambda p: torch.optim.RMSprop(p, 0.001, 0.9, 1e-6, momentum=0.5),
    ),
    "rmsprop, centered": (
        {"optimizer": {"name": "rmsprop", "centered": True, "momentum": 0.5}, "learning_rate": 0.001},
        lambda p: torch.optim.RMSprop(p, 0.001, centered=True, momentum=0.5),
    ),
    "adagrad": (
        {"optimizer": {"name": "adagrad", "initial_accumulator": 0.1}},
        lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    ),
    "adadelta": ({"optimizer": "adadelta"}, lambda p: torch.optim.Adadelta(p, 1.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_follows_pytorch_for_50_steps(name: str) -> None:
    settings, make = OPTIMIZERS[name]
    net = network()
    training = train(twin(net), **settings)
    torch_train(net, make(net.parameters()))
    same(training, net)


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2, in float64."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, beta1: float, beta2: float, decay: float):
        super().__init__(parameters, {"rate": rate, "beta1": beta1, "beta2": beta2, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p, dtype=torch.float64))
                g = p.grad.double()
                c = group["beta1"] * m + (1 - group["beta1"]) * g
                p -= (group["rate"] * (c.sign() + group["decay"] * p)).to(p.dtype)
                self.state[p]["m"] = group["beta2"] * m + (1 - group["beta2"]) * g


def test_lion_follows_its_paper() -> None:
    net = network()
    training = train(twin(net), optimizer={"name": "lion", "beta1": 0.8}, weight_decay=0.3, learning_rate=0.001)
    torch_train(net, Lion(net.parameters(), 0.001, 0.8, 0.99, 0.3))
    same(training, net)


def test_multipliers_are_pytorchs_parameter_groups() -> None:
    net = network()
    model = twin(net)
    set_marks(model.graph.initializers["0.weight"], learning_rate=0.3, decay=2.0)
    set_marks(model.graph.initializers["6.bias"], learning_rate=2.0, decay=0.0)
    set_marks(model.graph.initializers["2.weight"], trainable=False)
    training = train(model, optimizer="adamw", weight_decay=0.2)
    net[2].weight.requires_grad = False
    special = {net[0].weight: (0.3, 2.0), net[6].bias: (2.0, 0.0)}
    rest = [p for p in net.parameters() if p not in special and p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": rest}]
    groups += [{"params": [p], "lr": 0.001 * r, "weight_decay": 0.2 * d} for p, (r, d) in special.items()]
    torch_train(net, torch.optim.AdamW(groups, 0.001, weight_decay=0.2))
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            np.testing.assert_allclose(training.weights()[name], weight.detach(), rtol=1e-5, atol=1e-5)
    assert "2.weight" not in training.weights()


@pytest.mark.parametrize(
    ("settings", "clip"),
    [
        ({"clip_value": 0.002}, lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.002)),
        ({"clip_norm": 0.05}, lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.05)),
        ({"clip_norm": 1e3}, lambda net: nn.utils.clip_grad_norm_(net.parameters(), 1e3)),
        ({"clip_each_norm": 0.02}, lambda net: [nn.utils.clip_grad_norm_([p], 0.02) for p in net.parameters()]),
    ],
)
def test_clipped_gradients_follow_pytorch(settings: dict[str, Any], clip: Callable[[nn.Module], Any]) -> None:
    net = network()
    training = train(twin(net), rate=0.1, weight_decay=0.001, **settings)
    torch_train(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.001), before=lambda: clip(net))
    same(training, net)


def test_regularization_of_nothing_is_told() -> None:
    """Without weight_decay it did nothing, silently."""
    for how in ({"regularization": "l1"}, {"regularization": "decoupled", "optimizer": "lion"}):
        with pytest.raises(SurgeryError, match="how weight_decay works; say how much"):
            changed(TrainSettings(), how)
    changed(TrainSettings(), {"regularization": "l2", "optimizer": "adamw"})
    changed(TrainSettings(), {"regularization": "l2", "weight_decay": 0})


def test_l1_and_regularization_of_a_layer_are_terms_of_the_loss() -> None:
    """The gradients by PyTorch, the terms written out: 0.003·‖w‖₁ of all, the layer's own besides."""
    net = network()
    model = twin(net)
    surgery.apply(model, [{"regularize": {"layers": "6", "l1": 0.02, "l2": 0.4, "bias": True}}])
    surgery.apply(model, [{"weight_decay": {"layers": "2", "multiplier": 0.5, "bias": 0}}])
    training = train(model, weight_decay=0.003, regularization="l1", rate=0.05)

    def add_terms() -> None:
        penalty = sum(0.003 * p.abs().sum() for n, p in net.named_parameters() if not n.startswith("2."))
        penalty = penalty + 0.0015 * net[2].weight.abs().sum()
        penalty = penalty + sum(0.02 * p.abs().sum() + 0.2 * (p * p).sum() for p in net[6].parameters())
        penalty.backward()  # type: ignore[union-attr]

    torch_train(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), before=add_terms)
    same(training, net)


def keras_max_norm(w: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    norm = w.square().sum(axes, keepdim=True).sqrt()
    return w * norm.clip(0, 0.3) / (1e-7 + norm)


def keras_min_max_norm(w: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    norm = w.square().sum(axes, keepdim=True).sqrt()
    return w * (0.2 * norm.clip(0.6, 0.7) + (1 - 0.2) * norm) / (1e-7 + norm)


def keras_unit_norm(w: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return w / (1e-7 + w.square().sum(axes, keepdim=True).sqrt())


def keras_non_neg(w: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return w * (w >= 0)


@pytest.mark.parametrize(
    ("how", "project"),
    [
        ({"max_norm": 0.3}, keras_max_norm),
        ({"min_max_norm": {"minimum": 0.6, "maximum": 0.7, "rate": 0.2}}, keras_min_max_norm),
        ({"unit_norm": "all"}, keras_unit_norm),
        ({"non_neg": "all"}, keras_non_neg),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_constraints_are_keras_formulas_after_pytorchs_steps(
    how: dict[str, Any], project: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor], optimizer: str
) -> None:
    """With everything else: decay, clipped gradients, a layer that learns more slowly."""
    net = network()
    model = twin(net)
    surgery.apply(model, [how, {"learning_rate": {"layers": "2", "multiplier": 0.5}}])
    training = train(model, optimizer=optimizer, rate=0.02, weight_decay=0.1, clip_norm=0.2)
    groups = [
        {"params": [p for n, p in net.named_parameters() if not n.startswith("2.")]},
        {"params": list(net[2].parameters()), "lr": 0.01},
    ]
    make: Make = (
        (lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.1))
        if optimizer == "sgd"
        else (lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1))
    )

    def after() -> None:
        for weight in (net[0].weight, net[2].weight, net[6].weight):
            weight.copy_(project(weight, tuple(range(1, weight.ndim))))

    torch_train(net, make(groups), before=lambda: nn.utils.clip_grad_norm_(net.parameters(), 0.2), after=after)
    same(training, net)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulated_gradients_are_those_of_one_large_batch(optimizer: str) -> None:
    """Also of batches of unlike sizes, and with clipping, a constraint and decay."""
    model = twin(network())
    surgery.apply(model, [{"max_norm": 0.5}])
    how: dict[str, Any] = {"optimizer": optimizer, "weight_decay": 0.1, "clip_norm": 0.1}
    large = [tuple(np.concatenate(parts)[:20] for parts in zip(*DATA[i : i + 3], strict=True)) for i in range(0, 30, 3)]
    settings = TrainSettings(**how)
    whole = Training(training_step(model, settings.links()), CPU)
    split = Training(training_step(model, settings.links(), accumulate=True), CPU)
    for examples, targets in large:
        loss = whole.run(examples, targets, 0.05)[0]
        parts = [slice(0, 8), slice(8, 16), slice(16, 20)]
        losses = [split.run(examples[p], targets[p], 0.05, update=p.stop == 20)[0] for p in parts]
        assert np.average(losses, weights=[8, 8, 4]) == pytest.approx(loss, rel=1e-5)
    for name, weights in whole.weights().items():
        np.testing.assert_allclose(split.weights()[name], weights, rtol=1e-5, atol=1e-6)
    assert float(split.values["accumulated"].numpy()) == 0


def test_an_accumulating_training_updates_at_the_end_of_each_group_and_epoch() -> None:
    """50 examples in batches of 8: seven batches, groups of three, three, one."""
    examples, targets = (np.concatenate(part)[:50] for part in zip(*DATA[:7], strict=True))
    model = twin(network())
    how: dict[str, Any] = {"epochs": 1, "optimizer": {"name": "sgd", "momentum": 0}, "learning_rate": 0.1, "seed": 3}
    result = surgery.train(model, (examples, targets), batch_size=8, accumulate=3, **how)
    large = surgery.train(model, (examples, targets), batch_size=24, **how)  # 24, 24, 2
    for name, value in result.model.graph.initializers.items():
        other = large.model.graph.initializers[name]
        assert value.const_value is not None
        assert other.const_value is not None
        np.testing.assert_allclose(value.const_value.numpy(), other.const_value.numpy(), rtol=1e-5, atol=1e-6)


def test_accumulation_beside_batch_statistics_is_pytorchs_loop() -> None:
    """Each batch is normalized by itself and moves the running statistics."""
    net = Residual()
    training = Training(training_step(residual(net), chain(Sgd()), accumulate=True), CPU)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for number, (examples, targets) in enumerate(batches(20, 16, (3, 8, 8), 4), 1):
        loss = loss_of(net, examples, targets)
        (loss / 2).backward()
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        assert training.run(examples, targets, 0.05, update=number % 2 == 0)[0] == pytest.approx(loss.item(), rel=1e-4)
    weights = training.weights()
    for name, parameter_ in net.named_parameters():
        np.testing.assert_allclose(weights[name], parameter_.detach(), rtol=1e-3, atol=1e-4, err_msg=name)
    for number in (1, 2):
        mean = getattr(net, f"bn{number}").running_mean
        np.testing.assert_allclose(weights[f"bn{number}.running_mean"], mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_moving_average_is_pytorchs(accumulate: bool) -> None:
    net = network()
    model = twin(net)
    averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(net)  # which copies, the first time
    how = {"average": MovingAverage(decay=0.9), "accumulate": accumulate}
    training = Training(training_step(model, chain(Sgd()), **how), CPU)
    watch = Evaluation(evaluation_step(model, changing=True), CPU, training)
    for examples, targets in DATA:
        training.run(examples, targets, 0.05)
    torch_train(
        net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), after=lambda: averaged.update_parameters(net)
    )
    for name, weight in averaged.module.named_parameters():
        np.testing.assert_allclose(training.weights()[name], weight.detach(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            training.values[name].numpy(), dict(net.named_parameters())[name].detach(), atol=1e-5
        )
    examples, targets = DATA[0]
    assert watch.run(examples, targets)[0] == pytest.approx(loss_of(averaged, examples, targets).item(), rel=1e-5)


def test_a_moving_average_that_warms_up() -> None:
    model = twin(network())
    training = Training(training_step(model, chain(Sgd()), average=MovingAverage(decay=0.5, warmup=True)), CPU)
    average = np.array(training.values["6.bias"].numpy(), np.float64)
    for step, (examples, targets) in enumerate(DATA[:20], 1):
        training.run(examples, targets, 0.05)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * training.values["6.bias"].numpy()
    np.testing.assert_allclose(training.weights()["6.bias"], average, rtol=1e-5)


def test_the_averaged_weights_are_what_training_returns() -> None:
    examples, targets = (np.concatenate(part) for part in zip(*DATA[:8], strict=True))
    model = twin(network())
    result = surgery.train(model, (examples, targets), validation=(examples, targets), epochs=2, ema=0.9, keep="last")
    assert surgery.evaluate(result.model, (examples, targets)).loss == pytest.approx(result.history[-1]["val_loss"])
    plain = surgery.train(model, (examples, targets), epochs=2, keep="last")
    assert surgery.evaluate(plain.model, (examples, targets)).loss < result.history[-1]["val_loss"]  # which lags


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_momentum_that_comes_with_each_step(name: str) -> None:
    net = network()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.Adam(net.parameters(), 0.002)
    )
    links = TrainSettings(optimizer={"name": "sgd", "nesterov": True} if name == "sgd" else "adam").links()  # type: ignore[arg-type]
    training = Training(training_step(twin(net), links, momentum=True), CPU)
    momenta = [0.9 - 0.2 * math.sin(i / 10) for i in range(len(DATA))]
    for (examples, targets), momentum in zip(DATA, momenta, strict=True):
        group = optimizer.param_groups[0]
        group |= {"momentum": momentum} if name == "sgd" else {"betas": (momentum, 0.999)}
        training.run(examples, targets, group["lr"], momentum=momentum)
        optimizer.zero_grad()
        loss_of(net, examples, targets).backward()
        optimizer.step()
    same(training, net)


CLIPS: list[dict[str, Any]] = [{}, {"clip_value": 0.1}, {"clip_norm": 0.5}, {"clip_each_norm": 0.5}]
CONSTRAINTS: list[Any] = [
    {"max_norm": 1.0},
    {"min_max_norm": {"minimum": 0.1, "maximum": 1.0}},
    {"unit_norm": "all"},
    {"non_neg": "6"},
]
RATES = {"lion": 0.003, "sgd": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "lion"]
)
def test_every_optimizer_lowers_the_loss_whatever_it_is_combined_with(optimizer: str) -> None:
    """Each clip with each constraint; gradients accumulated, weights averaged and layers regularized by turns."""
    for index, constraint in enumerate(CONSTRAINTS):
        for turn, clip in enumerate(CLIPS):
            model = twin(network())
            surgery.apply(model, [constraint, {"regularize": {"layers": "2", "l1": 1e-4, "l2": 1e-4}}])
            how = {"accumulate": 1 + (index + turn) % 2, "ema": [None, 0.8][(index + turn // 2) % 2], **clip}
            rate = RATES.get(optimizer, 0.01 if optimizer != "adadelta" else 1.0)
            examples, targets = (np.concatenate(part) for part in zip(*DATA[:4], strict=True))
            watch = Evaluation(
                evaluation_step(model, changing=True), CPU, training := train(model, [], optimizer=optimizer, **how)
            )
            before = watch.run(examples, targets)[0]
            for _ in range(60):
                training.run(examples, targets, rate)
            assert watch.run(examples, targets)[0] < before - 0.02, (constraint, how)


class Stop(Callback):
    """Interrupts a training after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self._at = epoch, step

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == self._at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["nadam", "sgd"])
def test_a_training_that_goes_on_within_a_group_has_the_same_numbers(optimizer: str, tmp_path: Path) -> None:
    """Sums of gradients, the average, the optimizer's own product and the plateau's state are all in the checkpoint."""
    data = tuple(np.concatenate(part)[:60] for part in zip(*DATA[:8], strict=True))
    schedule: dict[str, Any] = {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.5, "cooldown": 1}
    if optimizer == "sgd":
        schedule = {"name": "one_cycle", "warmup": 0.5}
    how: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 8,
        "accumulate": 3,
        "ema": {"decay": 0.9, "warmup": True},
        "optimizer": optimizer,
        "learning_rate": 0.01,
        "schedule": schedule,
        "validation": data,
    }
    model = twin(network())
    whole = surgery.train(model, data, **how)
    store = {"checkpoints": Checkpoints(tmp_path / "c", steps=1), "callbacks": [Stop(3, 5)]}
    assert surgery.train(model, data, **how, **store).ending == "interrupted"
    rest = surgery.train(model, data, **how, checkpoints=Checkpoints(tmp_path / "c"), resume=True)
    for ours, theirs in zip(rest.history, whole.history, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    for name, value in rest.model.graph.initializers.items():
        other = whole.model.graph.initializers[name].const_value
        assert value.const_value is not None
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())
