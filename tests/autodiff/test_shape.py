"""Operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.autodiff.checks import Operator, check

pytestmark = pytest.mark.training


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SYMBOLIC: list[Any] = [False, True, {0: ["batch", 3, 4]}]


@pytest.mark.parametrize("symbolic", SYMBOLIC)
@pytest.mark.parametrize(
    ("op_type", "rest", "attributes", "shape"),
    [
        ("Reshape", [_ints(0, -1)], {}, (2, 12)),
        ("Reshape", [_ints(2, 2, 6)], {"allowzero": 1}, (2, 2, 6)),
        ("Flatten", [], {}, (2, 12)),
        ("Flatten", [], {"axis": 0}, (1, 24)),
        ("Flatten", [], {"axis": -1}, (6, 4)),
        ("Unsqueeze", [_ints(0, -1)], {}, (1, 2, 3, 4, 1)),
        ("Identity", [], {}, (2, 3, 4)),
    ],
)
def test_reshaping(
    rng: np.random.Generator,
    op_type: str,
    rest: list[np.ndarray],
    attributes: dict[str, int],
    shape: Sequence[int],
    symbolic: Any,
) -> None:
    operator = Operator(op_type, [_normal(rng, 2, 3, 4), *rest], attributes, symbolic=symbolic)
    check(operator, lambda x, *_: x.reshape(shape), builder=False)


@pytest.mark.parametrize("axes", [None, _ints(0), _ints(-1, 0)])
def test_squeeze(rng: np.random.Generator, axes: np.ndarray | None) -> None:
    inputs = [_normal(rng, 1, 3, 1)] + ([] if axes is None else [axes])
    check(Operator("Squeeze", inputs), lambda x, *_: x.squeeze(tuple((0, 2) if axes is None else axes.tolist())))


@pytest.mark.parametrize("perm", [None, [1, 2, 0]])
@pytest.mark.parametrize("symbolic", SYMBOLIC)
def test_transpose(rng: np.random.Generator, perm: list[int] | None, symbolic: Any) -> None:
    operator = Operator("Transpose", [_normal(rng, 2, 3, 4)], {"perm": perm} if perm else {}, symbolic=symbolic)
    check(operator, lambda x: x.permute(perm or [2, 1, 0]))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("wrt", [[0, 1, 2], [1], [0, 2]])
@pytest.mark.parametrize("symbolic", [False, True])
def test_concat(rng: np.random.Generator, axis: int, wrt: list[int], symbolic: bool) -> None:
    parts = [np.moveaxis(_normal(rng, n, 2, 3), 0, axis) for n in (1, 3, 2)]
    operator = Operator("Concat", parts, {"axis": axis}, wrt=wrt, symbolic=symbolic)
    check(operator, lambda *x: torch.cat(x, axis), builder=not symbolic)


def test_concat_of_one(rng: np.random.Generator) -> None:
    check(Operator("Concat", [_normal(rng, 2, 3)], {"axis": 1}), lambda x: x)


@pytest.mark.parametrize("through", [[0, 1, 2], [1]])
@pytest.mark.parametrize(
    ("opset", "sizes", "attributes", "symbolic"),
    [
        (13, [3, 1, 2], {"axis": -1}, False),
        (13, [3, 1, 2], {"axis": -1}, True),
        (13, None, {"axis": 1}, False),
        (18, None, {"axis": 1, "num_outputs": 3}, False),
    ],
)
def test_split(
    rng: np.random.Generator,
    opset: int,
    sizes: list[int] | None,
    attributes: dict[str, int],
    through: list[int],
    symbolic: bool,
) -> None:
    inputs = [_normal(rng, 2, 6)] + ([] if sizes is None else [_ints(*sizes)])
    operator = Operator("Split", inputs, attributes, opset=opset, outputs=3, through=through, symbolic=symbolic)
    check(operator, lambda x, *_: [x.split(sizes or 2, 1)[i] for i in through], builder=False)


LAST = 2**63 - 1


@pytest.mark.parametrize("fed", [[], [1, 2, 3, 4]])
@pytest.mark.parametrize("symbolic", SYMBOLIC)
@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        ((_ints(1), _ints(3), _ints(2)), np.s_[:, :, 1:3]),
        ((_ints(0), _ints(LAST), _ints(1)), np.s_[:]),
        ((_ints(-2), _ints(LAST), _ints(-1)), np.s_[:, :, -2:]),
        ((_ints(-9, 1), _ints(-1, 9), _ints(0, 1)), np.s_[:-1, 1:]),
        ((_ints(1, 0), _ints(2, 2)), np.s_[1:2, :2]),
        ((_ints(0, 0), _ints(LAST, LAST), _ints(1, 2), _ints(2, 3)), np.s_[:, ::2, ::3]),
    ],
)
def test_slice(
    rng: np.random.Generator, arguments: tuple[np.ndarray, ...], index: Any, symbolic: Any, fed: list[int]
) -> None:
    x = _normal(rng, 2, 3, 4)
    operator = Operator("Slice", [x, *arguments], symbolic=symbolic, fed=fed[: len(arguments)])
    check(operator, lambda x, *_: x[index], builder=not fed and symbolic is False)


def test_slice_backwards(rng: np.random.Generator) -> None:
    operator = Operator("Slice", [_normal(rng, 5, 2), _ints(-1), _ints(-LAST), _ints(0), _ints(-2)])
    check(operator, lambda x, *_: x[[4, 2, 0]], builder=False)


@pytest.mark.parametrize("symbolic", [False, True])
def test_expand(rng: np.random.Generator, symbolic: bool) -> None:
    operator = Operator("Expand", [_normal(rng, 3, 1), _ints(2, 1, 4)], symbolic=symbolic)
    check(operator, lambda x, _: x.expand(2, 3, 4), builder=not symbolic)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fed", [[], [1]])
def test_tile(rng: np.random.Generator, symbolic: bool, fed: list[int]) -> None:
    operator = Operator("Tile", [_normal(rng, 2, 1, 3), _ints(2, 3, 1)], symbolic=symbolic, fed=fed)
    check(operator, lambda x, _: x.tile(2, 3, 1), builder=not fed and not symbolic)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 1])
def test_trilu(rng: np.random.Generator, upper: int, k: int | None) -> None:
    function = torch.triu if upper else torch.tril
    inputs = [_normal(rng, 2, 3, 4)] + ([] if k is None else [np.array(k, np.int64)])
    check(Operator("Trilu", inputs, {"upper": upper}), lambda x, *_: function(x, k or 0))


def test_reverse_sequence(rng: np.random.Generator) -> None:
    operator = Operator("ReverseSequence", [_normal(rng, 4, 2, 3), _ints(3, 4)])
    check(operator, lambda x, _: torch.stack([x[[2, 1, 0, 3], 0], x[[3, 2, 1, 0], 1]], 1))


@pytest.mark.parametrize("axis", [-1, 0])
def test_one_hot(rng: np.random.Generator, axis: int) -> None:
    inputs = [rng.integers(0, 4, (2, 3)), np.array(4, np.int64), np.array([-0.5, 2.0], np.float32)]

    def expression(i: torch.Tensor, _: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        hot = torch.nn.functional.one_hot(i, 4).movedim(-1, axis).to(values.dtype)
        return values[0] + (values[1] - values[0]) * hot

    check(Operator("OneHot", inputs, {"axis": axis}), expression, builder=False)
