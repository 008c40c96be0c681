"""Pooling."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import surgery
from surgery import runtime
from tests.autodiff.checks import Operator, check, spread
from tests.graphs import parse

pytestmark = pytest.mark.training


def windows(x: torch.Tensor, attributes: dict[str, Any], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Every window's elements, `fill` outside the input, and how many of them the padded input holds.

    Written from the operators' definition, element by element.
    """
    sizes, kernel = list(x.shape[2:]), attributes["kernel_shape"]
    spatial = len(kernel)
    strides, dilations = attributes.get("strides", [1] * spatial), attributes.get("dilations", [1] * spatial)
    pads, auto = attributes.get("pads", [0] * 2 * spatial), attributes.get("auto_pad", "NOTSET")
    starts: list[list[int]] = []
    limits: list[int] = []
    for i, (n, k, s, d) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        span = (k - 1) * d + 1
        if auto == "NOTSET":
            begin, end = pads[i], pads[spatial + i]
            room = n + begin + end - span
            count = (-(-room // s) if attributes.get("ceil_mode") else room // s) + 1
            if attributes.get("ceil_mode") and (count - 1) * s >= n + begin:  # would start in the padding after
                count -= 1
        elif auto == "VALID":
            begin = end = 0
            count = (n - span) // s + 1
        else:
            count = -(-n // s)
            total = max((count - 1) * s + span - n, 0)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
            end = total - begin
        starts.append([j * s - begin for j in range(count)])
        limits.append(n + end)
    shape = [len(s) for s in starts]
    values, counts = [], []
    for start in itertools.product(*starts):
        places = list(
            itertools.product(
                *[[a + j * d for j in range(k)] for a, k, d in zip(start, kernel, dilations, strict=True)]
            )
        )
        elements = [
            x[(slice(None), slice(None), *place)]
            if all(0 <= p < n for p, n in zip(place, sizes, strict=True))
            else torch.full(x.shape[:2], fill, dtype=x.dtype)
            for place in places
        ]
        values.append(torch.stack(elements, -1))
        counts.append(sum(all(p < m for p, m in zip(place, limits, strict=True)) for place in places))
    stacked = torch.stack(values, 2)
    return stacked.reshape(*x.shape[:2], *shape, -1), torch.tensor(counts, dtype=x.dtype).reshape(shape)


def max_pool(attributes: dict[str, Any]) -> Any:
    return lambda x: windows(x, attributes, -torch.inf)[0].amax(-1)


def average_pool(attributes: dict[str, Any]) -> Any:
    def expression(x: torch.Tensor) -> torch.Tensor:
        values, counts = windows(x, attributes, torch.nan)
        if attributes.get("count_include_pad"):
            return values.nan_to_num(0).sum(-1) / counts
        return values.nanmean(-1)

    return expression


def lp_pool(attributes: dict[str, Any]) -> Any:
    p = attributes.get("p", 2)
    return lambda x: windows(x, attributes, 0)[0].abs().pow(p).sum(-1).pow(1 / p)


EXPRESSIONS = {"MaxPool": max_pool, "AveragePool": average_pool, "LpPool": lp_pool}

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "2x2 by 2": ((2, 3, 6, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "2x2 by 2, rest": ((2, 3, 7, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "3x3 by 2": ((2, 3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "3x3 by 2 padded": ((2, 3, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3x3 by 1 padded": ((1, 3, 5, 4), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "3x2 by 1": ((1, 3, 5, 4), {"kernel_shape": [3, 2]}),
    "unequal": ((2, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [1, 3], "pads": [1, 0, 2, 1]}),
    "gaps": ((2, 2, 9, 11), {"kernel_shape": [2, 2], "strides": [3, 4]}),
    "ceil": ((2, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "ceil padded": ((2, 2, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    "ceil 2x2": ((1, 2, 5, 7), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "same upper": ((2, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((2, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "valid": ((2, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
    "1-D": ((2, 3, 11), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "3-D": ((1, 2, 4, 5, 6), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 3], "pads": [1, 1, 0, 0, 1, 1]}),
}
DILATED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dilated": ((2, 2, 9, 8), {"kernel_shape": [3, 2], "dilations": [2, 3]}),
    "dilated by 2": (
        (1, 2, 9, 8),
        {"kernel_shape": [3, 2], "dilations": [2, 2], "strides": [2, 3], "pads": [1, 1, 1, 0]},
    ),
    "dilated, ceil": ((1, 2, 10, 9), {"kernel_shape": [2, 3], "dilations": [2, 2], "strides": [3, 2], "ceil_mode": 1}),
    "dilated 1-D": ((1, 2, 12), {"kernel_shape": [3], "dilations": [3], "strides": [2]}),
}


def _check(rng: np.random.Generator, op_type: str, shape: tuple[int, ...], attributes: Any, **kwargs: Any) -> None:
    x = spread(rng, *shape)
    # The builder errs for an AveragePool with auto_pad, dilations or three axes.
    plain = "auto_pad" not in attributes and "dilations" not in attributes and len(shape) < 5
    # ONNX Runtime 1.19 counts what overhangs the padding; then the runtime itself is the only oracle.
    overhangs = attributes.get("ceil_mode") and attributes.get("count_include_pad")
    trusted = not (overhangs and runtime.load_runtime().__version__.startswith("1.19."))
    check(
        Operator(op_type, [x], attributes, **kwargs),
        EXPRESSIONS[op_type](attributes) if trusted else None,
        builder=op_type != "AveragePool" or plain,
    )


@pytest.mark.parametrize("name", [*CASES, *DILATED])
@pytest.mark.parametrize("opset", [13, 21])
def test_max_pool(rng: np.random.Generator, name: str, opset: int) -> None:
    _check(rng, "MaxPool", *(CASES | DILATED)[name], opset=opset)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool(rng: np.random.Generator, name: str, count_include_pad: int) -> None:
    shape, attributes = CASES[name]
    _check(rng, "AveragePool", shape, attributes | {"count_include_pad": count_include_pad}, opset=13)


@pytest.mark.parametrize("name", [*CASES, *DILATED])
def test_average_pool_of_a_new_operator_set(rng: np.random.Generator, name: str) -> None:
    _check(rng, "AveragePool", *(CASES | DILATED)[name], opset=19)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("ceil")])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(rng: np.random.Generator, name: str, p: int) -> None:
    shape, attributes = CASES[name]
    _check(rng, "LpPool", shape, attributes | {"p": p}, opset=13)


@pytest.mark.parametrize("name", [*DILATED, "ceil", "ceil padded", "ceil 2x2"])
def test_lp_pool_of_a_new_operator_set(rng: np.random.Generator, name: str) -> None:
    _check(rng, "LpPool", *(CASES | DILATED)[name], opset=18)


@pytest.mark.parametrize("op_type", EXPRESSIONS)
@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("same")])
def test_pool_of_an_unknown_size(rng: np.random.Generator, op_type: str, name: str) -> None:
    if op_type == "LpPool" and name.startswith("ceil"):
        return
    _check(rng, op_type, *CASES[name], symbolic=True)


@pytest.mark.parametrize("symbolic", [False, True])
def test_global_pool(rng: np.random.Generator, symbolic: bool) -> None:
    x = spread(rng, 2, 3, 4, 5)
    check(Operator("GlobalAveragePool", [x], opset=13, symbolic=symbolic), lambda x: x.mean((2, 3), keepdim=True))
    check(Operator("GlobalMaxPool", [x], opset=13, symbolic=symbolic), lambda x: x.amax((2, 3), keepdim=True))
    for p in (1, 2, 3):
        check(
            Operator("GlobalLpPool", [x], {"p": p}, opset=13, symbolic=symbolic),
            lambda x, p=p: x.abs().pow(p).sum((2, 3), keepdim=True).pow(1 / p),
        )


def test_max_pool_whose_places_count_columns_first(rng: np.random.Generator) -> None:
    """storage_order 1 changes what output 1 means, not the gradient."""
    attributes = CASES["3x3 by 2"][1] | {"storage_order": 1}
    for outputs in (1, 2):
        check(
            Operator("MaxPool", [spread(rng, 2, 3, 7, 8)], attributes, outputs=outputs, through=[0]),
            max_pool(attributes),
            builder=False,
        )


@pytest.mark.parametrize("kernel", [[2, 2], [3, 3]])
def test_max_pool_of_what_is_no_number_does_not_end_the_run(kernel: list[int]) -> None:
    """A training that diverges is to say so by its loss."""
    body = f"y = MaxPool<kernel_shape = {kernel}, strides = [2, 2]>(x)"
    model = surgery.gradient(parse("(float[1,1,7,7] x) => (float[1,1,A,B] y)", body, {}), of="y", wrt=["x"], weight=1.0)
    x = np.full((1, 1, 7, 7), np.nan, np.float32)
    _, gradient = runtime.session(model, ["CPUExecutionProvider"]).run(None, {"x": x})
    assert gradient.shape == x.shape


@st.composite
def pools(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape and attributes of a pooling that has at least one window and none without an element."""
    spatial = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))

    kernel, strides = each(1, 4 - (spatial == 3)), each(1, 3)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    begin, end = ([draw(st.integers(0, (k - 1) // 2)) for k in kernel] for _ in range(2))
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = begin + end
    else:
        attributes["auto_pad"] = auto
        attributes["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    sizes = [k + r for k, r in zip(kernel, each(0, 4), strict=True)]
    return (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *sizes), attributes


@settings(max_examples=15, deadline=None)
@given(pools(), st.sampled_from(["MaxPool", "AveragePool"]), st.sampled_from([13, 17, 20]), st.booleans())
def test_any_pool(case: tuple[tuple[int, ...], dict[str, Any]], op_type: str, opset: int, include: bool) -> None:
    shape, attributes = case
    if op_type == "AveragePool":
        attributes = attributes | {"count_include_pad": int(include)}
    _check(np.random.default_rng(2), op_type, shape, attributes, opset=opset)
