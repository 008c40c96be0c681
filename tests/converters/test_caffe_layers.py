"""Each of Caffe's layers against NumPy as Caffe documents it, or against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import convert
from tests.converters.caffe_checks import (
    Array,
    caffe_pool,
    check,
    one,
    run,
    sigmoid,
    write_net,
)

ELEMENTWISE: list[tuple[str, str, Callable[[Array], Array]]] = [
    ("ReLU", "", lambda x: np.maximum(x, 0)),
    ("ReLU", "relu_param { negative_slope: 0.3 }", lambda x: np.where(x > 0, x, 0.3 * x)),
    ("ReLU6", "", lambda x: np.clip(x, 0, 6)),
    ("ELU", "elu_param { alpha: 0.7 }", lambda x: np.where(x > 0, x, 0.7 * (np.exp(x) - 1))),
    ("Sigmoid", "", sigmoid),
    ("TanH", "", np.tanh),
    ("AbsVal", "", np.abs),
    ("BNLL", "", lambda x: np.log(1 + np.exp(x))),
    ("Power", "power_param { power: 2 scale: 3 shift: -1 }", lambda x: (3 * x - 1) ** 2),
    ("Power", "power_param { scale: 0.5 }", lambda x: 0.5 * x),
    ("Power", "power_param { power: 0 scale: 2 }", np.ones_like),
    ("Exp", "", np.exp),
    ("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }", lambda x: 2 ** (1 + 0.5 * x)),
    ("Log", "log_param { scale: 0.1 shift: 5 }", lambda x: np.log(5 + 0.1 * x)),
    ("Log", "log_param { base: 10 shift: 20 }", lambda x: np.log10(20 + x)),
    ("Threshold", "threshold_param { threshold: 0.2 }", lambda x: (x > np.float32(0.2)).astype(np.float32)),
    ("Clip", "clip_param { min: -0.5 max: 1 }", lambda x: np.clip(x, -0.5, 1)),
    ("Swish", "swish_param { beta: 1.5 }", lambda x: x * sigmoid(1.5 * x)),
    ("Swish", "", lambda x: x * sigmoid(x)),
    ("Dropout", "dropout_param { dropout_ratio: 0.3 }", lambda x: x),
    ("MVN", "", lambda x: (x - x.mean((2, 3), keepdims=True)) / (x.std((2, 3), keepdims=True) + 1e-9)),
    ("MVN", "mvn_param { normalize_variance: false }", lambda x: x - x.mean((2, 3), keepdims=True)),
    (
        "MVN",
        "mvn_param { across_channels: true eps: 0.1 }",
        lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / (x.std((1, 2, 3), keepdims=True) + 0.1),
    ),
    ("Softmax", "", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    ("Softmax", "softmax_param { axis: -1 }", lambda x: np.exp(x) / np.exp(x).sum(3, keepdims=True)),
    ("Flatten", "", lambda x: x.reshape(2, -1)),
    ("Flatten", "flatten_param { axis: 2 }", lambda x: x.reshape(2, 3, -1)),
    ("Flatten", "flatten_param { axis: 1 end_axis: 2 }", lambda x: x.reshape(2, -1, 5)),
    ("Flatten", "flatten_param { axis: 0 end_axis: 1 }", lambda x: x.reshape(-1, 4, 5)),
    ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", lambda x: x.transpose(0, 2, 3, 1)),
    ("Permute", "permute_param { order: 0 order: 3 }", lambda x: x.transpose(0, 3, 1, 2)),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }", lambda x: x.reshape(2, -1)),
    ("Reshape", "reshape_param { shape { dim: 2 dim: -1 dim: 10 } }", lambda x: x.reshape(2, 6, 10)),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: 20 dim: 1 } }", lambda x: x.reshape(2, 3, 20, 1)),
    ("Reshape", "reshape_param { shape { dim: -1 dim: 5 } }", lambda x: x.reshape(-1, 5)),
    ("Reshape", "reshape_param { shape { dim: 20 } axis: 2 }", lambda x: x.reshape(2, 3, 20)),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: 1 num_axes: 0 }", lambda x: x[:, None]),
    ("Reshape", "reshape_param { shape { dim: 12 } axis: 1 num_axes: 2 }", lambda x: x.reshape(2, 12, 5)),
    ("Reshape", "reshape_param { shape { dim: 4 dim: 5 dim: 1 } axis: -3 }", lambda x: x[..., None]),
    ("Tile", "tile_param { axis: 2 tiles: 3 }", lambda x: np.tile(x, (1, 1, 3, 1))),
    ("Reduction", "", lambda x: x.sum()),
    ("Reduction", "reduction_param { operation: ASUM axis: 1 coeff: 2 }", lambda x: 2 * np.abs(x).sum((1, 2, 3))),
    ("Reduction", "reduction_param { operation: SUMSQ axis: -2 }", lambda x: (x * x).sum((2, 3))),
    ("Reduction", "reduction_param { operation: MEAN axis: 2 }", lambda x: x.mean((2, 3))),
    ("LRN", "lrn_param { local_size: 3 alpha: 2 beta: 0.6 k: 1.5 }", lambda x: _lrn(x, 3, 2, 0.6, 1.5)),
    (
        "LRN",
        "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 2 beta: 0.6 k: 9 }",
        lambda x: x / (1 + 2 * caffe_pool(x * x, (3, 3), (1, 1), (1, 1), average=True)) ** 0.6,
    ),
    ("ArgMax", "", lambda x: x.reshape(2, -1).argmax(1).reshape(2, 1, 1, 1)),
    ("ArgMax", "argmax_param { axis: 1 }", lambda x: x.argmax(1)[:, None]),
    ("ArgMax", "argmax_param { axis: 1 top_k: 2 out_max_val: true }", lambda x: np.sort(x, 1)[:, :0:-1][:, :2]),
    ("ArgMax", "argmax_param { top_k: 4 out_max_val: true }", lambda x: _top(x, 4)),
    ("Pooling", "pooling_param { global_pooling: true pool: AVE }", lambda x: x.mean((2, 3), keepdims=True)),
    ("Pooling", "pooling_param { global_pooling: true }", lambda x: x.max((2, 3), keepdims=True)),
    (
        "ShuffleChannel",
        "shuffle_channel_param { group: 3 }",
        lambda x: x.reshape(2, 3, 1, 4, 5).swapaxes(1, 2).reshape(x.shape),
    ),
]


def _lrn(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    half, channels = size // 2, x.shape[1]
    sums = [(x[:, max(0, i - half) : i + half + 1] ** 2).sum(1) for i in range(channels)]
    return x / (k + alpha / size * np.stack(sums, 1)) ** beta


def _top(x: Array, count: int) -> Array:
    flat = x.reshape(len(x), -1)
    places = np.argsort(flat, 1)[:, ::-1][:, :count]
    return np.stack([places, np.take_along_axis(flat, places, 1)], 1)[..., None]


@pytest.mark.parametrize(("type", "params", "reference"), ELEMENTWISE, ids=lambda v: v if isinstance(v, str) else "")
def test_layer_of_one_bottom(
    tmp_path: Path, type: str, params: str, reference: Callable[[Array], Array], rng: np.random.Generator
) -> None:
    x = (3 * rng.normal(size=(2, 3, 4, 5))).astype(np.float32)
    check(tmp_path, one(type, params), [x], [np.asarray(reference(x))])


def test_argmax_takes_the_last_of_equals(tmp_path: Path) -> None:
    x = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)
    check(tmp_path, one("ArgMax", "argmax_param { axis: 1 }"), [x], [np.array([[2.0], [3.0]])])


@pytest.mark.parametrize("shared", [True, False])
def test_prelu(tmp_path: Path, shared: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    slope = rng.normal(size=() if shared else 3).astype(np.float32)
    params = "prelu_param { channel_shared: true }" if shared else ""
    expected = np.where(x > 0, x, x * (slope if shared else slope[:, None, None]))
    check(tmp_path, one("PReLU", params), [x], [expected], {"it": [slope]})


CONVOLUTIONS = [
    ("num_output: 4 kernel_size: 3", (4, 6, 3, 3), {}),
    ("num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 2", (4, 3, 3, 3), {"padding": 1, "stride": 2, "groups": 2}),
    (
        "num_output: 3 kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2 stride_h: 2 stride_w: 1",
        (3, 6, 1, 5),
        {"padding": (0, 2), "stride": (2, 1)},
    ),
    (
        "num_output: 4 kernel_size: 3 kernel_size: 2 dilation: 2 dilation: 3 pad: 2 pad: 1",
        (4, 6, 3, 2),
        {"padding": (2, 1), "dilation": (2, 3)},
    ),
]


@pytest.mark.parametrize(("params", "shape", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(
    tmp_path: Path, params: str, shape: tuple[int, ...], options: dict, bias: bool, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 6, 9, 11)).astype(np.float32)
    weight, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[0]).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.tensor(x), torch.tensor(weight), torch.tensor(b) if bias else None, **options
    )
    text = one("Convolution", f"convolution_param {{ {params} bias_term: {str(bias).lower()} }}")
    check(tmp_path, text, [x], [expected.numpy()], {"it": [weight, b] if bias else [weight]})


def test_convolution_of_volumes_and_of_two_bottoms(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y = (rng.normal(size=(2, 2, 5, 6, 7)).astype(np.float32) for _ in range(2))
    weight, b = rng.normal(size=(3, 2, 3, 3, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    expected = [
        torch.nn.functional.conv3d(torch.tensor(a), torch.tensor(weight), torch.tensor(b)).numpy() for a in (x, y)
    ]
    text = one("Convolution", "convolution_param { num_output: 3 kernel_size: 3 }", "x y", "p q")
    check(tmp_path, text, [x, y], expected, {"it": [weight, b]})


def test_depthwise_convolution_has_a_group_for_each_channel(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 4, 6, 7)).astype(np.float32)
    weight = rng.normal(size=(4, 1, 3, 3)).astype(np.float32)
    expected = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight), groups=4)
    text = one("DepthwiseConvolution", "convolution_param { num_output: 4 kernel_size: 3 bias_term: false }")
    check(tmp_path, text, [x], [expected.numpy()], {"it": [weight]})


def test_deconvolution(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    weight, b = rng.normal(size=(4, 3, 4, 4)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    expected = torch.nn.functional.conv_transpose2d(
        torch.tensor(x), torch.tensor(weight), torch.tensor(b), stride=2, padding=1, groups=2
    )
    text = one("Deconvolution", "convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 2 }")
    check(tmp_path, text, [x], [expected.numpy()], {"it": [weight, b]})


@pytest.mark.parametrize(("params", "shape", "axis"), [
    ("", (5, 60), 1),
    ("axis: 2", (5, 20), 2),
    ("axis: -1", (5, 5), 3),
    ("axis: 0", (5, 120), 0),
    ("transpose: true", (60, 5), 1),
])  # fmt: skip
def test_inner_product(
    tmp_path: Path, params: str, shape: tuple[int, int], axis: int, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    weight, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=5).astype(np.float32)
    rows = x.reshape(*x.shape[:axis], -1)
    expected = rows @ (weight if "transpose" in params else weight.T) + b
    text = one("InnerProduct", f"inner_product_param {{ num_output: 5 {params} }}")
    if axis == 0:  # one product over the whole batch, so its size is fixed
        definition, _ = write_net(tmp_path, text, {"x": x.shape}, {"it": [weight, b]})
        np.testing.assert_allclose(run(convert(definition, batch=2), x)["out"], expected, rtol=1e-5, atol=1e-4)
    else:
        check(tmp_path, text, [x], [expected], {"it": [weight, b]})


def test_embed(tmp_path: Path, rng: np.random.Generator) -> None:
    x = np.array([[0, 2, 1], [4, 4, 3]], np.float32)
    weight, b = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    text = one("Embed", "embed_param { num_output: 7 input_dim: 5 }")
    check(tmp_path, text, [x], [weight[x.astype(int)] + b], {"it": [weight, b]})


@pytest.mark.parametrize(("params", "shape"), [
    ("", (3,)),
    ("axis: 0 num_axes: -1", (2, 3, 4, 5)),
    ("axis: 1 num_axes: 2", (3, 4)),
    ("axis: -1", (5,)),
    ("num_axes: 0", ()),
])  # fmt: skip
@pytest.mark.parametrize("type", ["Scale", "Scale and bias", "Bias"])
def test_scale_and_bias(
    tmp_path: Path, params: str, shape: tuple[int, ...], type: str, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    a, b = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    axis = {(3,): 1, (2, 3, 4, 5): 0, (3, 4): 1, (5,): 3, (): 4}[shape]
    wide = (*shape, *[1] * (4 - axis - len(shape)))
    big_a, big_b = a.reshape(wide), b.reshape(wide)
    name = type.split()[0]
    fields = params + (" bias_term: true" if type == "Scale and bias" else "")
    text = one(name, f"{name.lower()}_param {{ {fields} }}")
    expected = {"Scale": x * big_a, "Scale and bias": x * big_a + big_b, "Bias": x + big_b}[type]
    blobs = {"Scale": [a], "Scale and bias": [a, b], "Bias": [b]}[type]
    definition, _ = write_net(tmp_path, text, {"x": x.shape}, {"it": blobs})
    found = run(convert(definition, batch=2), x)["out"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("axis", "shape"), [(0, (2,)), (0, (2, 3)), (1, (3,)), (1, (3, 4)), (2, (4, 5)), (-1, (5,))])
@pytest.mark.parametrize("type", ["Scale", "Bias"])
def test_scale_and_bias_by_a_second_bottom(
    tmp_path: Path, type: str, axis: int, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    x, y = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    wide = y.reshape(*shape, *[1] * (4 - axis % 4 - len(shape)))
    text = one(type, f"{type.lower()}_param {{ axis: {axis} }}", "x y")
    check(tmp_path, text, [x, y], [x * wide if type == "Scale" else x + wide])


def test_scale_by_a_second_bottom_with_a_bias_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y, bias = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4, 5), (3, 4), (3, 4)))
    text = one("Scale", "scale_param { axis: 1 bias_term: true }", "x y")
    definition, _ = write_net(tmp_path, text, {"x": x.shape, "y": y.shape}, {"it": [bias]})
    found = run(convert(definition, batch=3, shape={"x": [3, 4, 5]}), x[[0, 1, 1]], y)["out"]
    np.testing.assert_allclose(found, x[[0, 1, 1]] * y[..., None] + bias[..., None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("params", "reference"), [
    ("", lambda x, y, z: x + y + z),
    ("operation: PROD", lambda x, y, z: x * y * z),
    ("operation: MAX", lambda x, y, z: np.maximum(np.maximum(x, y), z)),
    ("operation: SUM coeff: 1 coeff: -2 coeff: 0.5", lambda x, y, z: x - 2 * y + 0.5 * z),
])  # fmt: skip
def test_eltwise(tmp_path: Path, params: str, reference: Callable[..., Array], rng: np.random.Generator) -> None:
    x, y, z = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(3))
    check(tmp_path, one("Eltwise", f"eltwise_param {{ {params} }}", "x y z"), [x, y, z], [reference(x, y, z)])


def test_axpy(tmp_path: Path, rng: np.random.Generator) -> None:
    a, x, y = (rng.normal(size=s).astype(np.float32) for s in ((2, 3), (2, 3, 4, 5), (2, 3, 4, 5)))
    check(tmp_path, one("Axpy", "", "x y z"), [a, x, y], [a[:, :, None, None] * x + y])


@pytest.mark.parametrize(("params", "axis"), [("", 1), ("axis: -1", 2), ("concat_dim: 2", 2), ("axis: 0", 0)])
def test_concat(tmp_path: Path, params: str, axis: int, rng: np.random.Generator) -> None:
    x, y = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))
    text = one("Concat", f"concat_param {{ {params} }}", "x y")
    check(tmp_path, text, [x, y], [np.concatenate([x, y], axis)])


@pytest.mark.parametrize(("params", "tops", "parts"), [
    ("", "a b c", lambda x: np.split(x, 3, 1)),
    ("axis: 2 slice_point: 1 slice_point: 3", "a b c", lambda x: np.split(x, [1, 3], 2)),
    ("slice_dim: 2", "a b", lambda x: np.split(x, 2, 2)),
    ("axis: 0", "a b", lambda x: np.split(x, 2, 0)),
])  # fmt: skip
def test_slice(
    tmp_path: Path, params: str, tops: str, parts: Callable[[Array], list[Array]], rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    check(tmp_path, one("Slice", f"slice_param {{ {params} }}", tops=tops), [x], parts(x))


@pytest.mark.parametrize(("params", "part"), [
    ("axis: 2 offset: 1 offset: 2", (slice(None), slice(None), slice(1, 3), slice(2, 5))),
    ("offset: 1", (slice(None), slice(None), slice(1, 3), slice(1, 4))),
    ("axis: 1 offset: 0 offset: 2 offset: 1", (slice(None), slice(0, 2), slice(2, 4), slice(1, 4))),
])  # fmt: skip
@pytest.mark.parametrize("free", [True, False])
def test_crop(tmp_path: Path, params: str, part: tuple[slice, ...], free: bool, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 3, 6, 7)).astype(np.float32), np.zeros((2, 2, 2, 3), np.float32)
    text = one("Crop", f"crop_param {{ {params} }}", "x y")
    check(tmp_path, text, [x, y], [x[part]], shape="x=3x6x7,y=2x?x?" if free else None)


def test_im2col(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    expected = torch.nn.functional.unfold(torch.tensor(x), (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
    text = one("Im2col", "convolution_param { kernel_h: 3 kernel_w: 2 dilation: 1 dilation: 2 pad_h: 1 stride_h: 2 }")
    text = text.replace("stride_h: 2", "pad_w: 0 stride_h: 2 stride_w: 1")
    check(tmp_path, text, [x], [expected.numpy().reshape(2, 18, 3, 5)])


def test_batch_reindex_and_filter(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4)).astype(np.float32)
    check(tmp_path, one("BatchReindex", "", "x y"), [x, np.array([2, 0, 2, 1], np.float32)], [x[[2, 0, 2, 1]]])
    y = np.array([[1], [0], [1]], np.float32)
    check(tmp_path, one("Filter", "", "x y"), [x, y], [x[[0, 2]]])


def test_parameter_is_a_top(tmp_path: Path, rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    text = """layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 3 dim: 4 } } }
              layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "p" top: "sum" }"""
    check(tmp_path, text, [x], [x + weight], {"p": [weight]})
