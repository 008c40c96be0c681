"""Padding, resizing, and moving channels into space and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from surgery import runtime
from tests.autodiff.checks import Operator, check

pytestmark = pytest.mark.training

EMPTY = np.zeros(0, np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _as_onnx(x: torch.Tensor, pads: list[int], mode: str) -> torch.Tensor:
    half = len(pads) // 2
    flat = [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
    return F.pad(x, flat, mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode))


@pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 0, 3], [1, 0, -1, 2, 0, 2, 2, -1]], ids=str)
@pytest.mark.parametrize("fed", [[], [1]], ids=["constant", "fed"])
@pytest.mark.parametrize("opset", [13, 21])
def test_pad_by_a_constant(rng: np.random.Generator, pads: list[int], fed: list[int], opset: int) -> None:
    x, amounts = _normal(rng, 2, 3, 4, 5), np.array(pads)
    half = len(pads) // 2
    flat = [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
    check(Operator("Pad", [x, amounts], opset=opset, fed=fed, wrt=[0]), lambda x, *_: F.pad(x, flat))
    fill = np.array(0.7, np.float32)

    def expression(x: Any, _: Any, fill: Any) -> Any:
        return F.pad(x, flat) + fill * (1 - F.pad(torch.ones_like(x), flat))

    check(Operator("Pad", [x, amounts, fill], opset=opset, fed=fed), expression, builder=False)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("fed", [[], [1]], ids=["constant", "fed"])
@pytest.mark.parametrize("symbolic", [False, True])
def test_pad_that_repeats(rng: np.random.Generator, mode: str, fed: list[int], symbolic: bool) -> None:
    x, pads = _normal(rng, 2, 3, 4, 5), [0, 0, 1, 2, 0, 0, 3, 4]
    for opset in (19, 21) if mode == "wrap" else (13, 18):
        check(
            Operator("Pad", [x, np.array(pads)], {"mode": mode}, opset=opset, fed=fed, symbolic=symbolic, wrt=[0]),
            lambda x, _: _as_onnx(x, [1, 2, 3, 4], mode),
            builder=False,
        )


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_of_some_axes(rng: np.random.Generator, mode: str) -> None:
    inputs = [_normal(rng, 2, 3, 4, 5), np.array([2, 1, 1, 3]), None, np.array([-1, 2])]
    check(
        Operator("Pad", inputs, {"mode": mode}, opset=18, wrt=[0]),
        lambda x, *_: _as_onnx(x, [1, 2, 3, 1], mode),
        builder=False,
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_pad_of_an_outer_axis_that_repeats(rng: np.random.Generator, axis: int) -> None:
    pads = np.zeros(6, np.int64)
    pads[[axis, 3 + axis]] = 1, 2
    check(
        Operator("Pad", [_normal(rng, 4, 3, 2), pads], {"mode": "edge"}, wrt=[0]),
        lambda x, _: torch.cat([x.narrow(axis, 0, 1), x, *[x.narrow(axis, x.shape[axis] - 1, 1)] * 2], axis),
        builder=False,
    )


@pytest.mark.parametrize("symbolic", [False, True])
def test_depth_to_space_and_back(rng: np.random.Generator, symbolic: bool) -> None:
    x = _normal(rng, 2, 12, 3, 4)

    def dcr(x: Any) -> Any:
        return x.reshape(2, 2, 2, 3, 3, 4).permute(0, 3, 4, 1, 5, 2).reshape(2, 3, 6, 8)

    common: dict[str, Any] = {"opset": 13, "symbolic": symbolic}
    check(Operator("DepthToSpace", [x], {"blocksize": 2}, **common), dcr)
    check(Operator("DepthToSpace", [x], {"blocksize": 2, "mode": "CRD"}, **common), lambda x: F.pixel_shuffle(x, 2))

    def back(x: Any) -> Any:
        return x.reshape(2, 3, 3, 2, 4, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 12, 3, 4)

    check(Operator("SpaceToDepth", [_normal(rng, 2, 3, 6, 8)], {"blocksize": 2}, **common), back)


# What PyTorch's interpolate can say too: attributes, its own arguments.
INTERPOLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nearest": (
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest"},
    ),
    "linear": ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, {"mode": "bilinear"}),
    "corners": (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "bilinear", "align_corners": True},
    ),
    "cubic": (
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel", "cubic_coeff_a": -0.75},
        {"mode": "bicubic"},
    ),
}


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("scales", [(2.0, 2.0), (3.0, 1.0), (1.5, 2.5), (0.5, 0.75)], ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_resize_by_scales(rng: np.random.Generator, name: str, scales: tuple[float, float], symbolic: bool) -> None:
    attributes, arguments = INTERPOLATIONS[name]
    x = _normal(rng, 2, 3, 4, 8)
    for opset in (13, 18, 21):
        inputs = [x, None, np.array([1, 1, *scales], np.float32)]
        operator = Operator(
            "Resize", inputs, attributes, opset=opset, wrt=[0], symbolic={0: list("nchw")} if symbolic else False
        )
        check(operator, lambda x, *_: F.interpolate(x, scale_factor=scales, **arguments))


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(8, 16), (7, 5), (4, 11), (1, 1)], ids=str)
@pytest.mark.parametrize("fed", [[], [3]], ids=["constant", "fed"])
def test_resize_to_sizes(rng: np.random.Generator, name: str, size: tuple[int, int], fed: list[int]) -> None:
    attributes, arguments = INTERPOLATIONS[name]
    inputs = [_normal(rng, 2, 3, 4, 8), None, None, np.array([2, 3, *size])]
    # PyTorch's nearest goes by its own scale, n / m in float32, as ONNX's does.
    check(
        Operator("Resize", inputs, attributes, opset=13, wrt=[0], fed=fed),
        lambda x, *_: F.interpolate(x, size=size, **arguments),
    )


# What only the runtime itself can say: Resize is linear, so differences are exact up to rounding.
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scales", [(2.0, 3.0), (2.0, 1.0), (0.6, 1.3)], ids=str)
def test_nearest_of_every_rounding(
    rng: np.random.Generator, coordinates: str, rounding: str, scales: tuple[float, float]
) -> None:
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    inputs = [_normal(rng, 1, 2, 5, 6), None, np.array([1, 1, *scales], np.float32)]
    check(Operator("Resize", inputs, attributes, opset=13, wrt=[0]), None)


@pytest.mark.parametrize(
    ("attributes", "opset"),
    [
        ({"mode": "cubic", "exclude_outside": 1}, 13),
        ({"mode": "cubic", "cubic_coeff_a": -0.5, "coordinate_transformation_mode": "align_corners"}, 13),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, 13),
        ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, 13),
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, 19),
        ({"mode": "nearest", "coordinate_transformation_mode": "half_pixel_symmetric"}, 19),
    ],
    ids=str,
)
def test_resize_with_other_attributes(rng: np.random.Generator, attributes: dict[str, Any], opset: int) -> None:
    for scales in ([1, 1, 2, 1.7], [1, 1, 0.7, 1]):
        inputs = [_normal(rng, 1, 2, 5, 6), None, np.array(scales, np.float32)]
        check(Operator("Resize", inputs, attributes, opset=opset, wrt=[0]), None)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_antialiasing(rng: np.random.Generator, mode: str) -> None:
    inputs = [_normal(rng, 1, 2, 9, 8), None, None, np.array([1, 2, 4, 5])]
    attributes = {"mode": mode, "antialias": 1, "cubic_coeff_a": -0.5, "exclude_outside": 1}
    check(
        Operator("Resize", inputs, attributes, opset=18, wrt=[0]),
        lambda x, *_: F.interpolate(
            x, size=(4, 5), mode={"linear": "bilinear", "cubic": "bicubic"}[mode], antialias=True
        ),
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_a_crop(rng: np.random.Generator, mode: str) -> None:
    """The second crop reaches outside, where the value is constant."""
    for region in ([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9], [0, 0, -0.3, 0.2, 1, 1, 0.8, 1.4]):
        roi = np.array(region, np.float32)
        attributes = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 2.5}
        for sizes in ([1, 2, 5, 6], [1, 2, 3, 9]):
            inputs = [_normal(rng, 1, 2, 5, 6), roi, None, np.array(sizes)]
            check(Operator("Resize", inputs, attributes, opset=13, wrt=[0]), None)


def test_resize_of_some_axes(rng: np.random.Generator) -> None:
    inputs = [_normal(rng, 2, 3, 4, 8), None, np.array([2.0, 1.5], np.float32)]
    old = runtime.load_runtime().__version__.startswith("1.19.")  # takes no negative axes
    for axes in ([2, 3], *([] if old else [[-2, -1]])):
        attributes = {"mode": "linear", "axes": axes}
        check(
            Operator("Resize", inputs, attributes, opset=18, wrt=[0]),
            lambda x, *_: F.interpolate(x, scale_factor=(2.0, 1.5), mode="bilinear"),
        )


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("symbolic", [False, True])
def test_resize_that_keeps_the_aspect_ratio(rng: np.random.Generator, policy: str, symbolic: bool) -> None:
    attributes = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
    inputs = [_normal(rng, 1, 2, 5, 6), None, None, np.array([7, 11])]
    check(Operator("Resize", inputs, attributes, opset=18, wrt=[0], symbolic=symbolic), None)


def test_resize_of_one_and_three_axes(rng: np.random.Generator) -> None:
    line, block = _normal(rng, 2, 3, 5), _normal(rng, 1, 2, 3, 4, 2)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for size in ([10], [7]):
        operator = Operator("Resize", [line, None, None, np.array([2, 3, *size])], nearest, wrt=[0])
        check(operator, lambda x, *_, size=size: F.interpolate(x, size=size, mode="nearest"))
    for size in ([6, 8, 4], [5, 4, 3]):
        inputs = [block, None, None, np.array([1, 2, *size])]
        check(
            Operator("Resize", inputs, nearest, wrt=[0]),
            lambda x, *_, size=size: F.interpolate(x, size=size, mode="nearest"),
        )
        check(
            Operator("Resize", inputs, {"mode": "linear"}, wrt=[0]),
            lambda x, *_, size=size: F.interpolate(x, size=size, mode="trilinear"),
        )
