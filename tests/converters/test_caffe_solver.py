"""Caffe's solvers as the `train:` part of a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters.caffe.solver import read_solver
from surgery.errors import SurgeryError
from surgery.training.rates import Rates
from surgery.training.runner import Training
from surgery.training.settings import TrainSettings
from surgery.training.step import training_step
from tests.training.test_optimizers import DATA, network, twin

SGD = {"name": "sgd", "momentum": 0.9}
CHANGING = SGD | {"rate_in_momentum": True}  # where the rate changes, that is another thing than PyTorch's
REAL: dict[str, dict[str, Any]] = {
    "bvlc_alexnet/solver.prototxt": {
        "optimizer": CHANGING,
        "learning_rate": 0.01,
        "schedule": {"name": "step", "every": 100000, "gamma": 0.1},
        "weight_decay": 0.0005,
        "batch_size": 256,
        "steps": 450000,
    },
    "cifar10/cifar10_quick_solver.prototxt": {
        "optimizer": SGD,
        "learning_rate": 0.001,
        "schedule": {"name": "constant"},
        "weight_decay": 0.004,
        "batch_size": 100,
        "steps": 4000,
    },
    "mnist/lenet_solver.prototxt": {
        "optimizer": CHANGING,
        "learning_rate": 0.01,
        "schedule": {"name": "inverse_time", "gamma": 0.0001, "power": 0.75},
        "weight_decay": 0.0005,
        "batch_size": 64,
        "steps": 10000,
    },
    "mnist/lenet_multistep_solver.prototxt": {
        "optimizer": CHANGING,
        "learning_rate": 0.01,
        "schedule": {"name": "multi_step", "milestones": [5000, 7000, 8000, 9000, 9500], "gamma": 0.9},
        "weight_decay": 0.0005,
        "batch_size": 64,
        "steps": 10000,
    },
    "mnist/lenet_adadelta_solver.prototxt": {
        "optimizer": {"name": "adadelta", "rho": 0.95, "epsilon": 1e-6},
        "learning_rate": 1.0,
        "schedule": {"name": "constant"},
        "weight_decay": 0.0005,
        "batch_size": 64,
        "steps": 10000,
    },
    "mnist/lenet_solver_adam.prototxt": {
        "optimizer": {"name": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "epsilon_hat": True},
        "learning_rate": 0.001,
        "schedule": {"name": "constant"},
        "weight_decay": 0.0,
        "batch_size": 64,
        "steps": 10000,
    },
    "mnist/lenet_solver_rmsprop.prototxt": {
        "optimizer": {"name": "rmsprop", "rho": 0.98, "epsilon": 1e-8},
        "learning_rate": 0.01,
        "schedule": {"name": "inverse_time", "gamma": 0.0001, "power": 0.75},
        "weight_decay": 0.0005,
        "batch_size": 64,
        "steps": 10000,
    },
    "mnist/mnist_autoencoder_solver_adagrad.prototxt": {
        "optimizer": {"name": "adagrad", "epsilon": 1e-8},
        "learning_rate": 0.01,
        "schedule": {"name": "constant"},
        "weight_decay": 0.0005,
        "batch_size": 100,
        "steps": 65000,
    },
    "mnist/mnist_autoencoder_solver_nesterov.prototxt": {
        "optimizer": {"name": "sgd", "momentum": 0.95, "nesterov": True, "rate_in_momentum": True},
        "learning_rate": 0.01,
        "schedule": {"name": "step", "every": 10000, "gamma": 0.1},
        "weight_decay": 0.0005,
        "batch_size": 100,
        "steps": 65000,
    },
}


@pytest.mark.parametrize("name", REAL)
def test_solvers_of_the_model_zoo(shared_data: Path, name: str) -> None:
    assert read_solver(shared_data / "caffe" / "zoo" / name) == REAL[name]


def test_every_solver_of_the_zoo_is_read(shared_data: Path) -> None:
    solvers = sorted((shared_data / "caffe" / "zoo").rglob("*solver*.prototxt"))
    assert len(solvers) == 13
    for path in solvers:
        train = read_solver(path, examples=50000)
        assert train["epochs"] == round(read_solver(path)["steps"] / (50000 / train["batch_size"]))


def solver(folder: Path, text: str) -> Path:
    path = folder / "solver.prototxt"
    path.write_text(text)
    return path


def caffe_rate(iteration: int, **p: Any) -> float:
    """The learning rate of caffe.proto's comment on lr_policy."""
    return (
        p["base_lr"]
        * {
            "fixed": lambda: 1.0,
            "step": lambda: p["gamma"] ** (iteration // p["stepsize"]),
            "exp": lambda: p["gamma"] ** iteration,
            "inv": lambda: (1 + p["gamma"] * iteration) ** -p["power"],
            "multistep": lambda: p["gamma"] ** sum(iteration >= s for s in p["stepvalue"]),
            "poly": lambda: (1 - iteration / p["max_iter"]) ** p["power"],
            "sigmoid": lambda: 1 / (1 + math.exp(-p["gamma"] * (iteration - p["stepsize"]))),
        }[p["lr_policy"]]()
    )


POLICIES: list[dict[str, Any]] = [
    {"lr_policy": "fixed"},
    {"lr_policy": "step", "gamma": 0.5, "stepsize": 300},
    {"lr_policy": "exp", "gamma": 0.999},
    {"lr_policy": "inv", "gamma": 0.01, "power": 0.75},
    {"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [250, 1200]},
    {"lr_policy": "poly", "power": 2.0},
    {"lr_policy": "sigmoid", "gamma": -0.01, "stepsize": 750},
]


@pytest.mark.parametrize("policy", POLICIES, ids=[p["lr_policy"] for p in POLICIES])
def test_rates_are_caffes_at_every_iteration(tmp_path: Path, policy: dict[str, Any]) -> None:
    """In epochs of 3,200 examples in batches of 32: 100 iterations each."""
    values = {"base_lr": 0.02, "max_iter": 1500, **policy}
    lines = []
    for key, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            lines.append(f'{key}: "{each}"' if isinstance(each, str) else f"{key}: {each}")
    train = read_solver(solver(tmp_path, "\n".join(lines)), examples=3200, batch_size=32)
    settings = TrainSettings(**train)
    assert settings.epochs == 15
    for iteration in (0, 1, 99, 249, 250, 299, 300, 301, 777, 1200, 1499):
        found, expected = settings.rate(iteration, 100), caffe_rate(iteration, **values)
        assert math.isclose(found, expected, rel_tol=1e-6), iteration


def test_everything_a_solver_may_say(tmp_path: Path) -> None:
    text = """base_lr: 0.1 lr_policy: "sigmoid" gamma: -0.001 stepsize: 5000 max_iter: 8000 momentum: 0.8
              weight_decay: 0.002 regularization_type: "L1" clip_gradients: 35 iter_size: 4 random_seed: 7
              solver_type: NESTEROV snapshot: 100 display: 20 solver_mode: GPU
              net_param { layer { name: "d" type: "Data" top: "d" data_param { batch_size: 8 } include { phase: TEST } }
                          layer { name: "d" type: "Data" top: "d" data_param { batch_size: 16 } } }"""
    path = solver(tmp_path, text)
    assert read_solver(path) == {
        "optimizer": {"name": "sgd", "momentum": 0.8, "nesterov": True, "rate_in_momentum": True},
        "learning_rate": 0.1,
        "schedule": {"name": "sigmoid", "middle": 5000, "gamma": -0.001},
        "weight_decay": 0.002,
        "regularization": "l1",
        "clip_norm": 8.75,  # Caffe clips the sum of four batches
        "accumulate": 4,
        "seed": 7,
        "batch_size": 16,
        "steps": 8000,
    }
    epochs = read_solver(path, examples=6400)  # 100 updates of 4 · 16 examples
    assert epochs["epochs"] == 80
    assert epochs["schedule"] == {"name": "sigmoid", "middle": 50.0, "gamma": -0.1}


@pytest.mark.parametrize(("text", "message"), [
    ('layer { name: "x" }', "it is a net definition"),
    ('lr_policy: "fixed"', "base_lr"),
    ("base_lr: 1", "lr_policy ''"),
    ('base_lr: 1 lr_policy: "stpe"', "'step'"),
    ('base_lr: 1 lr_policy: "step" gamma: 0.1', "needs stepsize"),
    ('base_lr: 1 lr_policy: "step" gamma: 0.1 stepsize: 0', "stepsize is 0"),
    ('base_lr: 1 lr_policy: "multistep" gamma: 0.1', "stepvalue"),
    ('base_lr: 1 lr_policy: "inv" gamma: 0.1', "needs power"),
    ('base_lr: 1 lr_policy: "fixed" type: "Adamm"', "'Adam'"),
    ('base_lr: 1 lr_policy: "fixed" type: "Adam" solver_type: SGD', "solver_type"),
    ('base_lr: 1 lr_policy: "fixed" type: "AdaGrad" momentum: 0.9', "momentum"),
    ('base_lr: 1 lr_policy: "fixed" type: "RMSProp" rms_decay: 1.5', "rms_decay"),
    ('base_lr: 1 lr_policy: "fixed" regularization_type: "L3"', "L1 or L2"),
    ("", "is empty"),
])  # fmt: skip
def test_solvers_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message) as error:
        read_solver(solver(tmp_path, text))
    assert "\n" not in str(error.value)


def test_epochs_need_the_batch(tmp_path: Path) -> None:
    path = solver(tmp_path, 'base_lr: 1 lr_policy: "fixed" max_iter: 10 net: "examples/elsewhere.prototxt"')
    assert "batch_size" not in read_solver(path)
    with pytest.raises(SurgeryError, match="batch_size"):
        read_solver(path, examples=100)
    with pytest.raises(SurgeryError, match="no such file"):
        read_solver(tmp_path / "none.prototxt")


def caffe_updates(net: nn.Module, text: str, data: list[tuple[np.ndarray, ...]]) -> None:
    """Trains as Caffe does (solvers/*.cpp): clips the summed gradient, divides it, regularizes, updates."""
    p = parse(text)
    size, kind, delta = int(p.get("iter_size", 1)), p["type"], float(p.get("delta", 1e-8))
    momentum, momentum2 = float(p.get("momentum", 0)), float(p.get("momentum2", 0.999))
    state = {w: [torch.zeros_like(w), torch.zeros_like(w)] for w in net.parameters()}
    for iteration in range(len(data) // size):
        for examples, targets in data[iteration * size : (iteration + 1) * size]:
            logits = net(torch.from_numpy(examples).double())
            nn.functional.cross_entropy(logits, torch.from_numpy(targets)).backward()
        rate = float(p["base_lr"]) * float(p["gamma"]) ** (iteration // int(p["stepsize"]))
        norm = math.sqrt(sum(float(w.grad.square().sum()) for w in state))  # type: ignore[union-attr]
        clip = min(1.0, float(p["clip_gradients"]) / norm)
        with torch.no_grad():
            for w, (h, h2) in state.items():
                sign = w.sign() if "regularization_type" in p else w
                g = w.grad * clip / size + float(p["weight_decay"]) * sign  # type: ignore[operator]
                w.grad = None
                if kind == "SGD":
                    step = h.mul_(momentum).add_(rate * g).clone()
                elif kind == "Nesterov":
                    before = h.clone()
                    step = (1 + momentum) * h.mul_(momentum).add_(rate * g) - momentum * before
                elif kind == "AdaGrad":
                    step = rate * g / (h.add_(g * g).sqrt() + delta)
                elif kind == "RMSProp":
                    decay = float(p["rms_decay"])
                    step = rate * g / (h.mul_(decay).add_((1 - decay) * g * g).sqrt() + delta)
                elif kind == "AdaDelta":
                    h.mul_(momentum).add_((1 - momentum) * g * g)
                    value = g * ((h2 + delta) / (h + delta)).sqrt()
                    h2.mul_(momentum).add_((1 - momentum) * value * value)
                    step = rate * value
                else:
                    t = iteration + 1
                    h.mul_(momentum).add_((1 - momentum) * g)
                    h2.mul_(momentum2).add_((1 - momentum2) * g * g)
                    step = rate * math.sqrt(1 - momentum2**t) / (1 - momentum**t) * h / (h2.sqrt() + delta)
                w -= step


def parse(text: str) -> dict[str, str]:
    words = text.replace('"', "").split()
    return {key.rstrip(":"): value for key, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.training
@pytest.mark.parametrize("text", [
    'type: "SGD" momentum: 0.9',
    'type: "SGD" momentum: 0.9 iter_size: 2 regularization_type: "L1"',
    'type: "Nesterov" momentum: 0.9',
    'type: "AdaGrad"',
    'type: "RMSProp" rms_decay: 0.95 iter_size: 3',
    'type: "AdaDelta" momentum: 0.95 delta: 1e-6',
    'type: "Adam" momentum: 0.9',
])  # fmt: skip
def test_a_solver_trains_as_in_caffe(tmp_path: Path, text: str) -> None:
    text += ' base_lr: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 10 max_iter: 48 weight_decay: 0.01'
    text += " clip_gradients: 0.3"
    net = network()
    model = twin(net)
    settings = TrainSettings(**read_solver(solver(tmp_path, text), examples=48 * 8, batch_size=8))
    training = Training(
        training_step(model, settings.links(), accumulate=settings.accumulate > 1), ["CPUExecutionProvider"]
    )
    rates = Rates(settings, 48)
    for batch, (examples, targets) in enumerate(DATA[:48]):
        training.run(examples, targets, rates.at(batch)[0], update=rates.updates(batch))
    caffe_updates(net.double(), text, DATA[:48])
    for name, weights in net.named_parameters():
        np.testing.assert_allclose(training.weights()[name], weights.detach(), rtol=1e-5, atol=1e-5, err_msg=name)
