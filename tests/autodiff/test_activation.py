"""Activation functions, and Dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.autodiff.checks import Operator, check, gradients, spread

pytestmark = pytest.mark.training

# operator, attributes, first operator set, PyTorch
ELEMENTWISE: list[tuple[str, dict[str, Any], int, Callable[..., Any]]] = [
    ("Relu", {}, 13, torch.relu),
    ("LeakyRelu", {}, 13, lambda x: F.leaky_relu(x, 0.01)),
    ("LeakyRelu", {"alpha": 0.3}, 16, lambda x: F.leaky_relu(x, 0.3)),
    ("ThresholdedRelu", {"alpha": 0.6}, 13, lambda x: F.threshold(x, 0.6, 0.0)),
    ("Shrink", {"lambd": 0.7, "bias": 0.7}, 13, lambda x: F.softshrink(x, 0.7)),
    ("Elu", {}, 13, F.elu),
    ("Elu", {"alpha": 0.4}, 13, lambda x: F.elu(x, 0.4)),
    ("Selu", {}, 13, F.selu),
    ("Selu", {"alpha": 0.5, "gamma": 2.0}, 13, lambda x: 2 * F.elu(x, 0.5)),
    ("Celu", {}, 13, F.celu),
    ("Celu", {"alpha": 0.7}, 13, lambda x: F.celu(x, 0.7)),
    ("Sigmoid", {}, 13, torch.sigmoid),
    ("HardSigmoid", {}, 13, lambda x: torch.clamp(0.2 * x + 0.5, 0, 1)),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.4}, 13, lambda x: torch.clamp(x / 6 + 0.4, 0, 1)),
    ("HardSwish", {}, 14, F.hardswish),
    ("Tanh", {}, 13, torch.tanh),
    ("Softplus", {}, 13, F.softplus),
    ("Softsign", {}, 13, F.softsign),
    ("Mish", {}, 18, F.mish),
    ("Erf", {}, 13, torch.erf),
    ("Gelu", {}, 20, F.gelu),
    ("Gelu", {"approximate": "tanh"}, 20, lambda x: F.gelu(x, approximate="tanh")),
    ("Softmax", {}, 13, lambda x: torch.softmax(x, -1)),
    ("Softmax", {"axis": 1}, 13, lambda x: torch.softmax(x, 1)),
    ("LogSoftmax", {}, 13, lambda x: torch.log_softmax(x, -1)),
    ("LogSoftmax", {"axis": -2}, 13, lambda x: torch.log_softmax(x, 1)),
]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("op_type", "attributes", "opset", "expression"), ELEMENTWISE, ids=lambda v: str(v) if not callable(v) else ""
)
def test_activation(
    rng: np.random.Generator, op_type: str, attributes: dict[str, Any], opset: int, expression: Any, symbolic: bool
) -> None:
    x = spread(rng, 4, 5, 7)
    for version in {opset, 21}:
        check(
            Operator(op_type, [x], attributes, opset=version, symbolic=symbolic),
            expression,
            double=op_type != "Shrink",
            builder=attributes != {"approximate": "tanh"},  # the builder differentiates the exact form
        )


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 4, 5), (1,), (5,)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_prelu(rng: np.random.Generator, shape: tuple[int, ...], symbolic: bool) -> None:
    x, slope = spread(rng, 2, 3, 4, 5), spread(rng, *shape)
    for opset in (13, 16):
        check(
            Operator("PRelu", [x, slope], opset=opset, symbolic=symbolic),
            lambda x, slope: torch.where(x > 0, x, slope * x),
        )


@pytest.mark.parametrize("bounds", [(-0.71, 0.62), (None, 0.62), (-0.71, None), (None, None)])
def test_clip(rng: np.random.Generator, bounds: tuple[float | None, float | None]) -> None:
    low, high = (None if b is None else np.array(b, np.float32) for b in bounds)
    inputs = [spread(rng, 5, 8), low, high]

    def expression(x: Any, low: Any = None, high: Any = None) -> Any:
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    check(Operator("Clip", inputs, opset=13), expression, builder=False)
    check(Operator("Clip", inputs, opset=13, wrt=[0]), expression)


def test_dropout_of_inference_passes_the_gradient_on(rng: np.random.Generator) -> None:
    x = spread(rng, 4, 5)
    for inputs in ([x], [x, np.array(0.3, np.float32)], [x, np.array(0.3, np.float32), np.array(False)]):
        check(Operator("Dropout", inputs, wrt=[0], fed=[2] if len(inputs) == 3 else []), lambda x, *_: x + 0)


@pytest.mark.parametrize("fed", [[], [2]], ids=["constant", "fed"])
@pytest.mark.parametrize("ratio", [None, 0.0, 0.3])
@pytest.mark.parametrize("opset", [13, 21])
def test_dropout_of_training_scales_by_its_own_mask(
    rng: np.random.Generator, fed: list[int], ratio: float | None, opset: int
) -> None:
    from surgery import runtime

    x = spread(rng, 40, 5)
    rate = None if ratio is None else np.array(ratio, np.float32)
    operator = Operator("Dropout", [x, rate, np.array(True)], {"seed": 3}, opset=opset, wrt=[0], fed=fed)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y = runtime.session(operator.model(np.float32), ["CPUExecutionProvider"]).run(None, operator.feeds(np.float32))[0]
    assert math.isclose((y == 0).mean(), 0.5 if ratio is None else ratio, abs_tol=0.12)
    np.testing.assert_allclose(gradients(operator, {0: dy})[0], dy * (y / x), rtol=1e-5, atol=1e-6)
