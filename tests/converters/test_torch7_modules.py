"""Each Torch7 module against its successor in PyTorch, or NumPy where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from converters import convert
from converters.torch7.context import known_types
from tests.converters.caffe_checks import caffe_pool, run
from tests.converters.torch7_files import Longs, Obj, write_t7
from tests.converters.torch7_files import module as m

RNG = np.random.default_rng(7)
Tensor = torch.Tensor


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = (2, 4, 9, 7)
W, B = normal(6, 4, 3, 2), normal(6)
GROUPED = normal(6, 2, 3, 2)
UP = normal(4, 3, 3, 2)
LINEAR, BIAS = normal(5, 8), normal(5)
SLOPES = np.abs(normal(4))
STATS = {"running_mean": normal(4), "running_var": np.abs(normal(4)) + 0.1}
AFFINE = {"weight": normal(4), "bias": normal(4)}
CONV = {"nInputPlane": 4, "nOutputPlane": 6, "kW": 2, "kH": 3, "dW": 2, "dH": 1}
FULL = {"nInputPlane": 4, "nOutputPlane": 3, "kW": 2, "kH": 3, "dW": 3, "dH": 2}
POOL = {"kW": 3, "kH": 2, "dW": 2, "dH": 3}


def t(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def norm(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    return F.batch_norm(
        x,
        t(running_mean),
        t(running_var),
        None if weight is None else t(weight),
        None if bias is None else t(bias),
        eps=eps,
    )


def inception(x: Tensor) -> Tensor:
    """DepthConcat of a 3 × 3 and a 1 × 1 convolution without padding."""
    small = F.conv2d(x, t(W[:, :, :3, :1].copy())[:, :, :, :1])
    return torch.cat([F.pad(small, [0, 0, 1, 1]), x], 1)


CASES: list[tuple[str, Obj, Any, Callable[..., Any]]] = [
    ("convolution", m("SpatialConvolution", **CONV, padW=1, padH=2, weight=W, bias=B), X,
     lambda x: F.conv2d(x, t(W), t(B), (1, 2), (2, 1))),
    ("convolution without bias", m("SpatialConvolution", **CONV, padW=0, padH=0, weight=W), X,
     lambda x: F.conv2d(x, t(W), None, (1, 2))),
    ("convolution as matrix", m("SpatialConvolutionMM", **CONV, padding=1, weight=W.reshape(6, 24), bias=B),
     X, lambda x: F.conv2d(x, t(W), t(B), (1, 2), 1)),
    ("grouped convolution", m("cudnn.SpatialConvolution", **CONV, padW=0, padH=0, groups=2, weight=GROUPED, bias=B),
     X, lambda x: F.conv2d(x, t(GROUPED), t(B), (1, 2), groups=2)),
    ("dilated convolution", m("SpatialDilatedConvolution", **CONV, padW=1, padH=2, dilationW=3, dilationH=2,
                                   weight=W, bias=B), X,
     lambda x: F.conv2d(x, t(W), t(B), (1, 2), (2, 1), (2, 3))),
    ("full convolution", m("SpatialFullConvolution", **FULL, padW=1, padH=0, adjW=2, adjH=1, weight=UP, bias=B[:3]),
     X, lambda x: F.conv_transpose2d(x, t(UP), t(B[:3]), (2, 3), (0, 1), (1, 2))),
    ("linear", m("Linear", weight=LINEAR, bias=BIAS), (3, 8), lambda x: F.linear(x, t(LINEAR), t(BIAS))),
    ("linear without bias", m("Linear", weight=LINEAR), (3, 8), lambda x: F.linear(x, t(LINEAR))),
    ("max pooling", m("SpatialMaxPooling", **POOL, padW=1, padH=1, ceil_mode=False), X,
     lambda x: F.max_pool2d(x, (2, 3), (3, 2), (1, 1))),
    ("max pooling, rounded up", m("cudnn.SpatialMaxPooling", **POOL, padW=1, padH=0, ceil_mode=True), X,
     lambda x: F.max_pool2d(x, (2, 3), (3, 2), (0, 1), ceil_mode=True)),
    ("max pooling with a gap", m("SpatialMaxPooling", kW=1, kH=1, dW=3, dH=3, padW=0, padH=0, ceil_mode=True), X,
     lambda x: t(caffe_pool(x.numpy(), (1, 1), (3, 3), (0, 0), False))),
    ("dilated max pooling", m("SpatialDilatedMaxPooling", **POOL, padW=1, padH=0, dilationW=2, dilationH=3,
                                   ceil_mode=True), X,
     lambda x: F.max_pool2d(x, (2, 3), (3, 2), (0, 1), (3, 2), ceil_mode=True)),
    ("imagine-nn's max pooling", m("inn.SpatialMaxPooling", **POOL), X,
     lambda x: t(caffe_pool(x.numpy(), (2, 3), (3, 2), (0, 0), False))),
    ("average pooling", m("SpatialAveragePooling", **POOL, padW=1, padH=1, ceil_mode=False, count_include_pad=True,
                               divide=True), X, lambda x: F.avg_pool2d(x, (2, 3), (3, 2), (1, 1))),
    ("average pooling, rounded up", m("SpatialAveragePooling", **POOL, padW=1, padH=1, ceil_mode=True,
                                           count_include_pad=True, divide=True), X,
     lambda x: F.avg_pool2d(x, (2, 3), (3, 2), (1, 1), ceil_mode=True)),
    ("average pooling without padding", m("SpatialAveragePooling", **POOL, padW=1, padH=1, ceil_mode=True,
                                               count_include_pad=False, divide=True), X,
     lambda x: F.avg_pool2d(x, (2, 3), (3, 2), (1, 1), ceil_mode=True, count_include_pad=False)),
    ("sum pooling of the oldest files", m("SpatialAveragePooling", **POOL), X,
     lambda x: 6 * F.avg_pool2d(x, (2, 3), (3, 2))),
    ("global average pooling", m("SpatialAdaptiveAveragePooling", W=1, H=1), X,
     lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("adaptive average pooling, even", m("SpatialAdaptiveAveragePooling", W=7, H=3), X,
     lambda x: F.adaptive_avg_pool2d(x, (3, 7))),
    ("adaptive average pooling, uneven", m("SpatialAdaptiveAveragePooling", W=3, H=4), X,
     lambda x: F.adaptive_avg_pool2d(x, (4, 3))),
    ("adaptive max pooling, uneven", m("SpatialAdaptiveMaxPooling", W=3, H=4), X,
     lambda x: F.adaptive_max_pool2d(x, (4, 3))),
    ("batch normalization", m("BatchNormalization", **STATS, **AFFINE, eps=1e-3, momentum=0.1), (3, 4),
     lambda x: norm(x, **STATS, **AFFINE, eps=1e-3)),
    ("spatial batch normalization", m("cudnn.SpatialBatchNormalization", **STATS, **AFFINE, eps=1e-5), X,
     lambda x: norm(x, **STATS, **AFFINE)),
    ("batch normalization, not affine", m("SpatialBatchNormalization", **STATS, eps=1e-5, affine=False), X,
     lambda x: norm(x, **STATS)),
    ("batch normalization of old files", m("SpatialBatchNormalization", running_mean=STATS["running_mean"],
                                                running_std=(STATS["running_var"] + 1e-5) ** -0.5, eps=1e-5, **AFFINE),
     X, lambda x: norm(x, **STATS, **AFFINE)),
    ("lrn", m("SpatialCrossMapLRN", size=3, alpha=0.5, beta=0.6, k=2), X,
     lambda x: F.local_response_norm(x, 3, 0.5, 0.6, 2)),
    ("cudnn's lrn", m("cudnn.SpatialCrossMapLRN", size=5, alpha=0.5, beta=0.6, K=1.5), X,
     lambda x: F.local_response_norm(x, 5, 0.5, 0.6, 1.5)),
    ("normalize", m("Normalize", p=2, eps=1e-10), (3, 8), lambda x: F.normalize(x)),
    ("normalize by another norm", m("Normalize", p=3, eps=1e-10), (3, 8), lambda x: F.normalize(x, 3)),
    ("normalize by the maximum", m("Normalize", p=torch.inf, eps=1e-10), (3, 8), lambda x: F.normalize(x, torch.inf)),
    ("dropout", m("Dropout", p=0.4, v2=True), (3, 8), lambda x: x),
    ("dropout of old files", m("Dropout", p=0.4), (3, 8), lambda x: 0.6 * x),
    ("spatial dropout", m("SpatialDropout", p=0.4), X, lambda x: 0.6 * x),
    ("abs", m("Abs"), (3, 8), torch.abs),
    ("exp", m("Exp"), (3, 8), torch.exp),
    ("log", m("Log"), (3, 8), torch.log),
    ("sigmoid", m("Sigmoid"), (3, 8), torch.sigmoid),
    ("softsign", m("SoftSign"), (3, 8), F.softsign),
    ("sqrt", m("Sqrt"), (3, 8), torch.sqrt),
    ("tanh", m("cudnn.Tanh"), (3, 8), torch.tanh),
    ("square", m("Square"), (3, 8), torch.square),
    ("power", m("Power", pow=3), (3, 8), lambda x: x**3),
    ("relu", m("cudnn.ReLU"), (3, 8), torch.relu),
    ("relu as threshold", m("Threshold", threshold=0, val=0), (3, 8), torch.relu),
    ("threshold", m("Threshold", threshold=0.3, val=-2), (3, 8), lambda x: F.threshold(x, 0.3, -2)),
    ("relu6", m("ReLU6"), (3, 8), F.relu6),
    ("hardtanh", m("HardTanh", min_val=-0.5, max_val=0.25), (3, 8), lambda x: F.hardtanh(x, -0.5, 0.25)),
    ("clamp", m("Clamp", min_val=-0.5, max_val=0.25), (3, 8), lambda x: torch.clamp(x, -0.5, 0.25)),
    ("leaky relu", m("LeakyReLU", negval=0.2), (3, 8), lambda x: F.leaky_relu(x, 0.2)),
    ("rrelu", m("RReLU", lower=0.1, upper=0.3), (3, 8), lambda x: F.rrelu(x, 0.1, 0.3)),
    ("prelu", m("PReLU", nOutputPlane=0, weight=SLOPES[:1]), (3, 8), lambda x: F.prelu(x, t(SLOPES[:1]))),
    ("prelu of channels", m("PReLU", nOutputPlane=4, weight=SLOPES), X, lambda x: F.prelu(x, t(SLOPES))),
    ("elu", m("ELU", alpha=0.7), (3, 8), lambda x: F.elu(x, 0.7)),
    ("softplus", m("SoftPlus", beta=2, threshold=20), (3, 8), lambda x: F.softplus(x, 2)),
    ("log sigmoid", m("LogSigmoid"), (3, 8), F.logsigmoid),
    ("softmax", m("SoftMax"), (3, 8), lambda x: F.softmax(x, 1)),
    ("softmax of an image", m("SpatialSoftMax"), X, lambda x: F.softmax(x, 1)),
    ("log softmax", m("LogSoftMax"), (3, 8), lambda x: F.log_softmax(x, 1)),
    ("softmin", m("SoftMin"), (3, 8), lambda x: F.softmin(x, 1)),
    ("mul", m("Mul", weight=SLOPES[:1]), (3, 8), lambda x: x * float(SLOPES[0])),
    ("mul constant", m("MulConstant", constant_scalar=0.5), (3, 8), lambda x: x * 0.5),
    ("add constant", m("AddConstant", constant_scalar=-1.5), (3, 8), lambda x: x - 1.5),
    ("add a vector", m("AddConstant", constant_scalar=LINEAR[0]), (3, 8), lambda x: x + t(LINEAR[0])),
    ("identity", m("Sequential", m("Identity"), m("Copy"), m("ReLU"), m("Contiguous")), (3, 8),
     torch.relu),
    ("view", m("View", size=Longs([2, 4]), numElements=8), (3, 8), lambda x: x.view(3, 2, 4)),
    ("view of all", m("View", size=Longs([-1]), numElements=1), X, lambda x: x.flatten(1)),
    ("view with input dimensions", m("View", size=Longs([-1, 7]), numElements=7, numInputDims=3), X,
     lambda x: x.view(2, 36, 7)),
    ("view of parts", m("View", size=Longs([4]), numElements=4), (3, 8), lambda x: x.view(6, 4)),
    ("view of the batch", m("View", size=Longs([-1, 4]), numElements=4), (3, 8), lambda x: x.view(-1, 4)),
    ("reshape", m("Reshape", size=Longs([4, 2]), batchsize=Longs([3, 4, 2]), nelement=8, batchMode=True), (3, 8),
     lambda x: x.view(3, 4, 2)),
    ("reshape to a vector", m("Reshape", size=Longs([252]), nelement=252), X, lambda x: x.flatten(1)),
    ("squeeze", m("Squeeze", dim=2, numInputDims=2), (3, 4, 1), lambda x: x.squeeze(2)),
    ("squeeze of all", m("Squeeze"), (3, 1, 4, 1), lambda x: x.view(3, 4)),
    ("unsqueeze", m("Unsqueeze", pos=1, numInputDims=1), (3, 8), lambda x: x.view(3, 1, 8)),
    ("transpose", m("Transpose", permutations=[[2, 3], [3, 4]]), X, lambda x: x.transpose(1, 2).transpose(2, 3)),
    ("transpose of an example", m("Transpose", permutations=[[1, 3]], numInputDims=3), X,
     lambda x: x.transpose(1, 3)),
    ("select", m("Select", dimension=3, index=-1), X, lambda x: x[:, :, -1]),
    ("narrow", m("Narrow", dimension=2, index=2, length=2), X, lambda x: x[:, 1:3]),
    ("narrow to the end", m("Narrow", dimension=-1, index=2, length=-2), X, lambda x: x[..., 1:-1]),
    ("padding behind", m("Padding", dim=1, pad=2, nInputDim=3, value=1.5, index=1), X,
     lambda x: F.pad(x, [0, 0, 0, 0, 0, 2], value=1.5)),
    ("padding in front", m("Padding", dim=2, pad=-2, value=0, index=1), X, lambda x: F.pad(x, [0, 0, 0, 0, 2, 0])),
    ("zero padding", m("SpatialZeroPadding", pad_l=1, pad_r=-2, pad_t=0, pad_b=3), X,
     lambda x: F.pad(x, [1, -2, 0, 3])),
    ("reflection padding", m("SpatialReflectionPadding", pad_l=1, pad_r=2, pad_t=0, pad_b=3), X,
     lambda x: F.pad(x, [1, 2, 0, 3], mode="reflect")),
    ("replication padding", m("SpatialReplicationPadding", pad_l=1, pad_r=2, pad_t=0, pad_b=3), X,
     lambda x: F.pad(x, [1, 2, 0, 3], mode="replicate")),
    ("pixel shuffle", m("PixelShuffle", upscaleFactor=2), X, lambda x: F.pixel_shuffle(x, 2)),
    ("nearest upsampling", m("SpatialUpSamplingNearest", scale_factor=2), X,
     lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
    ("bilinear upsampling", m("SpatialUpSamplingBilinear", oheight=13, owidth=11), X,
     lambda x: F.interpolate(x, (13, 11), mode="bilinear", align_corners=True)),
    ("mean", m("Mean", dimension=2, nInputDims=3, squeeze=True), X, lambda x: x.mean(2)),
    ("mean, axis kept", m("Mean", dimension=-1, squeeze=False), X, lambda x: x.mean(3, keepdim=True)),
    ("sum", m("Sum", dimension=2), X, lambda x: x.sum(1)),
    ("max", m("Max", dimension=3), X, lambda x: x.amax(2)),
    ("min", m("Min", dimension=1, nInputDims=3), X, lambda x: x.amin(1)),
    ("concat", m("Concat", m("Tanh"), m("Abs"), dimension=2), X,
     lambda x: torch.cat([x.tanh(), x.abs()], 1)),
    ("depth concat", m("DepthConcat", m("SpatialConvolution", nInputPlane=4, nOutputPlane=6, kW=1, kH=3, dW=1,
                            dH=1, weight=W[:, :, :, :1].copy()), m("Identity"), dimension=2), X, inception),
    ("parallel", m("Parallel", m("Linear", weight=LINEAR, bias=BIAS), m("Linear", weight=-LINEAR),
                        inputDimension=2, outputDimension=2), (3, 2, 8),
     lambda x: torch.cat([F.linear(x[:, 0], t(LINEAR), t(BIAS)), F.linear(x[:, 1], t(-LINEAR))], 1)),
    ("residual", m("Sequential", m("ConcatTable", m("Tanh"), m("Identity")), m("CAddTable")), (3, 8),
     lambda x: x.tanh() + x),
    ("a table and back", m("Sequential", m("SplitTable", dimension=1, nInputDims=1), m("NarrowTable",
      offset=2, length=3), m("MapTable", m("Identity")), m("ConcatTable", m("SelectTable", index=-1),
      m("SelectTable", index=1)), m("FlattenTable"), m("CSubTable")), (3, 8), lambda x: x[:, 3] - x[:, 1]),
    ("nested tables", m("Sequential", m("ConcatTable", m("ConcatTable", m("Tanh"), m("Abs")),
      m("Identity")), m("FlattenTable"), m("JoinTable", dimension=1, nInputDims=1)), (3, 8),
     lambda x: torch.cat([x.tanh(), x.abs(), x], 1)),
    ("products and quotients", m("Sequential", m("ConcatTable", m("Tanh"), m("Exp")), m("ConcatTable",
      m("CMulTable"), m("CDivTable"), m("CMaxTable"), m("CMinTable")), m("JoinTable", dimension=2)),
     (3, 8), lambda x: torch.cat([x.tanh() * x.exp(), x.tanh() / x.exp(), torch.maximum(x.tanh(), x.exp()),
                                  torch.minimum(x.tanh(), x.exp())], 1)),
    ("two inputs", m("Sequential", m("ParallelTable", m("Tanh"), m("Linear", weight=LINEAR, bias=BIAS)),
      m("CSubTable")), [(3, 5), (3, 8)], lambda x, y: x.tanh() - F.linear(y, t(LINEAR), t(BIAS))),
    ("wrappers", m("DataParallelTable", m("NoBackprop", m("Tanh")), m("NoBackprop", m("Tanh"))),
     (3, 8), torch.tanh),
]  # fmt: skip


def feeds(shape: Any, name: str) -> list[np.ndarray]:
    shapes: Sequence[Any] = shape if isinstance(shape, list) else [shape]
    positive = name in ("log", "sqrt", "spatial dropout")
    arrays = [np.random.default_rng(len(name)).standard_normal(s).astype(np.float32) for s in shapes]
    return [np.abs(a) + 0.1 if positive else a for a in arrays]


@pytest.mark.parametrize(("name", "net", "shape", "twin"), CASES, ids=[name for name, *_ in CASES])
@torch.no_grad()
def test_a_module_computes_as_its_twin(
    tmp_path: Path, name: str, net: Obj, shape: Any, twin: Callable[..., Any]
) -> None:
    arrays = feeds(shape, name)
    sizes = {f"input{i}" if len(arrays) > 1 else "input": a.shape[1:] for i, a in enumerate(arrays, 1)}
    model = convert(write_t7(tmp_path, net), shape=sizes)
    (found,) = run(model, *arrays).values()
    expected = twin(*map(t, arrays)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert [tuple(d for d in o.shape or () if isinstance(d, int)) for o in model.graph.outputs]


ANY_SIZE = """convolution/full convolution/max pooling/max pooling, rounded up/dilated max pooling/average pooling
average pooling, rounded up/average pooling without padding/spatial batch normalization/lrn/prelu of channels
nearest upsampling/zero padding/pixel shuffle/view of all/view with input dimensions/mean"""


@pytest.mark.parametrize("name", ANY_SIZE.replace("\n", "/").split("/"))
@torch.no_grad()
def test_a_module_computes_the_same_with_any_height_and_width(tmp_path: Path, name: str) -> None:
    _, net, _, twin = next(case for case in CASES if case[0] == name)
    model = convert(write_t7(tmp_path, net), shape="4x?x?")
    for shape in (X, (3, 4, 12, 7)):
        x = RNG.standard_normal(shape).astype(np.float32)
        if name == "view with input dimensions" and shape != X:
            continue
        (found,) = run(model, x).values()
        np.testing.assert_allclose(found, twin(t(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_pooling_with_padding_on_one_axis_clips_on_both(tmp_path: Path) -> None:
    """THNN: ``if (padW || padH)`` a last window that starts behind the end is left out, on either axis."""
    net = m("SpatialAveragePooling", kW=3, kH=1, dW=1, dH=3, padW=1, padH=0, ceil_mode=True, divide=True)
    x = normal(1, 4, 6, 5)  # rows 0 and 3 have a window; without clipping one would start at row 6
    (found,) = run(convert(write_t7(tmp_path, net), shape="4x6x5"), x).values()
    expected = caffe_pool(x, (1, 3), (3, 1), (0, 1), average=True, ceil=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    (free,) = run(convert(write_t7(tmp_path, net), shape="4x?x?"), x).values()
    np.testing.assert_allclose(free, expected, rtol=1e-5, atol=1e-6)


def test_every_module_is_tested(tmp_path: Path) -> None:
    """Each type that is known is in a case above, but for synonyms of an Identity and wrappers."""

    def types(net: Obj) -> set[str]:
        return {net.type.rpartition(".")[2]}.union(*(types(each) for each in net.fields.get("modules", [])))

    tested = set().union(*(types(net) for _, net, _, _ in CASES))
    rest = {
        *("GradientReversal", "L1Penalty", "PrintSize", "Profile", "WhiteNoise"),
        *("DataParallel", "DontCast", "GPU", "WeightNorm", "ZeroGrad", "InceptionConcat"),
        *("SpatialLogSoftMax", "SpatialCrossResponseNormalization", "gModule"),  # the last in test_torch7.py
    }
    assert set(known_types()) - tested == rest
