"""Convolutions by minimal filtering are the convolutions they replace, forward and backward."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from surgery import runtime
from surgery.passes.freeze import Freeze
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import Step, training_step
from tests.nets import batches, graph_with_input, model_of, parameter

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
KERNELS = [False, True] if runtime.has_training_kernels() else [False]
torch.set_num_threads(1)


def twins(height: int, width: int, pads: list[int], bias: bool, **other: int) -> tuple[nn.Sequential, ir.Model]:
    """A 1×1 convolution, one by 3×3 of 48 to 64 channels, and a classifier: in PyTorch, and in ONNX."""
    torch.manual_seed(0)
    top, left, bottom, right = pads
    net = nn.Sequential()
    net.add_module("first", nn.Conv2d(2, 48, 1))
    net.add_module("pad", nn.ZeroPad2d((left, right, top, bottom)))
    net.add_module("middle", nn.Conv2d(48, 64, 3, bias=bias, **other))  # type: ignore[arg-type]
    net.add_module("head", nn.Linear(64, 4))
    op, x = graph_with_input("N", 2, height, width)

    def of(name: str) -> list[ir.Value]:
        return [parameter(op, f"{name}.{role}", p) for role, p in net.get_submodule(name).named_parameters()]

    x = op.Relu(op.Conv(x, *of("first"), _name="first"))
    strides = [other.get("stride", 1)] * 2
    x = op.Conv(x, *of("middle"), kernel_shape=[3, 3], pads=pads, strides=strides, _name="middle")
    x = op.Flatten(op.GlobalAveragePool(op.Relu(x)))
    x = op.Gemm(x, *of("head"), transB=1, _name="head")
    return net, model_of(op.graph, {"prob": op.Softmax(x, axis=1)})


def forward(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    x = net.get_submodule("pad")(torch.relu(net.get_submodule("first")(x)))
    return net.get_submodule("head")(torch.relu(net.get_submodule("middle")(x)).mean((2, 3)))


def is_rewritten(step: Step) -> bool:
    return any(n.op_type == "Conv" and n.attributes.get_int("group", 1) == 6 for n in step.model.graph)


@pytest.mark.parametrize("fused", KERNELS)
@pytest.mark.parametrize(
    ("height", "width", "pads", "bias"),
    [
        (8, 8, [1, 1, 1, 1], True),  # whole tiles
        (7, 5, [1, 1, 1, 1], False),  # a part of the last tile
        (10, 6, [0, 0, 0, 0], True),
        (6, 9, [2, 0, 1, 3], True),
        (4, 3, [1, 1, 1, 1], False),  # a single tile
    ],
)
def test_training_follows_pytorch(height: int, width: int, pads: list[int], bias: bool, fused: bool) -> None:
    net, model = twins(height, width, pads, bias)
    step = training_step(model, chain(Sgd(momentum=0.9)), fused=fused)
    assert is_rewritten(step)
    training = Training(step, CPU)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for examples, targets in batches(5, 3, (2, height, width), 4):
        loss = nn.functional.cross_entropy(forward(net, torch.from_numpy(examples)), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert training.run(examples, targets, 0.1)[0] == pytest.approx(loss.item(), rel=1e-5)
    weights = training.weights()
    assert weights.keys() == dict(net.named_parameters()).keys()
    for name, tensor in net.named_parameters():
        np.testing.assert_allclose(weights[name], tensor.detach(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_batch_may_have_any_size() -> None:
    net, model = twins(8, 8, [1, 1, 1, 1], True)
    training = Training(training_step(model, chain(Sgd())), CPU)
    for size in (1, 5, 2):
        examples, targets = batches(1, size, (2, 8, 8), 4, seed=size)[0]
        want = nn.functional.cross_entropy(forward(net, torch.from_numpy(examples)), torch.from_numpy(targets))
        assert training.run(examples, targets, 0.0)[0] == pytest.approx(want.item(), rel=1e-5)


def test_what_does_not_gain_is_left() -> None:
    _, model = twins(8, 8, [1, 1, 1, 1], True, stride=2)
    assert not is_rewritten(training_step(model, chain(Sgd())))
    _, model = twins(3, 3, [1, 1, 1, 1], True)  # fewer rows than a tile has
    assert not is_rewritten(training_step(model, chain(Sgd())))
    _, model = twins(8, 8, [1, 1, 1, 1], True)
    Freeze(layers="middle")(model)  # the runtime packs a weight that does not change
    assert not is_rewritten(training_step(model, chain(Sgd())))
