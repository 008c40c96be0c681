"""A step graph's training follows PyTorch's from the same weights and batches, on whichever runtime is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import nn

from surgery import runtime
from surgery.marks import set_marks
from surgery.passes import Freeze
from surgery.training.optimizers import Adam, Sgd, chain
from surgery.training.runner import Evaluation, Training
from surgery.training.step import evaluation_step, training_step
from tests.nets import Residual, batches, lenet, residual, torch_lenet, torch_losses

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
KERNELS = [False, True] if runtime.has_training_kernels() else [False]
torch.set_num_threads(1)

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS = [
    pytest.param(Sgd(momentum=0.9), 0.0, 0.01, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), id="momentum"),
    pytest.param(
        Sgd(momentum=0.9, nesterov=True),
        1e-3,
        0.01,
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
        id="nesterov-decay",
    ),
    pytest.param(Sgd(momentum=0), 0.0, 0.01, lambda p: torch.optim.SGD(p, 0.01), id="plain"),
    pytest.param(Adam(), 0.0, 3e-4, lambda p: torch.optim.Adam(p, 3e-4), id="adam"),
    pytest.param(
        Adam(beta1=0.8, epsilon=1e-5),
        1e-3,
        3e-4,
        lambda p: torch.optim.Adam(p, 3e-4, (0.8, 0.999), 1e-5, 1e-3),
        id="adam-decay",
    ),
]


@pytest.mark.parametrize("fused", KERNELS)
@pytest.mark.parametrize(("settings", "decay", "rate", "optimizer"), OPTIMIZERS)
def test_lenet_follows_pytorch_for_50_steps(
    settings: Sgd | Adam, decay: float, rate: float, optimizer: Optimizer, fused: bool
) -> None:
    net = torch_lenet()
    training = Training(training_step(lenet(net), chain(settings, decay), fused=fused), CPU)
    # On these batches PyTorch in float32 and in float64 agree to 2e-6; on some others one unit that switches early
    # sends them a hundredth apart.
    data = batches(50, 16, (1, 28, 28), 10)
    want = torch_losses(net, optimizer(net.parameters()), data)
    got = [training.run(examples, targets, rate)[0] for examples, targets in data]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for name, weights in training.weights().items():
        np.testing.assert_allclose(weights, dict(net.named_parameters())[name].detach(), rtol=1e-3, atol=1e-4)
    assert want[-1] < want[0]


@pytest.mark.parametrize("fused", KERNELS)
@pytest.mark.parametrize("frozen_statistics", [False, True])
def test_residual_net_follows_pytorch(fused: bool, frozen_statistics: bool) -> None:
    net = Residual()
    model = residual(net)
    if frozen_statistics:
        for number in (1, 2):
            for role in ("running_mean", "running_var"):
                set_marks(model.graph.initializers[f"bn{number}.{role}"], trainable=False)
    net.train(not frozen_statistics)
    training = Training(training_step(model, chain(Sgd()), fused=fused), CPU)
    data = batches(30, 16, (3, 8, 8), 4)
    want = torch_losses(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), data)
    got = [training.run(examples, targets, 0.05)[0] for examples, targets in data]
    np.testing.assert_allclose(got, want, rtol=1e-3)
    weights = training.weights()
    for name, tensor in net.state_dict().items():
        if name in weights:
            # ONNX's running variance is the population's, PyTorch's the sample's: 16·64 values differ by a thousandth.
            np.testing.assert_allclose(weights[name], tensor, rtol=5e-3, atol=1e-3, err_msg=name)
    assert ("bn1.running_mean" in weights) != frozen_statistics


def test_evaluation_uses_the_present_weights_and_running_statistics() -> None:
    net = Residual()
    model = residual(net)
    training = Training(training_step(model, chain(Sgd())), CPU)
    watch = Evaluation(evaluation_step(model, changing=True), CPU, training)
    data = batches(10, 16, (3, 8, 8), 4)
    torch_losses(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), data)
    for examples, targets in data:
        training.run(examples, targets, 0.05)
    net.eval()
    examples, targets = batches(1, 64, (3, 8, 8), 4, seed=9)[0]
    logits = net(torch.from_numpy(examples))
    loss, accuracy = watch.run(examples, targets)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, torch.from_numpy(targets))), rel=2e-3)
    assert accuracy == pytest.approx(float((logits.argmax(1).numpy() == targets).mean()), abs=1 / 64)


def test_a_frozen_layer_and_a_smaller_learning_rate_follow_pytorch_parameter_groups() -> None:
    net = torch_lenet()
    model = lenet(net)
    Freeze(layers={"first": 1})(model)
    set_marks(model.graph.initializers["conv2.weight"], learning_rate=0.1)
    set_marks(model.graph.initializers["ip1.bias"], learning_rate=2.0, decay=0.0)
    step = training_step(model, chain(Sgd(), 1e-2))
    assert not any(name.startswith("conv1") for name in step.initial)
    training = Training(step, CPU)
    named = dict(net.named_parameters())
    rest = [p for n, p in named.items() if n not in ("conv1.weight", "conv1.bias", "conv2.weight", "ip1.bias")]
    optimizer = torch.optim.SGD(
        [
            {"params": rest},
            {"params": [named["conv2.weight"]], "lr": 0.001},
            {"params": [named["ip1.bias"]], "lr": 0.02, "weight_decay": 0.0},
        ],
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-2,
    )
    data = batches(20, 16, (1, 28, 28), 10)
    want = torch_losses(net, optimizer, data)
    got = [training.run(examples, targets, 0.01)[0] for examples, targets in data]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(training.weights()["conv2.weight"], named["conv2.weight"].detach(), atol=1e-5)
