"""Gathering and scattering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autodiff.checks import Operator, check, gradients, spread

pytestmark = pytest.mark.training


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("symbolic", [False, True, {0: [3, "n", 5]}])
@pytest.mark.parametrize("indices", [[[0, 2], [2, -1]], [1, 1], 2, -1, [0]])
def test_gather(rng: np.random.Generator, axis: int, opset: int, symbolic: Any, indices: Any) -> None:
    index = np.array(indices, np.int64)
    operator = Operator("Gather", [_normal(rng, 3, 4, 5), index], {"axis": axis}, opset=opset, symbolic=symbolic)

    def expression(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        parts = x.index_select(axis, i.flatten() % x.shape[axis])
        a = axis % x.ndim
        return parts.reshape(x.shape[:a] + i.shape + x.shape[a + 1 :])

    check(operator, expression, builder=False)


def test_gather_of_embeddings(rng: np.random.Generator) -> None:
    operator = Operator("Gather", [_normal(rng, 10, 4), rng.integers(0, 10, (2, 7))], fed=[1], symbolic={1: ["n", "t"]})
    check(operator, lambda table, i: torch.nn.functional.embedding(i, table))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("symbolic", [False, True])
def test_gather_elements(rng: np.random.Generator, axis: int, symbolic: bool) -> None:
    inputs = [_normal(rng, 3, 4), rng.integers(0, 3, (3, 4))]
    operator = Operator("GatherElements", inputs, {"axis": axis}, opset=13, symbolic=symbolic)
    check(operator, lambda x, i: x.gather(axis, i))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("indices", "batch_dims"),
    [([[0, 1], [2, 3], [0, 1]], 0), ([[2], [2]], 0), ([[[1]], [[0]], [[1]]], 1), ([[1, 2], [1, 2], [-1, 0]], 1)],
)
def test_gather_nd(rng: np.random.Generator, indices: Any, batch_dims: int, symbolic: bool) -> None:
    index = np.array(indices, np.int64)
    operator = Operator("GatherND", [_normal(rng, 3, 4, 5), index], {"batch_dims": batch_dims}, symbolic=symbolic)

    def expression(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        if not batch_dims:
            return x[tuple(i.unbind(-1))]
        return torch.stack([part[tuple(own.unbind(-1))] for part, own in zip(x, i, strict=True)])

    check(operator, expression, builder=False)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_top_k(rng: np.random.Generator, largest: int, axis: int) -> None:
    operator = Operator(
        "TopK", [spread(rng, 3, 4), np.array([2], np.int64)], {"axis": axis, "largest": largest}, outputs=2, through=[0]
    )
    check(operator, lambda x, _: x.topk(2, dim=axis, largest=bool(largest)).values)


def test_top_k_without_its_indices(rng: np.random.Generator) -> None:
    operator = Operator("TopK", [spread(rng, 3, 4), np.array([2], np.int64)], outputs=2, through=[0])
    model = operator.model(np.float32)
    model.graph.outputs.pop()
    model.graph[0].outputs[1].name = ""
    from surgery.autodiff import backward

    found = backward(model.graph, {model.graph.outputs[0]: model.graph.outputs[0]}, [model.graph.inputs[0]])
    assert len(found) == 1
    assert model.graph[0].outputs[1].name


REDUCTIONS = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_elements(rng: np.random.Generator, axis: int, reduction: str) -> None:
    values = spread(rng, 20)
    indices = np.argsort(rng.random((2, 4)), 0 if axis == 0 else 1)
    if reduction != "none":
        indices[0] = indices[1]
    inputs = [values[:12].reshape(3, 4), indices, values[12:].reshape(2, 4)]
    opset = 18 if reduction in ("max", "min") else 16 if reduction != "none" else 13
    attributes = {"axis": axis} | ({} if reduction == "none" else {"reduction": reduction})

    def expression(x: torch.Tensor, i: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        how = REDUCTIONS[reduction]
        return x.scatter(axis, i, updates) if how is None else x.scatter_reduce(axis, i, updates, how)

    check(Operator("ScatterElements", inputs, attributes, opset=opset), expression)


@pytest.mark.parametrize(("reduction", "torch_name"), [("max", "amax"), ("min", "amin"), ("mul", "prod")])
def test_scatter_of_equal_and_zero_updates(reduction: str, torch_name: str) -> None:
    x = np.array([[2, 0, 1]], np.float32)
    updates = np.array([[2, 2, 0, 0, 0, 5]], np.float32)
    indices = np.array([[0, 0, 1, 1, 2, 2]], np.int64)
    operator = Operator("ScatterElements", [x, indices, updates], {"axis": 1, "reduction": reduction}, opset=18)
    expression = lambda x, i, u: x.scatter_reduce(1, i, u, torch_name)  # noqa: E731
    check(operator, expression, differences=reduction == "mul")


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(rng: np.random.Generator, reduction: str) -> None:
    values = spread(rng, 21)
    index = np.array([[2], [0]] if reduction != "add" else [[2], [2]], np.int64)
    inputs = [values[:15].reshape(5, 3), index, values[15:].reshape(2, 3)]
    opset = 18 if reduction in ("max", "min") else 16 if reduction != "none" else 13
    attributes = {} if reduction == "none" else {"reduction": reduction}

    def expression(x: torch.Tensor, i: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        rows = i.expand(2, 3)
        how = REDUCTIONS[reduction]
        return x.scatter(0, rows, updates) if how is None else x.scatter_reduce(0, rows, updates, how)

    check(Operator("ScatterND", inputs, attributes, opset=opset), expression)


@st.composite
def _gathers(draw: st.DrawFn) -> tuple[list[int], int, list[int]]:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return shape, axis, draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=4))


@given(case=_gathers(), symbolic=st.booleans(), fed=st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_gather(case: tuple[list[int], int, list[int]], symbolic: bool, fed: bool) -> None:
    shape, axis, indices = case
    x = _normal(np.random.default_rng(0), *shape)
    inputs = [x, np.array(indices, np.int64)]
    operator = Operator("Gather", inputs, {"axis": axis}, symbolic=symbolic, fed=[1] if fed else [])
    check(operator, lambda x, i: x.index_select(axis, i), builder=False)


@given(case=_gathers(), reduction=st.sampled_from(["add", "max"]))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_scatter(case: tuple[list[int], int, list[int]], reduction: str) -> None:
    shape, axis, indices = case
    updates_shape = list(shape)
    updates_shape[axis] = len(indices)
    values = spread(np.random.default_rng(0), int(np.prod(shape) + np.prod(updates_shape)))
    place = [1] * len(shape)
    place[axis] = -1
    index = np.broadcast_to(np.array(indices, np.int64).reshape(place), updates_shape)
    x, updates = values[: np.prod(shape)].reshape(shape), values[np.prod(shape) :].reshape(updates_shape)
    operator = Operator(
        "ScatterElements", [x, np.array(index), updates], {"axis": axis, "reduction": reduction}, opset=18
    )
    check(operator, lambda x, i, u: x.scatter_reduce(axis, i, u, REDUCTIONS[reduction]))


def test_many_additions_to_one_place() -> None:
    """ScatterND of ONNX Runtime 1.19 loses additions when it runs in threads; what gradients use does not."""
    table = np.zeros((2, 64), np.float32)
    indices = np.zeros(2000, np.int64)
    found = gradients(Operator("Gather", [table, indices]), {0: np.ones((2000, 64), np.float32)})[0]
    np.testing.assert_array_equal(found, np.repeat(np.array([[2000], [0]], np.float32), 64, 1))
