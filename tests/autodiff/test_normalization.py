"""Normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.autodiff.checks import Operator, check, gradients

pytestmark = pytest.mark.training


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _batch_inputs(rng: np.random.Generator, *shape: int) -> list[np.ndarray]:
    c = shape[1]
    variance = rng.uniform(0.5, 2, c).astype(np.float32)
    return [2 * _normal(rng, *shape) + 1, _normal(rng, c), _normal(rng, c), _normal(rng, c), variance]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("opset", [13, 14, 15, 21])
@pytest.mark.parametrize("symbolic", [False, True])
def test_batch_normalization_by_frozen_statistics(
    rng: np.random.Generator, shape: tuple[int, ...], opset: int, symbolic: bool
) -> None:
    inputs = _batch_inputs(rng, *shape)
    unknown = {0: ["batch", shape[1], *[f"s{i}" for i in range(len(shape) - 2)]]} if symbolic else False
    operator = Operator("BatchNormalization", inputs, {"epsilon": 1e-3}, opset=opset, symbolic=unknown)

    def expression(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        return F.batch_norm(x, mean, var, scale, bias, eps=1e-3)

    def by_hand(x: Any, *parameters: Any) -> Any:
        scale, bias, mean, var = (p.reshape(1, -1, *[1] * (len(shape) - 2)) for p in parameters)
        return (x - mean) / torch.sqrt(var + 1e-3) * scale + bias

    check(Operator(**{**vars(operator), "wrt": [0, 1, 2]}), expression)
    check(operator, by_hand)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("opset", [14, 15, 21])
@pytest.mark.parametrize("symbolic", [False, True])
def test_batch_normalization_by_batch_statistics(
    rng: np.random.Generator, shape: tuple[int, ...], opset: int, symbolic: bool
) -> None:
    inputs = _batch_inputs(rng, *shape)
    axes = [0, *range(2, len(shape))]
    attributes = {"epsilon": 1e-3, "momentum": 0.7, "training_mode": 1}
    unknown = {0: ["batch", shape[1], *[f"s{i}" for i in range(len(shape) - 2)]]} if symbolic else False

    def normalized(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        return F.batch_norm(x, mean.detach().clone(), var.detach().clone(), scale, bias, training=True, eps=1e-3)

    def everything(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        """The running variance is that of the population (ONNX), where PyTorch's is unbiased."""
        return (
            normalized(x, scale, bias, mean, var),
            0.7 * mean + 0.3 * x.mean(axes),
            0.7 * var + 0.3 * x.var(axes, unbiased=False),
        )

    def running(*inputs: Any) -> Any:
        return everything(*inputs)[1:]

    common: dict[str, Any] = {"attributes": attributes, "opset": opset, "outputs": 3, "symbolic": unknown}
    check(Operator("BatchNormalization", inputs, through=[0], wrt=[0, 1, 2], **common), normalized)
    check(Operator("BatchNormalization", inputs, **common), everything)
    check(Operator("BatchNormalization", inputs, through=[1, 2], wrt=[0, 3, 4], **common), running)


def test_batch_normalization_of_far_values(rng: np.random.Generator) -> None:
    """A mean a thousand deviations away must not drown the variance."""
    inputs = _batch_inputs(rng, 8, 3, 4, 4)
    inputs[0] += 1000
    operator = Operator("BatchNormalization", inputs, {"training_mode": 1}, outputs=3, through=[0], wrt=[0, 1, 2])
    check(
        operator,
        lambda x, s, b, m, v: F.batch_norm(x, m.detach(), v.detach(), s, b, training=True),
        differences=False,
        tolerance=2e-3,
    )
    assert np.isfinite(gradients(operator, {0: inputs[0]})[0]).all()
