"""Caffe's pooling, and the layers of forks that make images larger or smaller, against NumPy and PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.converters.caffe_checks import (
    caffe_pool,
    check,
    one,
)

POOLINGS = [
    # size, kernel, stride, pad
    ((6, 7), (3, 3), (2, 2), (0, 0)),
    ((7, 8), (3, 3), (2, 2), (1, 1)),
    ((8, 9), (3, 2), (2, 2), (1, 0)),
    ((5, 5), (2, 2), (2, 2), (1, 1)),  # the last window would start in the end padding
    ((6, 6), (5, 5), (3, 3), (2, 2)),
    ((7, 10), (4, 3), (3, 4), (3, 2)),
    ((9, 12), (2, 3), (2, 3), (0, 0)),
    ((12, 13), (3, 3), (1, 1), (1, 1)),
    ((3, 3), (3, 3), (3, 3), (0, 0)),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), POOLINGS)
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("free", [True, False], ids=["any size", "known size"])
@pytest.mark.training
def test_pooling(
    tmp_path: Path,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    average: bool,
    ceil: bool,
    free: bool,
    rng: np.random.Generator,
) -> None:
    x = rng.normal(size=(2, 3, *size)).astype(np.float32) - 5
    words = {"kernel": kernel, "stride": stride, "pad": pad}
    fields = " ".join(f"{k}_{a}: {n}" for k, pair in words.items() for a, n in zip("hw", pair, strict=True))
    mode = "" if ceil else "round_mode: FLOOR"
    text = one("Pooling", f"pooling_param {{ pool: {'AVE' if average else 'MAX'} {fields} {mode} }}")
    expected = caffe_pool(x, kernel, stride, pad, average, ceil)
    check(tmp_path, text, [x], [expected], shape="3x?x?" if free else None)


def test_max_pooling_of_nothing_is_the_lowest_number(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 1, 4, 4)).astype(np.float32)
    expected = caffe_pool(x, (1, 1), (2, 2), (0, 0), average=False)
    assert expected.shape == (1, 1, 3, 3)  # Caffe rounds 3 / 2 up, and the third window is behind the input
    assert expected.min() == np.finfo(np.float32).min
    check(tmp_path, one("Pooling", "pooling_param { kernel_size: 1 stride: 2 }"), [x], [expected])


def test_stochastic_pooling_weighs_by_size(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.random((2, 3, 4, 6), np.float32) + 0.1
    windows = x.reshape(2, 3, 2, 2, 3, 2).transpose(0, 1, 2, 4, 3, 5).reshape(2, 3, 2, 3, 4)
    expected = (windows**2).sum(-1) / windows.sum(-1)
    text = one("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }")
    check(tmp_path, text, [x], [expected])


@pytest.mark.parametrize(("size", "method"), [((8, 8), "MAX"), ((8, 8), "AVE"), ((7, 10), "MAX"), ((9, 11), "AVE")])
def test_spatial_pyramid_pooling(tmp_path: Path, size: tuple[int, int], method: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, *size)).astype(np.float32)
    parts = []
    for bins in (1, 2, 4):
        kernel = tuple(-(-s // bins) for s in size)
        pad = tuple((k * bins - s + 1) // 2 for k, s in zip(kernel, size, strict=True))
        parts.append(caffe_pool(x, kernel, kernel, pad, method == "AVE").reshape(2, -1))  # type: ignore[arg-type]
    text = one("SPP", f"spp_param {{ pyramid_height: 3 pool: {method} }}")
    check(tmp_path, text, [x], [np.concatenate(parts, 1)])


@pytest.mark.parametrize(("params", "size"), [
    ("height: 9 width: 4", (9, 4)),
    ("zoom_factor: 3", (10, 13)),
    ("shrink_factor: 2", (2, 3)),
    ("shrink_factor: 2 zoom_factor: 3", (4, 7)),
    ("height: 1 width: 1", (1, 1)),
])  # fmt: skip
@pytest.mark.parametrize("free", [True, False])
def test_interp(tmp_path: Path, params: str, size: tuple[int, int], free: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(x), size, mode="bilinear", align_corners=True)
    text = one("Interp", f"interp_param {{ {params} }}")
    check(tmp_path, text, [x], [expected.numpy()], shape="3x?x?" if free else None)


def test_interp_cuts_its_edges_first(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    cut = torch.tensor(x[:, :, 1:-2, 1:-2])
    expected = torch.nn.functional.interpolate(cut, (5, 9), mode="bilinear", align_corners=True)
    text = one("Interp", "interp_param { height: 5 width: 9 pad_beg: -1 pad_end: -2 }")
    check(tmp_path, text, [x], [expected.numpy()])


def test_upsample_repeats_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    check(tmp_path, one("Upsample", "upsample_param { scale: 3 }"), [x], [x.repeat(3, 2).repeat(3, 3)])


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_upsample_puts_maxima_back(tmp_path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, *size)).astype(np.float32)
    out = f"upsample_h: {size[0]} upsample_w: {size[1]}"
    text = f"""layer {{ name: "pool" type: "Pooling" bottom: "x" top: "p" top: "places"
                        pooling_param {{ kernel_size: 2 stride: 2 }} }}
               layer {{ name: "up" type: "Upsample" bottom: "p" bottom: "places" top: "up"
                        upsample_param {{ {out} }} }}"""
    pooled, places = torch.nn.functional.max_pool2d(torch.tensor(x), 2, ceil_mode=True, return_indices=True)
    expected = torch.zeros(2, 3, size[0] * size[1]).scatter(2, places.flatten(2), pooled.flatten(2))
    check(tmp_path, text, [x], [expected.reshape(x.shape).numpy()])
