from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import surgery
from surgery.data import Dataset
from surgery.errors import SurgeryError
from surgery.layers import find_layer
from surgery.marks import marks
from surgery.passes import MaxNorm, Widen
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of
from tests.nets import Residual, batches, lenet, residual, torch_lenet


def grouped() -> ir.Model:
    """As in MobileNet: a convolution, one by channel, one that reads them all."""
    return parse(
        "(float[N,3,8,8] x) => (float[N,4] y)",
        "a = Conv(x, wa, ba) na = BatchNormalization(a, s, b, m, v) ra = Clip(na, low) "
        "d = Conv<group = 6, pads = [1, 1, 1, 1]>(ra, wd, bd) p = PRelu(d, slope) e = Conv(p, we) "
        "g = ReduceMean<axes = [2, 3], keepdims = 0>(e) y = Gemm<transB = 1>(g, wf, bf)",
        {
            "wa": [6, 3, 3, 3],
            **{name: [6] for name in ("ba", "s", "b", "m", "v", "bd")},
            "low": [],
            "wd": [6, 1, 3, 3],
            "slope": [6, 1, 1],
            "we": [5, 6, 1, 1],
            "wf": [4, 5],
            "bf": [4],
        },
    )


def joined() -> ir.Model:
    """Two branches that are concatenated, flattened by a Reshape, and read by a MatMul."""
    return parse(
        "(float[N,2,6,6] x) => (float[N,3] y)",
        "a = Conv(x, wa) ra = Relu(a) b = Conv(x, wb, bb) sb = Mul(b, scale) rb = Sigmoid(sb) "
        "c = Concat<axis = 1>(rb, ra) q = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) "
        "shape = Constant<value = int64[2] {0, 28}>() f = Reshape(q, shape) h = MatMul(f, w) y = Add(h, bias)",
        {"wa": [4, 2, 3, 3], "wb": [3, 2, 3, 3], "bb": [3], "scale": [3, 1, 1], "w": [28, 3], "bias": [3]},
    )


def sequence() -> ir.Model:
    return parse(
        "(float[N,T,8] x) => (float[N,T,5] y)",
        "a = MatMul(x, w) ab = Add(a, b) e = Gelu(ab) t = Transpose<perm = [1, 0, 2]>(e) s = MatMul(t, v) "
        "y = Transpose<perm = [1, 0, 2]>(s)",
        {"w": [8, 6], "b": [6], "v": [6, 5]},
        opset=20,
    )


def transposed() -> ir.Model:
    """PyTorch's Linear without bias: its weight behind a Transpose; a deconvolution reads a convolution."""
    return parse(
        "(float[N,3,4,4] x) => (float[N,2] y)",
        "a = Conv(x, wa, ba) r = Relu(a) u = ConvTranspose(r, wu) k = Relu(u) g = GlobalMaxPool(k) f = Flatten(g) "
        "t = Transpose(wl) l = MatMul(f, t) e = Elu(l) y = Gemm(e, wh)",
        {"wa": [5, 3, 1, 1], "ba": [5], "wu": [5, 4, 2, 2], "wl": [6, 4], "wh": [6, 2]},
    )


CASES: list[tuple[Any, Any, int, tuple[int, ...], dict[str, tuple[int, ...]]]] = [
    (cnn, "c1", 7, (2, 3, 10, 10), {"w1": (7, 3, 3, 3), "b1": (7,), "w2": (5, 7, 3, 3)}),
    (cnn, "c2", 9, (2, 3, 10, 10), {"w2": (9, 4, 3, 3), "s": (9,), "v": (9,), "w3": (9, 6)}),
    (cnn, ["c1", "c2"], 8, (2, 3, 10, 10), {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 6)}),
    (mlp, "a", 20, (3, 8), {"a.weight": (20, 8), "a.bias": (20,), "b.weight": (4, 20)}),
    (squeezenet, "c1", 11, (2, 3, 9, 9), {"w1": (11, 3, 3, 3), "w2": (10, 11, 1, 1)}),
    (grouped, "a", 13, (2, 3, 8, 8), {"wd": (13, 1, 3, 3), "bd": (13,), "slope": (13, 1, 1), "we": (5, 13, 1, 1)}),
    (joined, ["a", "b"], 6, (2, 2, 6, 6), {"wa": (6, 2, 3, 3), "wb": (6, 2, 3, 3), "scale": (6, 1, 1), "w": (48, 3)}),
    (sequence, "a", 10, (2, 7, 8), {"w": (8, 10), "b": (10,), "v": (10, 5)}),
    (transposed, "a", 8, (2, 3, 4, 4), {"wa": (8, 3, 1, 1), "wu": (8, 4, 2, 2)}),
    (transposed, "l", 9, (2, 3, 4, 4), {"wl": (9, 4), "wh": (9, 2)}),
]


@pytest.mark.parametrize(("make", "layers", "units", "shape", "shapes"), CASES)
def test_the_network_computes_the_same(
    make: Any,
    layers: Any,
    units: int,
    shape: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
) -> None:
    model, x = make(), rng.normal(size=shape).astype(np.float32)
    (want,) = run(model, x)
    Widen(layers=layers, units=units)(model)
    (got,) = run(model, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    arrays = weights_of(model)
    assert {name: arrays[name].shape for name in shapes} == shapes


def test_the_weights_are_those_of_net2wider() -> None:
    """By hand, from the paper: rows copied, what reads them divided so that the parts of each unit add up to it."""
    model, before = mlp(), weights_of(mlp())
    Widen(layers="a", units=9, seed=3)(model)
    after = weights_of(model)
    rows, old = after["a.weight"], before["a.weight"]
    source = [int(np.flatnonzero((old == row).all(1))[0]) for row in rows]
    assert source[:6] == list(range(6))
    np.testing.assert_array_equal(after["a.bias"], before["a.bias"][source])
    for unit in range(6):
        members = np.flatnonzero(np.array(source) == unit)
        parts = after["b.weight"][:, members]
        np.testing.assert_allclose(parts.sum(1), before["b.weight"][:, unit], rtol=1e-6)
        assert len(np.unique(parts[0])) == len(members)  # no two alike, or they would stay so
    np.testing.assert_array_equal(after["b.bias"], before["b.bias"])


def test_lenet_as_pytorch_computes_it() -> None:
    """A convolution through pooling and Flatten into a fully connected layer, against the source network."""
    net = torch_lenet()
    model = lenet(net)
    Widen(layers=["conv1", "conv2"], units=64)(model)
    Widen(layers="ip1", units=700)(model)
    x = np.random.default_rng(0).normal(size=(3, 1, 28, 28)).astype(np.float32)
    want = net(torch.from_numpy(x)).softmax(1).detach().numpy()
    np.testing.assert_allclose(run(model, x)[0], want, rtol=1e-4, atol=1e-6)


@pytest.mark.training
def test_copies_part_in_training() -> None:
    """Without dropout and noise; a copy whose unit is off for all examples has no gradient to part by."""
    model = lenet(torch_lenet())
    Widen(layers="ip1", units=600)(model)
    assert len(np.unique(weights_of(model)["ip1.weight"], axis=0)) == 500
    ((examples, targets),) = batches(1, 32, (1, 28, 28), 4, 0)
    trained = surgery.train(model, Dataset(examples, targets), epochs=2, learning_rate=0.05).model
    assert len(np.unique(weights_of(trained)["ip1.weight"], axis=0)) > 560


def test_marks_stay() -> None:
    model = mlp()
    MaxNorm(value=2.0)(model)
    Widen(layers="a", units=9)(model)
    for name in ("a.weight", "b.weight"):
        assert marks(model.graph.initializers[name]).constraint is not None


def test_it_is_done_once() -> None:
    model = cnn()
    assert Widen(layers="c1", units=7)(model).modified
    before = weights_of(model)
    assert not Widen(layers="c1", units=7)(model).modified
    for name, array in weights_of(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_what_is_reported() -> None:
    model = mlp()
    changes = Widen(layers="a", units=9)(model).changes
    assert [str(change) for change in changes] == [
        "a: 9 units instead of 6: 3 copies",
        "b: weights for the copies of a's units",
    ]
    assert find_layer(model, "a").size == 9 * 9


def shared() -> ir.Model:
    return parse(
        "(float[N,4] x) => (float[N,4] y)",
        "a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) y = Relu(b)",
        {"w": [4, 4]},
    )


def normalized() -> ir.Model:
    return parse(
        "(float[N,4] x) => (float[N,4] y)",
        "a = MatMul(x, w) n = LayerNormalization(a, s, b) y = MatMul(n, v)",
        {"w": [4, 6], "s": [6], "b": [6], "v": [6, 4]},
    )


@pytest.mark.parametrize(
    ("make", "layer", "units", "message"),
    [
        (mlp, "b", 9, "its units are those of the output|does not treat each unit alone"),
        (cnn, "h", 9, "its units are those of the output 'y'"),
        (cnn, "c1", 3, "has 4 units already, more than 3"),
        (cnn, "r1", 9, "no Conv, Gemm or MatMul"),
        (grouped, "d", 12, "a convolution of several groups"),
        (lambda: residual(Residual()), "conv1", 12, "Add 'add' behind it"),
        (shared, "a", 9, "'w' has several users"),
        (normalized, "a", 9, "LayerNormalization 'n' behind it does not treat each unit alone"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_changed(make: Any, layer: str, units: int, message: str) -> None:
    model = make()
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(SurgeryError, match=message):
        Widen(layers=layer, units=units)(model)
    assert ir.to_proto(model).SerializeToString() == before
