"""Updates of weights that end in ones, to which the graph gives its numbers their rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from surgery.training.optimizers import Adam, Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import training_step
from tests.nets import batches, graph_with_input, model_of, parameter, torch_losses
from tests.training.test_trajectories import CPU, OPTIMIZERS, Optimizer

pytestmark = pytest.mark.training


@pytest.mark.parametrize(("settings", "decay", "rate", "optimizer"), OPTIMIZERS)
def test_a_pointwise_convolution_follows_pytorch(
    settings: Sgd | Adam, decay: float, rate: float, optimizer: Optimizer
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    op, x = graph_with_input("N", 2, 5, 5)
    for name in ("0", "2"):
        x = op.Conv(x, *[parameter(op, f"{name}.{role}", p) for role, p in net.get_submodule(name).named_parameters()])
        x = op.Relu(x) if name == "0" else x
    model = model_of(op.graph, {"prob": op.Softmax(op.Flatten(op.GlobalAveragePool(x)), axis=1)})
    step = training_step(model, chain(settings, decay))
    training = Training(step, CPU)
    data = batches(20, 8, (2, 5, 5), 4)
    want = torch_losses(net, optimizer(net.parameters()), data)
    got = [training.run(examples, targets, rate)[0] for examples, targets in data]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for name, weights in training.weights().items():
        np.testing.assert_allclose(weights, dict(net.named_parameters())[name].detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "slots"), [(Sgd(), {"momentum"}), (Sgd(nesterov=True), {"momentum"}), (Adam(), {"m", "v"})]
)
def test_state_is_written_in_place_and_weights_are_not(settings: Sgd | Adam, slots: set[str]) -> None:
    op, x = graph_with_input("N", 3)
    x = op.Gemm(x, parameter(op, "fc.weight", torch.ones(3, 4)), _name="fc")
    step = training_step(model_of(op.graph, {"prob": op.Softmax(x, axis=1)}), chain(settings))
    training = Training(step, CPU)
    before = dict(training.values)
    training.run(np.ones((2, 3), np.float32), np.array([0, 1]), 0.1)
    shared = {name for name, value in training.values.items() if value is before[name]}
    assert shared >= {f"fc.weight/{slot}" for slot in slots}
    assert "fc.weight" not in shared
    assert (step.initial["fc.weight"] == 1).all()
