"""Activation checkpointing gives the same numbers and keeps fewer activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from surgery import runtime
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import Step, training_step
from tests.nets import batches, graph_with_input, model_of, parameter

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]
DEPTH = 12


@pytest.fixture(scope="module")
def deep() -> ir.Model:
    """Convolutions with BatchNormalization, shortcuts, pooling and dropout."""
    torch.manual_seed(0)
    op, x = graph_with_input("N", 3, 16, 16)
    for i in range(DEPTH):
        conv, bn = torch.nn.Conv2d(3 if i == 0 else 8, 8, 3), torch.nn.BatchNorm2d(8)
        weights = [parameter(op, f"c{i}.{role}", p) for role, p in conv.named_parameters()]
        statistics = [
            parameter(op, f"b{i}.{role}", getattr(bn, role))
            for role in ("weight", "bias", "running_mean", "running_var")
        ]
        y = op.BatchNormalization(op.Conv(x, *weights, kernel_shape=[3, 3], pads=[1] * 4, _name=f"c{i}"), *statistics)
        x = op.Relu(op.Add(y, x) if i % 2 else y)
        if i == 4:
            x = op.MaxPool(op.Dropout(x, op.constant(0.3, ir.DataType.FLOAT)), kernel_shape=[2, 2], strides=[2, 2])
    fc = torch.nn.Linear(8, 4)
    flat = op.Flatten(op.GlobalAveragePool(x))
    weight, bias = parameter(op, "fc.weight", fc.weight), parameter(op, "fc.bias", fc.bias)
    return model_of(op.graph, {"y": op.Gemm(flat, weight, bias, transB=1, _name="fc")})


def step_of(model: ir.Model, recompute: bool, fused: bool = False) -> Step:
    return training_step(model, chain(Sgd()), loss="cross_entropy", fused=fused, recompute=recompute)


def kept(step: Step) -> int:
    """How many numbers of an example's activations wait for the backward pass: those of the forward convolutions,
    normalizations and activations that an operator of the second half of the graph reads."""
    nodes = list(step.model.graph)
    place = {node: index for index, node in enumerate(nodes)}
    forward_end = next(place[n] for n in nodes if n.op_type == "LogSoftmax")
    total = 0
    for node in nodes[:forward_end]:
        for output in node.outputs:
            if output.shape is not None and any(place[user] > forward_end for user in output.consumers()):
                total += int(np.prod([d for d in output.shape if isinstance(d, int)]))
    return total


@pytest.mark.parametrize("fused", [False, True] if runtime.has_training_kernels() else [False])
def test_the_same_losses_weights_and_dropout_masks(deep: ir.Model, fused: bool) -> None:
    plain, again = (Training(step_of(deep, recompute, fused), CPU) for recompute in (False, True))
    for examples, targets in batches(4, 8, (3, 16, 16), 4):
        assert plain.run(examples, targets, 0.05) == pytest.approx(again.run(examples, targets, 0.05), rel=1e-5)
    for name, array in plain.weights().items():
        np.testing.assert_allclose(again.weights()[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_less_than_half_of_the_activations_are_kept(deep: ir.Model) -> None:
    assert kept(step_of(deep, True)) < 0.5 * kept(step_of(deep, False))
