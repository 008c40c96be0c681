"""Normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from surgery import runtime
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


def _unknown(shape: tuple[int, ...], symbolic: bool) -> Any:
    return {0: ["batch", shape[1], *[f"s{i}" for i in range(len(shape) - 2)]]} if symbolic else False


@pytest.mark.parametrize("axis", [-1, 1, -2, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("symbolic", [False, True])
def test_layer_normalization(rng: np.random.Generator, axis: int, bias: bool, symbolic: bool) -> None:
    shape = (2, 3, 4, 5)
    normalized = shape[axis:]
    inputs = [_normal(rng, *shape), _normal(rng, *normalized)] + [_normal(rng, *normalized)] * bias
    attributes = {"axis": axis, "epsilon": 1e-3}
    for opset, outputs in ((17, 1), (21, 3)):
        operator = Operator(
            "LayerNormalization",
            inputs,
            attributes,
            opset=opset,
            outputs=outputs,
            through=[0],
            symbolic=_unknown(shape, symbolic),
        )
        check(operator, lambda x, s, b=None: F.layer_norm(x, normalized, s, b, eps=1e-3))


def test_layer_normalization_by_a_broadcast_scale(rng: np.random.Generator) -> None:
    if runtime.load_runtime().__version__.startswith("1.19."):
        pytest.skip("ONNX Runtime 1.19 refuses to broadcast the scale of a LayerNormalization")
    inputs = [_normal(rng, 2, 3, 4, 5), _normal(rng, 5), _normal(rng, 1, 5)]
    check(
        Operator("LayerNormalization", inputs, {"axis": 2}),
        lambda x, s, b: F.layer_norm(x, (4, 5)) * s + b,
    )


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_instance_normalization(rng: np.random.Generator, shape: tuple[int, ...], symbolic: bool) -> None:
    inputs = [_normal(rng, *shape), _normal(rng, 3), _normal(rng, 3)]
    check(
        Operator("InstanceNormalization", inputs, {"epsilon": 1e-3}, opset=13, symbolic=_unknown(shape, symbolic)),
        lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=1e-3),
    )


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4)], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_group_normalization(rng: np.random.Generator, shape: tuple[int, ...], symbolic: bool) -> None:
    attributes = {"num_groups": 3, "epsilon": 1e-3}
    x = _normal(rng, *shape)
    for opset, size in ((18, 3), (21, 6)):
        check(
            Operator(
                "GroupNormalization",
                [x, _normal(rng, size), _normal(rng, size)],
                attributes,
                opset=opset,
                symbolic=_unknown(shape, symbolic),
            ),
            lambda x, s, b: F.group_norm(
                x, 3, s.repeat_interleave(6 // len(s)), b.repeat_interleave(6 // len(b)), 1e-3
            ),
            double=False,  # its function body rounds to float
        )


@pytest.mark.parametrize("over", [[0, 2, 3], [1], [-1, 0]])
def test_mean_variance_normalization(rng: np.random.Generator, over: list[int]) -> None:

    def expression(x: Any) -> Any:
        centered = x - x.mean(over, keepdim=True)
        return centered / centered.square().mean(over, keepdim=True).sqrt()

    operator = Operator("MeanVarianceNormalization", [_normal(rng, 3, 4, 5, 6)], {"axes": over}, opset=13)
    check(operator, expression, double=False)  # its function body is of float alone


@pytest.mark.parametrize("p", [None, 1, 2])
@pytest.mark.parametrize("axis", [None, 1, -2])
def test_lp_normalization(rng: np.random.Generator, p: int | None, axis: int | None) -> None:
    attributes = ({} if p is None else {"p": p}) | ({} if axis is None else {"axis": axis})
    for opset in (13, 21):
        check(
            Operator("LpNormalization", [_normal(rng, 3, 4, 5)], attributes, opset=opset),
            lambda x: x / torch.linalg.vector_norm(x, ord=p or 2, dim=-1 if axis is None else axis, keepdim=True),
        )


@pytest.mark.parametrize("size", [3, 5, 1])
@pytest.mark.parametrize("shape", [(2, 7, 3, 4), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_lrn(rng: np.random.Generator, size: int, shape: tuple[int, ...], symbolic: bool) -> None:
    """By its definition: the channels from ⌊(n − 1) / 2⌋ before to ⌈(n − 1) / 2⌉ after."""
    attributes = {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 1.5}

    def expression(x: Any) -> Any:
        sums = []
        for i in range(shape[1]):
            low, high = max(i - (size - 1) // 2, 0), i + -(-(size - 1) // 2) + 1
            sums.append(x[:, low:high].square().sum(1))
        return x / (1.5 + 0.5 / size * torch.stack(sums, 1)) ** 0.6

    check(
        Operator("LRN", [3 * _normal(rng, *shape)], attributes, opset=13, symbolic=symbolic), expression, builder=False
    )


def test_shapes_are_known_behind_a_group_normalization(rng: np.random.Generator) -> None:
    operator = Operator(
        "GroupNormalization", [_normal(rng, 2, 6, 3), _normal(rng, 6), _normal(rng, 6)], {"num_groups": 3}, opset=21
    )
    assert operator.model(np.float32).graph.outputs[0].shape == [2, 6, 3]
