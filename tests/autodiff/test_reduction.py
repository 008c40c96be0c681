"""Reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autodiff.checks import Operator, check, spread

pytestmark = pytest.mark.training


def _prod(x: torch.Tensor, axes: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


REDUCTIONS: dict[str, Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
}


def _operator(op_type: str, x: np.ndarray, axes: tuple[int, ...] | None, opset: int, **kwargs: Any) -> Operator:
    """The axes as an input or as an attribute, as the operator set has it."""
    attributes = dict(kwargs.pop("attributes", {}))
    inputs = [x]
    if axes is not None and (opset >= 18 or op_type == "ReduceSum"):
        inputs.append(np.array(axes, np.int64))
    elif axes is not None:
        attributes["axes"] = list(axes)
    return Operator(op_type, inputs, attributes, opset=opset, **kwargs)


def _values(op_type: str, rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.abs(spread(rng, *shape)) + 0.3 if op_type == "ReduceLogSum" else spread(rng, *shape) + 0.01


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axes", [(1,), (-1, 0), None])
def test_reduction(
    rng: np.random.Generator, op_type: str, opset: int, keep: bool, axes: tuple[int, ...] | None
) -> None:
    operator = _operator(op_type, _values(op_type, rng, 2, 3, 4), axes, opset, attributes={"keepdims": int(keep)})
    expression = REDUCTIONS[op_type]
    # ONNX defines ReduceL2-18 by a function that computes in float32: too coarse for differences in float64.
    exact = (op_type, opset) != ("ReduceL2", 18)
    builder = op_type != "ReduceL2" or keep  # the training build's builder fails without kept dimensions
    check(operator, lambda x, *_: expression(x, axes or (0, 1, 2), keep), double=exact, builder=builder)


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_unknown_sizes_and_axes(rng: np.random.Generator, op_type: str) -> None:
    x = _values(op_type, rng, 2, 3, 4)
    attributes = {"keepdims": 1}
    operator = _operator(op_type, x, (0, -1), 18, symbolic=True, fed=[1], attributes=attributes)
    expression = REDUCTIONS[op_type]
    check(operator, lambda x, _: expression(x, (0, 2), True), double=op_type != "ReduceL2", builder=False)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_over_no_axes(rng: np.random.Generator, op_type: str) -> None:
    inputs = [spread(rng, 2, 3), np.zeros(0, np.int64)]
    check(Operator(op_type, inputs, {"noop_with_empty_axes": 1}, opset=18), lambda x, _: x, builder=False)


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[list[int], tuple[int, ...], bool]:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    return shape, tuple(a - len(shape) if draw(st.booleans()) else a for a in axes), draw(st.booleans())


@given(case=_shapes(), op_type=st.sampled_from(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceProd"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(case: tuple[list[int], tuple[int, ...], bool], op_type: str) -> None:
    shape, axes, keep = case
    x = spread(np.random.default_rng(0), *shape)
    operator = _operator(op_type, x, axes, 18, attributes={"keepdims": int(keep)})
    check(operator, lambda x, _: REDUCTIONS[op_type](x, axes, keep), builder=False)


@pytest.mark.parametrize(("op_type", "expression"), [("ReduceMax", torch.amax), ("ReduceMin", torch.amin)])
def test_equal_elements_share(op_type: str, expression: Callable[..., Any]) -> None:
    x = np.array([[1, 2, 2], [3, 3, 3]], np.float32)
    operator = Operator(op_type, [x], {"axes": [1], "keepdims": 0})
    check(operator, lambda x: expression(x, 1), differences=False)


def test_product_with_zeros() -> None:
    x = np.array([[1, 2, 3], [0, 2, 3], [0, 2, 0]], np.float32)
    check(Operator("ReduceProd", [x], {"axes": [1], "keepdims": 0}), lambda x: x.prod(1))


def test_norm_of_zero() -> None:
    x = np.array([[0, 0], [3, 4]], np.float32)
    check(
        Operator("ReduceL2", [x], {"axes": [1]}),
        lambda x: x.norm(dim=1, keepdim=True),
        differences=False,
        builder=False,
    )


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("fed", [[], [1]])
def test_cum_sum(rng: np.random.Generator, exclusive: int, reverse: int, fed: list[int]) -> None:
    def expression(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        x = x.flip(1) if reverse else x
        y = x.cumsum(1) - (x if exclusive else 0)
        return y.flip(1) if reverse else y

    inputs = [spread(rng, 2, 4), np.array(-1, np.int64)]
    check(Operator("CumSum", inputs, {"exclusive": exclusive, "reverse": reverse}, fed=fed), expression)
