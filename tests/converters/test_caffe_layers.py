"""Each of Caffe's layers against NumPy as Caffe documents it, or against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import convert
from surgery.marks import marks
from tests.converters.caffe_checks import caffe_pool, run, write_net

Array = np.ndarray


def check(
    folder: Path,
    layers: str,
    inputs: Sequence[Array],
    expected: Sequence[Array],
    blobs: dict[str, list[Array]] | None = None,
    shape: str | None = None,
) -> dict[str, Array]:
    """Converts a net of inputs x, y, z and `layers`, and compares its outputs in order."""
    names = dict(zip("xyz", (a.shape for a in inputs), strict=False))
    definition, _ = write_net(folder, layers, names, blobs)
    found = run(convert(definition, shape=shape), *inputs)
    assert len(found) == len(expected)
    for (name, array), want in zip(found.items(), expected, strict=True):
        assert array.shape == want.shape
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5, err_msg=name)
    return found


def one(type: str, params: str = "", bottoms: str = "x", tops: str = "out") -> str:
    """The text of one layer named "it"."""
    ends = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layer {{ name: "it" type: "{type}" {" ".join(ends)} {params} }}'


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


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


def batch_norm_blobs(rng: np.random.Generator, total: float = 4.0) -> tuple[list[Array], Array, Array]:
    """The blobs of a BatchNorm of 3 channels, and the mean and variance that they stand for."""
    mean, variance = rng.normal(size=3).astype(np.float32), rng.random(3).astype(np.float32) + 0.5
    return [mean * total, variance * total, np.array([total], np.float32)], mean, variance


def test_batch_norm_divides_by_its_scale_factor(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    expected = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 0.01)
    check(tmp_path, one("BatchNorm", "batch_norm_param { eps: 0.01 }"), [x], [expected], {"it": blobs})


@pytest.mark.parametrize("in_place", [True, False])
def test_batch_norm_and_scale_become_one(tmp_path: Path, in_place: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma, beta = (rng.normal(size=3).astype(np.float32) for _ in range(2))
    first, second = ("n", "n") if in_place else ("n", "out")
    text = f"""
        layer {{ name: "norm" type: "BatchNorm" bottom: "x" top: "{first}" batch_norm_param {{ use_global_stats: true }}
                 param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} }}
        layer {{ name: "scale" type: "Scale" bottom: "{first}" top: "{second}" scale_param {{ bias_term: true }}
                 param {{ lr_mult: 3 }} param {{ decay_mult: 0 }} }}"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    definition, _ = write_net(tmp_path, text, {"x": x.shape}, {"norm": blobs, "scale": [gamma, beta]})
    model = convert(definition)
    assert [n.op_type for n in model.graph] == ["BatchNormalization"]
    assert set(model.graph.initializers) == {"norm.mean", "norm.var", "scale.scale", "scale.bias"}
    table = {name: marks(value) for name, value in model.graph.initializers.items()}
    assert table["scale.scale"].learning_rate == 3
    assert table["scale.bias"].decay == 0
    assert not table["norm.mean"].trainable
    found = run(model, x)[second]
    np.testing.assert_allclose(found, normal * gamma[:, None, None] + beta[:, None, None], rtol=1e-5, atol=1e-5)


def test_batch_norm_that_others_read_keeps_its_scale_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma = rng.normal(size=3).astype(np.float32)
    text = """layer { name: "norm" type: "BatchNorm" bottom: "x" top: "n" }
              layer { name: "scale" type: "Scale" bottom: "n" top: "s" }
              layer { name: "relu" type: "ReLU" bottom: "n" top: "r" }"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    expected = [normal * gamma[:, None, None], np.maximum(normal, 0)]
    check(tmp_path, text, [x], expected, {"norm": blobs, "scale": [gamma]})


def test_batch_norm_behind_a_split_keeps_its_scale_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma = rng.normal(size=3).astype(np.float32)
    text = """layer { name: "norm" type: "BatchNorm" bottom: "x" top: "n" }
              layer { name: "split" type: "Split" bottom: "n" top: "n1" top: "n2" }
              layer { name: "scale" type: "Scale" bottom: "n1" top: "s" }
              layer { name: "relu" type: "ReLU" bottom: "n2" top: "r" }"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    expected = [normal * gamma[:, None, None], np.maximum(normal, 0)]
    check(tmp_path, text, [x], expected, {"norm": blobs, "scale": [gamma]})


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


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize(tmp_path: Path, across: bool, shared: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale = rng.normal(size=() if shared else 3).astype(np.float32)
    norm = np.sqrt((x * x).sum((1, 2, 3) if across else 1, keepdims=True) + 1e-10)
    params = f"norm_param {{ across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} }}"
    expected = x / norm * (scale if shared else scale[:, None, None])
    check(tmp_path, one("Normalize", params), [x], [expected], {"it": [scale]})


def test_im2col(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    expected = torch.nn.functional.unfold(torch.tensor(x), (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
    text = one("Im2col", "convolution_param { kernel_h: 3 kernel_w: 2 dilation: 1 dilation: 2 pad_h: 1 stride_h: 2 }")
    text = text.replace("stride_h: 2", "pad_w: 0 stride_h: 2 stride_w: 1")
    check(tmp_path, text, [x], [expected.numpy().reshape(2, 18, 3, 5)])


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


def lstm(x: Array, marks: Array, weights: list[Array], units: int, start: tuple[Array, Array]) -> list[Array]:
    """Long short-term memory as Caffe's lstm_layer.cpp and lstm_unit_layer.cpp describe it."""
    (w_x, b, w_h), (h, c), outputs = weights, start, []
    for x_t, mark in zip(x, marks[..., None], strict=True):
        gates = x_t @ w_x.T + b + (h * mark) @ w_h.T
        i, f, o = (sigmoid(gates[:, k * units : (k + 1) * units]) for k in range(3))
        c = mark * f * c + i * np.tanh(gates[:, 3 * units :])
        h = o * np.tanh(c)
        outputs.append(h)
    return [np.stack(outputs), h[None], c[None]]


@pytest.mark.parametrize("static", [False, True])
def test_lstm_starts_anew_where_it_is_marked(tmp_path: Path, static: bool, rng: np.random.Generator) -> None:
    t, n, d, u = 5, 2, 3, 4
    x = rng.normal(size=(t, n, d)).astype(np.float32)
    cont = np.array([[0, 0], [1, 1], [1, 0], [0, 1], [1, 1]], np.float32)
    w_x, b, w_h = (rng.normal(size=s).astype(np.float32) for s in ((4 * u, d), (4 * u,), (4 * u, u)))
    zero = np.zeros((n, u), np.float32)
    text = one("LSTM", f"recurrent_param {{ num_output: {u} }}", "x y z" if static else "x y")
    if not static:
        check(tmp_path, text, [x, cont], lstm(x, cont, [w_x, b, w_h], u, (zero, zero))[:1], {"it": [w_x, b, w_h]})
        return
    z, w_z = rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(4 * u, 6)).astype(np.float32)
    whole = np.concatenate([x, np.broadcast_to(z, (t, n, 6))], 2)
    expected = lstm(whole, cont, [np.concatenate([w_x, w_z], 1), b, w_h], u, (zero, zero))[:1]
    check(tmp_path, text, [x, cont, z], expected, {"it": [w_x, b, w_z, w_h]})


def test_lstm_with_its_states_outside(tmp_path: Path, rng: np.random.Generator) -> None:
    t, n, d, u = 3, 2, 3, 4
    x, cont = rng.normal(size=(t, n, d)).astype(np.float32), np.ones((t, n), np.float32)
    blobs = [rng.normal(size=s).astype(np.float32) for s in ((4 * u, d), (4 * u,), (4 * u, u))]
    h, c = (rng.normal(size=(1, n, u)).astype(np.float32) for _ in range(2))
    text = one("LSTM", f"recurrent_param {{ num_output: {u} expose_hidden: true }}", "x y h c", "out h1 c1")
    definition, _ = write_net(
        tmp_path, text, {"x": x.shape, "y": cont.shape, "h": h.shape, "c": c.shape}, {"it": blobs}
    )
    found = run(convert(definition), x, cont, h, c)
    for array, want in zip(found.values(), lstm(x, cont, blobs, u, (h[0], c[0])), strict=True):
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5)


def test_lstm_equals_pytorch(tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    cell = torch.nn.LSTM(3, 4)  # its gates' order is i, f, g, o
    order = [0, 1, 3, 2]
    w_x, w_h, b_x, b_h = (p.detach().numpy().reshape(4, 4, -1)[order].reshape(p.shape) for p in (cell._flat_weights))
    x, cont = rng.normal(size=(6, 2, 3)).astype(np.float32), np.ones((6, 2), np.float32)
    expected = cell(torch.tensor(x))[0].detach().numpy()
    check(tmp_path, one("LSTM", "recurrent_param { num_output: 4 }", "x y"), [x, cont], [expected],
          {"it": [w_x, b_x + b_h, w_h]})  # fmt: skip


def test_rnn(tmp_path: Path, rng: np.random.Generator) -> None:
    t, n, d, u = 4, 2, 3, 5
    x = rng.normal(size=(t, n, d)).astype(np.float32)
    cont = np.array([[0, 0], [1, 1], [0, 1], [1, 1]], np.float32)
    w_x, b, w_h, w_o, b_o = (rng.normal(size=s).astype(np.float32) for s in ((u, d), (u,), (u, u), (u, u), (u,)))
    h, expected = np.zeros((n, u), np.float32), []
    for x_t, mark in zip(x, cont[..., None], strict=True):
        h = np.tanh(x_t @ w_x.T + b + (h * mark) @ w_h.T)
        expected.append(np.tanh(h @ w_o.T + b_o))
    text = one("RNN", f"recurrent_param {{ num_output: {u} }}", "x y")
    check(tmp_path, text, [x, cont], [np.stack(expected)], {"it": [w_x, b, w_h, w_o, b_o]})
