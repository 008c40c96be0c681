"""Matrix products and Einsum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autodiff.checks import Operator, check

pytestmark = pytest.mark.training


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta", "bias"), [(1.0, 1.0, (4,)), (0.5, 2.0, (3, 1)), (1.0, 1.0, None)])
def test_gemm(
    rng: np.random.Generator,
    opset: int,
    trans_a: int,
    trans_b: int,
    alpha: float,
    beta: float,
    bias: tuple[int, ...] | None,
) -> None:
    a = _normal(rng, *((5, 3) if trans_a else (3, 5)))
    b = _normal(rng, *((4, 5) if trans_b else (5, 4)))
    c = None if bias is None else _normal(rng, *bias)
    attributes = {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b}

    def expression(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = alpha * ((a.T if trans_a else a) @ (b.T if trans_b else b))
        return product if c is None else product + beta * c

    inputs = [a, b] if c is None else [a, b, c]
    check(Operator("Gemm", inputs, attributes, opset=opset, symbolic={0: ["n", "k"]}), expression)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4,)),
        ((3, 4), (2, 4, 5)),
        ((1, 3, 4), (2, 4, 5)),
    ],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_matmul(rng: np.random.Generator, a: tuple[int, ...], b: tuple[int, ...], symbolic: bool) -> None:
    right = min(len(a), len(b)) > 1 and not symbolic  # the training build's builder fails on others
    check(Operator("MatMul", [_normal(rng, *a), _normal(rng, *b)], symbolic=symbolic), torch.matmul, builder=right)


@st.composite
def _matmul_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    size = st.integers(1, 3)
    batch = draw(st.lists(size, max_size=3))
    m, k, n = draw(size), draw(size), draw(size)
    shapes = []
    for matrix in ([m, k], [k, n]):
        own = batch[draw(st.integers(0, len(batch))) :]
        shapes.append([draw(st.sampled_from([1, d])) for d in own] + matrix)
    return shapes[0], shapes[1]


@given(shapes=_matmul_shapes(), symbolic=st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_matmul_of_any_broadcast(shapes: tuple[list[int], list[int]], symbolic: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = [_normal(rng, *shape) for shape in shapes]
    check(Operator("MatMul", inputs, symbolic=symbolic), torch.matmul, builder=False)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("bhid,bhjd->bhij", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (1, 4, 5)]),
        ("...ij,kj->...ik", [(2, 3, 4), (5, 4)]),
        ("ij->i", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ij->ji", [(2, 3)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ii->i", [(3, 3)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
        ("ij,kl->il", [(2, 3), (4, 5)]),
        ("b i j , b j -> b i", [(2, 3, 4), (2, 4)]),
    ],
)
def test_einsum(rng: np.random.Generator, equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = [_normal(rng, *shape) for shape in shapes]
    check(Operator("Einsum", inputs, {"equation": equation}), lambda *x: torch.einsum(equation, *x))


def test_einsum_of_unknown_sizes(rng: np.random.Generator) -> None:
    operator = Operator("Einsum", [_normal(rng, 2, 3), _normal(rng, 4, 5)], {"equation": "ij,kl->il"}, symbolic=True)
    check(operator, lambda a, b: torch.einsum("ij,kl->il", a, b))
