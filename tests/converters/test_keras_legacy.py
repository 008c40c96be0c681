"""Files of Keras 1 and of early Keras 2, which Keras 3 itself no longer loads, written here as those versions did.

What they compute is worked out with PyTorch and NumPy from the weights that the files were given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from converters import convert
from surgery.errors import SurgeryError
from surgery.marks import Constraint, marks
from tests.converters.keras_checks import Array, parameter, run

Weights = Mapping[str, Sequence[tuple[str, Array]]]


def write(path: Path, model: Any, weights: Weights, version: str | None = "1.2.2", backend: str | None = None) -> Path:
    """A whole model as Keras 1 and 2 saved it."""
    with h5py.File(path, "w") as file:
        if model is not None:
            file.attrs["model_config"] = json.dumps(model).encode()
        group = file.create_group("model_weights") if model is not None else file
        for owner in (file, group):
            if version is not None:
                owner.attrs["keras_version"] = version.encode()
            if backend is not None:
                owner.attrs["backend"] = backend.encode()
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for layer, arrays in weights.items():
            own = group.create_group(layer)
            own.attrs["weight_names"] = [name.encode() for name, _ in arrays]
            for name, array in arrays:
                own[name] = array
    return path


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, "trainable": True, **config}}


def array(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)


def keras_1(first: bool) -> dict[str, Any]:
    ordering = {"dim_ordering": "th" if first else "tf"}
    shape = [None, 3, 8, 8] if first else [None, 8, 8, 3]
    axes = [1, 2, 3] if first else [0, 1, 2]
    return {
        "class_name": "Sequential",
        "config": [
            layer(
                "Convolution2D", "convolution2d_1", batch_input_shape=shape, input_dtype="float32", nb_filter=4,
                nb_row=3, nb_col=3, border_mode="same", subsample=[1, 1], bias=True, activation="relu", **ordering,
                W_constraint={"name": "MaxNorm", "m": 3, "axis": axes}, b_constraint=None,
                W_regularizer={"name": "WeightRegularizer", "l1": 0.0, "l2": 0.0005}, b_regularizer=None,
            ),
            layer("BatchNormalization", "batchnormalization_1", mode=0, axis=1 if first else -1, epsilon=1e-3),
            layer("MaxPooling2D", "maxpooling2d_1", pool_size=[2, 2], strides=[2, 2], border_mode="valid", **ordering),
            layer("ZeroPadding2D", "zeropadding2d_1", padding=[1, 1], **ordering),
            layer("AtrousConvolution2D", "atrous_1", nb_filter=5, nb_row=3, nb_col=3, border_mode="valid",
                  subsample=[1, 1], bias=False, activation="linear", atrous_rate=[2, 2], **ordering),
            layer("LeakyReLU", "leakyrelu_1", alpha=0.30000001192092896),
            layer("Dropout", "dropout_1", p=0.25),
            layer("Flatten", "flatten_1"),
            layer("Dense", "dense_1", output_dim=6, activation="hard_sigmoid", bias=True, input_dim=20),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["th", "tf"])
def test_a_sequential_network_of_keras_1(first: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    w, b, v = array(rng, 4, 3, 3, 3), array(rng, 4), array(rng, 5, 4, 3, 3)
    gamma, beta, mean = (array(rng, 4) for _ in range(3))
    variance = rng.uniform(0.5, 2, 4).astype(np.float32)
    dense, bias = array(rng, 20, 6), array(rng, 6)

    def stored(kernel: Array) -> Array:
        return kernel if first else kernel.transpose(2, 3, 1, 0)

    path = write(
        tmp_path / "net.h5",
        keras_1(first),
        {
            "convolution2d_1": [("convolution2d_1_W", stored(w)), ("convolution2d_1_b", b)],
            "batchnormalization_1": [
                (f"batchnormalization_1_{n}", a)
                for n, a in (("gamma", gamma), ("beta", beta), ("running_mean", mean), ("running_std", variance))
            ],
            "maxpooling2d_1": [],
            "zeropadding2d_1": [],
            "atrous_1": [("atrous_1_W", stored(v))],
            "leakyrelu_1": [],
            "dropout_1": [],
            "flatten_1": [],
            "dense_1": [("dense_1_W", dense), ("dense_1_b", bias)],
        },
    )
    model = convert(path)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    t = F.relu(F.conv2d(torch.tensor(x), torch.tensor(w), torch.tensor(b), padding=1))
    t = F.batch_norm(t, *(torch.tensor(a) for a in (mean, variance, gamma, beta)), eps=1e-3)
    t = F.conv2d(F.pad(F.max_pool2d(t, 2), [1] * 4), torch.tensor(v), dilation=2)
    t = F.leaky_relu(t, 0.3)
    t = t.flatten(1) if first else t.permute(0, 2, 3, 1).flatten(1)
    want = torch.clip(0.2 * (t @ torch.tensor(dense) + torch.tensor(bias)) + 0.5, 0, 1).numpy()
    found = run(model, x if first else np.ascontiguousarray(x.transpose(0, 2, 3, 1)))["dense_1"]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    kernel = marks(model.graph.initializers["convolution2d_1/kernel"])
    assert kernel.constraint == Constraint("max_norm", 3.0, (1, 2, 3))
    assert kernel.l2 == 0.001
    assert marks(model.graph.initializers["dense_1/kernel"]).l2 == 0
    assert next(n for n in model.graph if n.op_type == "Dropout").name == "dropout_1"


def sigmoid(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0, 1)  # Keras 1's and 2's hard one, the default of their recurrent layers


def lstm(x: Array, w: list[Array], u: list[Array], b: list[Array]) -> Array:
    """The last state; the gates' order is i, c, f, o."""
    h = c = np.zeros((len(x), u[0].shape[0]), np.float32)
    for step in x.transpose(1, 0, 2):
        i, g, f, o = (step @ w[k] + h @ u[k] + b[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def gru(x: Array, w: list[Array], u: list[Array], b: list[Array]) -> Array:
    """All states; the gates' order is z, r, h."""
    h, states = np.zeros((len(x), u[0].shape[0]), np.float32), []
    for step in x.transpose(1, 0, 2):
        z, r = (sigmoid(step @ w[k] + h @ u[k] + b[k]) for k in range(2))
        h = z * h + (1 - z) * np.tanh(step @ w[2] + (r * h) @ u[2] + b[2])
        states.append(h)
    return np.stack(states, 1)


def test_recurrent_layers_of_keras_1_have_an_array_for_each_gate(tmp_path: Path, rng: np.random.Generator) -> None:
    config = {
        "class_name": "Sequential",
        "config": [
            layer("Embedding", "embedding_1", input_dim=9, output_dim=5, input_length=6, batch_input_shape=[None, 6]),
            layer("GRU", "gru_1", output_dim=4, activation="tanh", inner_activation="hard_sigmoid",
                  return_sequences=True, consume_less="cpu"),
            layer("TimeDistributedDense", "td_1", output_dim=3, activation="linear"),
            layer("LSTM", "lstm_1", output_dim=2, activation="tanh", inner_activation="hard_sigmoid",
                  return_sequences=False, consume_less="cpu"),
        ],
    }  # fmt: skip
    table, td, td_b = array(rng, 9, 5), array(rng, 4, 3), array(rng, 3)
    gates = {n: [array(rng, 5, 4), array(rng, 4, 4), array(rng, 4)] for n in "zrh"}
    parts = {n: [array(rng, 3, 2), array(rng, 2, 2), array(rng, 2)] for n in "icfo"}
    path = write(
        tmp_path / "net.h5",
        config,
        {
            "embedding_1": [("embedding_1_W", table)],
            "gru_1": [(f"gru_1_{p}_{n}", a) for n, own in gates.items() for p, a in zip("WUb", own, strict=True)],
            "td_1": [("td_1_W", td), ("td_1_b", td_b)],
            "lstm_1": [(f"lstm_1_{p}_{n}", a) for n, own in parts.items() for p, a in zip("WUb", own, strict=True)],
        },
    )
    words = rng.integers(0, 9, (2, 6)).astype(np.int32)
    states = gru(table[words], *([own[k] for own in gates.values()] for k in range(3)))
    want = lstm(states @ td + td_b, *([own[k] for own in parts.values()] for k in range(3)))
    np.testing.assert_allclose(run(convert(path), words)["lstm_1"], want, rtol=1e-5, atol=1e-5)


def test_merges_of_keras_1(tmp_path: Path, rng: np.random.Generator) -> None:
    def node(kind: str, name: str, reads: list[str], **config: Any) -> dict[str, Any]:
        return layer(kind, name, **config) | {
            "name": name,
            "inbound_nodes": [[[r, 0, 0] for r in reads]] if reads else [],
        }

    config = {
        "class_name": "Model",
        "config": {
            "name": "model_1",
            "layers": [
                node("InputLayer", "input_1", [], batch_input_shape=[None, 5], input_dtype="float32"),
                node("Dense", "a", ["input_1"], output_dim=5, activation="tanh"),
                node("Merge", "sum", ["input_1", "a"], mode="sum", concat_axis=-1, dot_axes=-1),
                node("Merge", "cat", ["sum", "a"], mode="concat", concat_axis=-1, dot_axes=-1),
            ],
            "input_layers": [["input_1", 0, 0]],
            "output_layers": [["cat", 0, 0]],
        },
    }
    w, b = array(rng, 5, 5), array(rng, 5)
    path = write(tmp_path / "net.h5", config, {"input_1": [], "a": [("a_W", w), ("a_b", b)], "sum": [], "cat": []})
    x = rng.normal(size=(2, 5)).astype(np.float32)
    a = np.tanh(x @ w + b)
    np.testing.assert_allclose(run(convert(path), x)["cat"], np.concatenate([x + a, a], 1), rtol=1e-5, atol=1e-6)


EARLY_2 = {
    "class_name": "Sequential",
    "config": [
        layer("Conv2D", "conv2d_1", batch_input_shape=[None, 6, 6, 2], dtype="float32", filters=3, kernel_size=[3, 3],
              strides=[2, 2], padding="same", data_format="channels_last", dilation_rate=[1, 1], activation="relu",
              kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2, "axis": [0, 1, 2]}}),
        layer("Flatten", "flatten_1"),
        layer("Dense", "dense_1", units=4, activation="softmax", use_bias=False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("backend", ["tensorflow", "theano"])
def test_an_early_sequential_network_of_keras_2(backend: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Its configuration is a list without an InputLayer. Theano turned kernels around."""
    w, b, d = array(rng, 3, 3, 2, 3), array(rng, 3), array(rng, 27, 4)
    weights: Weights = {
        "conv2d_1": [("conv2d_1/kernel:0", w), ("conv2d_1/bias:0", b)],
        "flatten_1": [],
        "dense_1": [("dense_1/kernel:0", d)],
    }
    path = write(tmp_path / "net.h5", EARLY_2, weights, "2.0.8", backend)
    x = rng.normal(size=(2, 6, 6, 2)).astype(np.float32)
    kernel = torch.tensor((w[::-1, ::-1] if backend == "theano" else w).transpose(3, 2, 0, 1).copy())
    padded = F.pad(torch.tensor(x).permute(0, 3, 1, 2), [0, 1, 0, 1])  # TensorFlow's "same", stride 2, size 6
    t = F.relu(F.conv2d(padded, kernel, torch.tensor(b), stride=2)).permute(0, 2, 3, 1).flatten(1)
    want = torch.softmax(t @ torch.tensor(d), 1).numpy()
    model = convert(path)
    np.testing.assert_allclose(run(model, x)["dense_1"], want, rtol=1e-5, atol=1e-6)
    assert [str(v.name) for v in model.graph.inputs] == ["input"]
    said = write(tmp_path / "unsaid.h5", EARLY_2, weights, "2.0.8")
    np.testing.assert_allclose(run(convert(said, backend=backend), x)["dense_1"], want, rtol=1e-5, atol=1e-6)


def test_a_configuration_and_its_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    w, b, d = array(rng, 3, 3, 2, 3), array(rng, 3), array(rng, 27, 4)
    weights = {"conv2d_1": [("kernel:0", w), ("bias:0", b)], "flatten_1": [], "dense_1": [("kernel:0", d)]}
    config = tmp_path / "net.json"
    config.write_text(json.dumps({**EARLY_2, "keras_version": "2.0.8", "backend": "tensorflow"}))
    with pytest.raises(SurgeryError, match="no weights lie next to it; give them with --weights"):
        convert(config)
    path = write(tmp_path / "net_weights.h5", None, weights, "2.0.8", "tensorflow")
    turned = d.reshape(3, 3, 3, 4).transpose(2, 0, 1, 3).reshape(27, 4)  # the graph flattens channels first
    np.testing.assert_array_equal(parameter(convert(config), "dense_1/kernel"), turned)
    other = path.rename(tmp_path / "epoch-7.hdf5")
    np.testing.assert_array_equal(parameter(convert(config, weights=other), "conv2d_1/bias"), b)
    np.testing.assert_array_equal(parameter(convert(tmp_path), "conv2d_1/kernel"), w.transpose(3, 2, 0, 1))
    with pytest.raises(SurgeryError, match=r"has weights only, no configuration; convert the model's \.json"):
        convert(other)


def test_functions_of_tensorflow_between_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Keras 2.4 to 2.15 wrote what was computed between layers as TFOpLambda layers."""

    def function(name: str, op: str, node: list[Any]) -> dict[str, Any]:
        kind = "SlicingOpLambda" if "getitem" in op else "TFOpLambda"
        return {**layer(kind, name, dtype="float32", function=op), "name": name, "inbound_nodes": [node]}

    config = {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": [
                {**layer("InputLayer", "x", batch_input_shape=[None, 4, 6], dtype="float32"), "name": "x",
                 "inbound_nodes": []},
                function("half", "math.multiply", [["x", 0, 0, {"y": 0.5, "name": None}]]),
                function("less", "math.subtract", [["_CONSTANT_VALUE", -1, 1.0, {"y": ["half", 0, 0]}]]),
                function("both", "__operators__.add", [["less", 0, 0, {"y": ["x", 0, 0], "name": None}]]),
                function("pos", "nn.relu", [["both", 0, 0, {"name": None}]]),
                function("cat", "concat", [["pos", 0, 0, {"axis": -1}], ["half", 0, 0, {"axis": -1}]]),
                function("part", "__operators__.getitem", [["cat", 0, 0, {"slice_spec": [
                    {"start": None, "stop": None, "step": None}, {"start": 1, "stop": None, "step": 2}]}]]),
                function("mean", "math.reduce_mean", [["part", 0, 0, {"axis": [1], "keepdims": False}]]),
            ],
            "input_layers": [["x", 0, 0]],
            "output_layers": [["mean", 0, 0]],
        },
    }  # fmt: skip
    path = write(tmp_path / "net.h5", config, {}, "2.9.0", "tensorflow")
    x = rng.normal(size=(2, 4, 6)).astype(np.float32)
    cat = np.concatenate([np.maximum(1 - x * 0.5 + x, 0), x * 0.5], -1)
    np.testing.assert_allclose(run(convert(path), x)["mean"], cat[:, 1::2].mean(1), rtol=1e-5, atol=1e-6)


def test_what_keras_1_alone_had_is_refused(tmp_path: Path) -> None:
    for kind, arguments, message in (
        ("BatchNormalization", {"mode": 1}, r"layer 'it' \(BatchNormalization\): mode 1 normalizes each example"),
        ("Merge", {"mode": "cos"}, "merges with mode 'cos', which cannot be converted"),
        ("MaxoutDense", {"output_dim": 3}, r"layer 'it' \(MaxoutDense\): cannot be converted"),
    ):
        config = {"class_name": "Sequential", "config": [layer(kind, "it", batch_input_shape=[None, 4], **arguments)]}
        with pytest.raises(SurgeryError, match=message):
            convert(write(tmp_path / "net.h5", config, {"it": []}))


def test_a_real_network_of_keras_2(shared_data: Path, rng: np.random.Generator) -> None:
    """mini_XCEPTION, trained with Keras 2.0.5 (separable convolutions, normalization, sums)."""
    from tests.converters.keras_checks import expected, keras

    path = shared_data / "keras" / "fer2013_mini_XCEPTION.102-0.66.hdf5"
    model = convert(path)
    x = rng.uniform(-1, 1, (3, 64, 64, 1)).astype(np.float32)
    want = expected(keras.models.load_model(path, compile=False), [x])[0]
    (found,) = run(model, x).values()
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert want.std() > 0.05
    assert marks(model.graph.initializers["conv2d_1/kernel"]).l2 == 0.02
