"""Convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.autodiff.checks import Operator, check, gradients

pytestmark = pytest.mark.training

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def padded(x: torch.Tensor, pads: list[int]) -> torch.Tensor:
    """`x` padded with zeros as ONNX's `pads` say."""
    half = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])])


def same_pads(sizes: tuple[int, ...], span: list[int], strides: list[int], upper: bool) -> list[int]:
    """What auto_pad=SAME_UPPER or SAME_LOWER amounts to, from its definition: ceil(size / stride) windows."""
    begin, end = [], []
    for size, k, s in zip(sizes, span, strides, strict=True):
        missing = max((int(np.ceil(size / s)) - 1) * s + k - size, 0)
        begin.append(missing // 2 if upper else missing - missing // 2)
        end.append(missing - begin[-1])
    return begin + end


def _check_conv(
    rng: np.random.Generator,
    x: tuple[int, ...],
    w: tuple[int, ...],
    attributes: dict[str, Any],
    *,
    bias: bool = True,
    **kwargs: Any,
) -> None:
    spatial = len(w) - 2
    strides, dilations = attributes.get("strides", [1] * spatial), attributes.get("dilations", [1] * spatial)
    auto = attributes.get("auto_pad", "NOTSET")
    pads = attributes.get("pads", [0] * 2 * spatial)
    if auto.startswith("SAME"):
        span = [(k - 1) * d + 1 for k, d in zip(w[2:], dilations, strict=True)]
        pads = same_pads(x[2:], span, strides, auto == "SAME_UPPER")

    def expression(x: Any, w: Any, b: Any = None) -> Any:
        group = attributes.get("group", 1)
        return CONVOLVE[spatial](padded(x, pads), w, b, stride=strides, dilation=dilations, groups=group)

    inputs = [_normal(rng, *x), _normal(rng, *w)] + [_normal(rng, w[0])] * bias
    # The builder's gradient of a Conv with auto_pad is wrong.
    check(Operator("Conv", inputs, attributes, **kwargs), expression, builder=auto == "NOTSET")


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 3, 7, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "unequal": ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [2, 1], "pads": [1, 0, 1, 1]}),
    "1x1": ((2, 5, 4, 6), (3, 5, 1, 1), {}),
    "1x1 strided": ((2, 5, 7, 6), (3, 5, 1, 1), {"strides": [2, 2]}),
    "1x1 strided, rest": ((2, 5, 8, 9), (3, 5, 1, 1), {"strides": [3, 4]}),
    "7x7 strided": ((1, 3, 16, 17), (4, 3, 7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    "4x4 by 4": ((2, 3, 9, 11), (5, 3, 4, 4), {"strides": [4, 4]}),
    "gaps between windows": ((2, 3, 9, 11), (5, 3, 2, 2), {"strides": [3, 4]}),
    "dilated": ((2, 3, 9, 8), (4, 3, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 2]}),
    "dilated and strided": (
        (1, 2, 11, 12),
        (4, 2, 3, 2),
        {"dilations": [2, 3], "strides": [2, 3], "pads": [1, 1, 2, 0]},
    ),
    "groups": ((2, 6, 7, 6), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "groups strided": ((2, 6, 8, 6), (9, 2, 3, 3), {"group": 3, "strides": [2, 2], "pads": [1, 1, 0, 1]}),
    "groups of 1x1": ((2, 6, 5, 5), (4, 3, 1, 1), {"group": 2}),
    "depthwise": ((2, 5, 7, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
    "depthwise strided": ((2, 5, 8, 9), (5, 1, 3, 3), {"group": 5, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise, two each": ((2, 3, 7, 6), (6, 1, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise dilated": ((2, 3, 9, 9), (3, 1, 3, 3), {"group": 3, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "same upper": ((2, 3, 7, 6), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((2, 3, 7, 6), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same, no stride": ((2, 3, 7, 6), (4, 3, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "valid": ((2, 3, 7, 6), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 1]}),
    "1-D": ((2, 3, 17), (4, 3, 5), {"strides": [2], "pads": [2, 1], "dilations": [2]}),
    "1-D 1x1": ((2, 3, 17), (4, 3, 1), {}),
    "3-D": ((2, 2, 5, 6, 7), (3, 2, 3, 2, 3), {"strides": [1, 2, 2], "pads": [1, 0, 1, 1, 1, 1]}),
    "3-D groups": ((1, 4, 4, 4, 5), (4, 2, 2, 2, 3), {"group": 2, "pads": [1, 1, 1, 0, 0, 0]}),
    "channels": ((2, 16, 5, 6), (3, 16, 3, 2), {"pads": [1, 0, 1, 1]}),
    "channels strided": ((2, 17, 7, 6), (3, 17, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "channels dilated": ((1, 16, 7, 8), (2, 16, 3, 2), {"strides": [1, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1]}),
    "channels in groups": ((2, 32, 5, 4), (4, 16, 3, 3), {"group": 2, "pads": [1, 1, 1, 1], "strides": [1, 2]}),
    "channels of 1-D": ((2, 16, 9), (3, 16, 3), {"strides": [2]}),
    "channels of 3-D": ((1, 32, 3, 4, 3), (4, 16, 2, 2, 1), {"group": 2}),
    "1x1, few places": ((2, 40, 2, 2), (30, 40, 1, 1), {}),
    "1x1, few places, strided": ((2, 40, 3, 4), (30, 40, 1, 1), {"strides": [2, 3]}),
    "channels of many places": ((1, 16, 66, 65), (2, 16, 1, 2), {"pads": [0, 1, 0, 0]}),
    "channels of one example": ((1, 32, 5, 4), (4, 16, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise of many places": ((1, 2, 17, 18), (2, 1, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise, lines dilated": (
        (2, 2, 19, 18),
        (2, 1, 3, 3),
        {"group": 2, "pads": [2, 0, 1, 1], "dilations": [2, 1]},
    ),
    "depthwise, wide": ((2, 3, 9, 8), (3, 1, 5, 7), {"group": 3, "pads": [2, 3, 2, 1]}),
    "depthwise, wide, dilated": ((2, 3, 11, 16), (3, 1, 5, 5), {"group": 3, "pads": [2, 3, 2, 4], "dilations": [1, 2]}),
    "depthwise, padded beyond": ((2, 3, 5, 6), (3, 1, 2, 3), {"group": 3, "pads": [2, 1, 1, 3]}),
    "groups padded beyond": ((2, 4, 5, 6), (4, 2, 2, 3), {"group": 2, "pads": [2, 1, 1, 3]}),
    "depthwise 1-D": ((2, 4, 9), (4, 1, 3), {"group": 4, "strides": [2]}),
    "kernel of the whole": ((3, 4, 5, 6), (7, 4, 5, 6), {}),
    "wide padding": ((1, 2, 4, 4), (3, 2, 3, 3), {"pads": [3, 2, 4, 3]}),
}


@pytest.mark.parametrize("name", CASES)
def test_conv(rng: np.random.Generator, name: str) -> None:
    _check_conv(rng, *CASES[name])


@pytest.mark.parametrize("opset", [13, 16, 18, 21])
def test_conv_at_every_operator_set(rng: np.random.Generator, opset: int) -> None:
    _check_conv(rng, *CASES["groups strided"], opset=opset)
    _check_conv(rng, *CASES["same lower"], opset=opset, bias=False)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("same upper", "same lower")])
def test_conv_of_an_unknown_size(rng: np.random.Generator, name: str) -> None:
    x, w, attributes = CASES[name]
    unknown = ["batch", x[1], *[f"size{i}" for i in range(len(x) - 2)]]
    _check_conv(rng, x, w, attributes, symbolic={0: unknown})


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes and attributes of a Conv that has at least one window."""
    spatial = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))

    kernel, strides, dilations, begin, end = each(1, 3), each(1, 3), each(1, 2), each(0, 2), each(0, 2)
    room = each(0, 5)
    group, per_input, per_output = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [max(k - p - q, 1) + r for k, p, q, r in zip(span, begin, end, room, strict=True)]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = begin + end
    else:
        attributes["auto_pad"] = auto
        sizes = [max(k, n) for k, n in zip(span, sizes, strict=True)]
    if auto.startswith("SAME"):  # ONNX Runtime refuses dilations here, and 1.19 errs where strides exceed the kernel
        attributes |= {"dilations": [1] * spatial, "strides": [min(s, k) for s, k in zip(strides, kernel, strict=True)]}
    batch = draw(st.integers(1, 2))
    return (batch, group * per_input, *sizes), (group * per_output, per_input, *kernel), attributes


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_any_conv(case: tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]) -> None:
    _check_conv(np.random.default_rng(1), *case)


def test_conv_padded_less_than_nothing_by_one_runtime(rng: np.random.Generator) -> None:
    """SAME_UPPER pads nothing here; ONNX Runtime 1.19 starts one element further in, and so would its gradient."""
    x, w = _normal(rng, 1, 1, 3), _normal(rng, 1, 1, 1)
    operator = Operator("Conv", [x, w], {"strides": [3], "auto_pad": "SAME_UPPER"})
    found = gradients(operator, {0: np.ones((1, 1, 1), np.float32)})
    np.testing.assert_allclose(found[0], [[[w.item(), 0, 0]]])
    np.testing.assert_allclose(found[1], [[[x[0, 0, 0]]]])


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    "padded": ((2, 3, 4, 5), (3, 4, 3, 2), {"pads": [1, 0, 1, 1]}),
    "2x2 by 2": ((2, 3, 4, 5), (3, 2, 2, 2), {"strides": [2, 2]}),
    "strided": ((2, 3, 4, 5), (3, 4, 3, 4), {"strides": [2, 3], "pads": [1, 1, 0, 1], "output_padding": [1, 2]}),
    "gaps": ((2, 3, 4, 3), (3, 2, 2, 1), {"strides": [3, 2]}),
    "dilated": ((2, 3, 4, 5), (3, 4, 3, 2), {"dilations": [2, 3], "pads": [1, 1, 1, 0], "strides": [1, 2]}),
    "groups": ((2, 4, 4, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 4, 4, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "1-D": ((2, 3, 7), (3, 2, 4), {"strides": [2], "pads": [1, 1]}),
    "3-D": ((1, 2, 3, 2, 3), (2, 3, 2, 3, 2), {"strides": [1, 2, 2], "pads": [0, 1, 0, 1, 1, 0]}),
}


def _check_transposed(rng: np.random.Generator, name: str, **kwargs: Any) -> None:
    x, w, attributes = TRANSPOSED[name]
    spatial = len(w) - 2
    pads, extra = attributes.get("pads", [0] * 2 * spatial), attributes.get("output_padding", [0] * spatial)

    def expression(x: Any, w: Any, b: Any) -> Any:
        """All that the windows reach, filled up by output_padding, without the padding."""
        function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial]
        strides, dilations = attributes.get("strides", 1), attributes.get("dilations", 1)
        full = function(x, w, stride=strides, dilation=dilations, groups=attributes.get("group", 1))
        full = padded(full, [0] * spatial + extra)
        for i in range(spatial):
            full = full.narrow(2 + i, pads[i], full.shape[2 + i] - pads[i] - pads[spatial + i])
        return full + b.reshape(-1, *[1] * spatial)

    bias = _normal(rng, w[1] * attributes.get("group", 1))
    check(Operator("ConvTranspose", [_normal(rng, *x), _normal(rng, *w), bias], attributes, **kwargs), expression)


@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("symbolic", [False, True])
def test_conv_transpose(rng: np.random.Generator, name: str, symbolic: bool) -> None:
    x = TRANSPOSED[name][0]
    unknown = {0: ["batch", x[1], *[f"s{i}" for i in range(len(x) - 2)]]} if symbolic else False
    _check_transposed(rng, name, symbolic=unknown, opset=13)


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [1, 2]},
        {"auto_pad": "VALID", "strides": [2, 1]},
        {"output_shape": [8, 10], "strides": [2, 2]},
        {"output_shape": [9, 9], "strides": [2, 2]},
        {"output_shape": [7, 11], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"output_shape": [7, 10], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ],
    ids=str,
)
def test_conv_transpose_of_worked_out_padding(rng: np.random.Generator, attributes: dict[str, Any]) -> None:
    """By differences alone: the runtime decides which side gets more of an odd padding."""
    x, w, b = _normal(rng, 2, 3, 4, 5), _normal(rng, 3, 2, 3, 4), _normal(rng, 2)
    check(Operator("ConvTranspose", [x, w, b], attributes, opset=13), None)
