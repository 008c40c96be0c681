"""Torch7 networks against OpenCV's own reader of .t7 files, for the modules that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert
from converters.compare import compare
from tests.converters.torch7_files import Longs, Obj, write_t7
from tests.converters.torch7_files import module as m

RNG = np.random.default_rng(1)


def n(*shape: int) -> np.ndarray:
    return (0.3 * RNG.standard_normal(shape)).astype(np.float32)


def conv(inputs: int, outputs: int, kernel: int, pad: int = 0) -> Obj:
    sizes = {"nInputPlane": inputs, "nOutputPlane": outputs, "kW": kernel, "kH": kernel, "dW": 1, "dH": 1}
    return m(
        "SpatialConvolution", **sizes, padW=pad, padH=pad, weight=n(outputs, inputs, kernel, kernel), bias=n(outputs)
    )


def norm(channels: int) -> Obj:
    statistics = {"running_mean": n(channels), "running_var": np.abs(n(channels)) + 0.5}
    return m("SpatialBatchNormalization", **statistics, weight=n(channels), bias=n(channels), eps=1e-5, affine=True)


def pool(kind: str, kernel: int, stride: int, pad: int = 0, **fields: Any) -> Obj:
    return m(f"Spatial{kind}Pooling", kW=kernel, kH=kernel, dW=stride, dH=stride, padW=pad, padH=pad, **fields)


FLAT = m("View", size=Longs([-1]), numElements=1, numInputDims=3)
WINDOW = {"nInputPlane": 3, "nOutputPlane": 2, "kW": 3, "kH": 3}
NETS = {
    "residual": [
        conv(3, 4, 3, 1), norm(4), m("ReLU", inplace=True),
        m("ConcatTable", m("Sequential", conv(4, 4, 3, 1), norm(4)), m("Identity")), m("CAddTable"), m("ReLU"),
    ],
    "inception": [
        m("Concat", conv(3, 2, 1), m("Sequential", conv(3, 2, 1), conv(2, 3, 3, 1)),
          m("Sequential", pool("Max", 3, 1, 1, ceil_mode=False), conv(3, 2, 1)), dimension=2),
    ],
    "pooling": [
        pool("Max", 3, 2, ceil_mode=True), pool("Average", 2, 2, ceil_mode=False, count_include_pad=True, divide=True),
    ],
    "lrn": [m("SpatialCrossMapLRN", size=3, alpha=0.5, beta=0.75, k=1)],
    "full": [m("SpatialFullConvolution", **WINDOW, dW=2, dH=2, padW=1, padH=1, adjW=1, adjH=1, weight=n(3, 2, 3, 3),
               bias=n(2))],
    "dilated": [m("SpatialDilatedConvolution", **WINDOW, dW=1, dH=1, padW=2, padH=2, dilationW=2, dilationH=2,
                  weight=n(2, 3, 3, 3), bias=n(2))],
    "prelu": [m("PReLU", nOutputPlane=3, weight=np.abs(n(3)))],
    "elu": [m("ELU", alpha=1)],
    "zero padding": [m("SpatialZeroPadding", pad_l=1, pad_r=1, pad_t=2, pad_b=0)],
    "join": [m("ConcatTable", conv(3, 2, 1), conv(3, 3, 1)), m("JoinTable", dimension=2)],
    "upsampling": [m("SpatialUpSamplingNearest", scale_factor=2)],
    "constant": [m("MulConstant", constant_scalar=3, inplace=False)],
    "log softmax": [FLAT, m("LogSoftMax")],
    "normalize": [FLAT, m("Normalize", p=2, eps=1e-10)],
    "reshape": [m("Reshape", size=Longs([3, 81]), nelement=243, batchMode=True)],
}  # fmt: skip


@pytest.mark.parametrize("ascii", [False, True], ids=["binary", "ASCII"])
@pytest.mark.parametrize("name", NETS)
def test_opencv_computes_the_same(tmp_path: Path, name: str, ascii: bool) -> None:
    path = write_t7(tmp_path, m("Sequential", *NETS[name]), ascii=ascii)
    assert compare(path, convert(path, shape="3x9x9"), shape="3x9x9").relative < 1e-5
