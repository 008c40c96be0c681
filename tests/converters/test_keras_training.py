"""What training needs: marks from constraints, regularizers and `trainable`; and that converted networks train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from converters import convert
from surgery.layers import layers as layers_of
from surgery.marks import Constraint, Marks, marks
from tests.converters.keras_checks import compare, functional, keras, parameter, randomize, run, save

L, K = keras.layers, keras.constraints


def mark(model: ir.Model, name: str) -> Marks:
    return marks(model.graph.initializers[name])


def test_constraints_become_marks_along_their_axes(rng: np.random.Generator) -> None:
    model = compare(
        functional(
            [
                L.Conv2D(
                    4, 3, kernel_constraint=K.MaxNorm(2.5, axis=[0, 1, 2]), bias_constraint=K.NonNeg(), name="conv"
                ),
                L.DepthwiseConv2D(
                    3, depth_multiplier=2, depthwise_constraint=K.MaxNorm(1, axis=[0, 1]), name="depthwise"
                ),
                L.SeparableConv2D(3, 3, pointwise_constraint=K.UnitNorm(axis=2), padding="same", name="separable"),
                L.BatchNormalization(gamma_constraint=K.NonNeg(), name="norm"),
                L.Dense(4, kernel_constraint=K.MinMaxNorm(0.5, 2, rate=0.9, axis=0), name="mixed"),
                L.Reshape((-1, 4)),
                L.LSTM(3, kernel_constraint=K.MaxNorm(3, axis=0), recurrent_constraint=K.UnitNorm(axis=0), name="lstm"),
                L.Dense(2, kernel_constraint="max_norm", name="dense"),
            ],
            (9, 9, 3),
        ),
        rng,
    )
    for name, bound in {
        "conv/kernel": Constraint("max_norm", 2.5, (1, 2, 3)),
        "conv/bias": Constraint("non_neg"),
        "depthwise/depthwise_kernel": Constraint("max_norm", 1, (2, 3)),
        "separable/depthwise_kernel": None,
        "separable/pointwise_kernel": Constraint("unit_norm", axes=(1,)),
        "norm/gamma": Constraint("non_neg"),
        "norm/beta": None,
        "mixed/kernel": Constraint("min_max_norm", 2, (1,), 0.5, 0.9),
        "lstm/kernel": Constraint("max_norm", 3, (2,)),
        "lstm/recurrent_kernel": Constraint("unit_norm", axes=(2,)),
        "dense/kernel": Constraint("max_norm", 2, (0,)),
    }.items():
        assert mark(model, name).constraint == bound, name


def test_a_converted_constraint_bounds_the_same_norms(rng: np.random.Generator) -> None:
    """Keras's own projection of a kernel equals the norms over the axes of the mark."""
    layer = L.Conv2D(4, 3, kernel_constraint=K.MaxNorm(0.5, axis=[0, 1, 2]), name="conv")
    model = compare(functional(layer, (9, 9, 3)), rng)
    kernel, bound = parameter(model, "conv/kernel"), mark(model, "conv/kernel").constraint
    assert bound is not None
    norm = np.sqrt((kernel**2).sum(bound.axes, keepdims=True))
    ours = kernel * np.minimum(1, bound.value / norm)
    keras_own = keras.ops.convert_to_numpy(K.MaxNorm(0.5, axis=[0, 1, 2])(layer.kernel))
    np.testing.assert_allclose(ours, keras_own.transpose(3, 2, 0, 1), rtol=1e-4)


def test_regularizers_become_marks(rng: np.random.Generator) -> None:
    layers = [
        L.Dense(4, kernel_regularizer=keras.regularizers.L2(1e-3), name="a"),
        L.Dense(4, kernel_regularizer=keras.regularizers.L1L2(0.02, 5e-4), bias_regularizer="l2", name="b"),
    ]
    model = compare(functional(layers, (3,)), rng)
    marked = {
        name: (mark(model, name).l1, mark(model, name).l2) for name in ("a/kernel", "a/bias", "b/kernel", "b/bias")
    }
    assert marked == {"a/kernel": (0, 0.002), "a/bias": (0, 0), "b/kernel": (0.02, 0.001), "b/bias": (0, 0.02)}


@pytest.mark.training
def test_a_regularizer_takes_from_the_weights_what_keras_takes(tmp_path: Path) -> None:
    """One step of plain gradient descent on data whose loss has no gradient: only the penalty moves the weights."""
    regularizer = keras.regularizers.L1L2(0.02, 0.05)
    network = functional(L.Dense(2, use_bias=False, kernel_regularizer=regularizer, name="a"), (3,))
    kernel = np.array([[1, -2], [0.5, 3], [-1, 0.25]], np.float32)
    network.get_layer("a").set_weights([kernel])
    model = convert(save(network, tmp_path / "net.keras"))
    data = np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32)
    optimizer = {"name": "sgd", "momentum": 0}
    trained = surgery.train(
        model, data, epochs=1, batch_size=4, learning_rate=0.1, optimizer=optimizer, loss="mean_squared_error"
    )
    penalized = network.get_layer("a").kernel
    network.losses[0].backward()
    want = kernel - 0.1 * penalized.value.grad.numpy()
    np.testing.assert_allclose(parameter(trained.model, "a/kernel"), want, rtol=1e-5)


def test_what_has_no_mark_is_told(rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    regularizer = keras.regularizers.OrthogonalRegularizer()
    layers = [L.Dense(4, kernel_regularizer=regularizer, name="a"), L.GaussianNoise(0.1, name="noise")]
    with caplog.at_level(logging.WARNING):
        compare(functional(layers, (3,)), rng, [".keras"])
    assert "layer 'a' (Dense): the regularizer OrthogonalRegularizer of a/kernel has no equal" in caplog.text
    assert "layer 'noise' (GaussianNoise): its noise, which only training has, is left out" in caplog.text


def test_frozen_layers_and_models_stay_frozen(rng: np.random.Generator) -> None:
    block = keras.Sequential([keras.Input((9, 9, 3)), L.Conv2D(4, 3, name="conv"), L.BatchNormalization(name="norm")])
    block.name = "block"
    block.trainable = False
    frozen = L.Dense(4, trainable=False, name="frozen")
    start = keras.Input((9, 9, 3))
    both = L.Bidirectional(L.GRU(2), name="both", trainable=False)
    x = both(L.Reshape((-1, 4))(frozen(block(start))))
    model = compare(keras.Model(start, L.Dense(2, name="head")(x)), rng)
    frozen_names = {name for name in model.graph.initializers if not mark(model, name).trainable and "/" in name}
    assert {"block/conv/kernel", "block/conv/bias", "block/norm/gamma", "block/norm/moving_mean"} <= frozen_names
    assert {"frozen/kernel", "both/kernel", "both/bias"} <= frozen_names
    assert not {"head/kernel", "head/bias"} & frozen_names


def test_statistics_of_the_data_are_not_trained(rng: np.random.Generator) -> None:
    layers = [L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]), L.Rescaling([1.0, 2.0, 3.0])]
    model = compare(functional([*layers, L.Dense(2, name="dense")], (4, 4, 3)), rng)
    for layer in layers_of(model):
        for role, value in layer.parameters.items():
            assert marks(value).trainable == (layer.name == "dense"), (layer.name, role)


def images(rng: np.random.Generator, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(48) % classes
    x = rng.normal(0, 0.3, size=(48, *shape)).astype(np.float32) + y.reshape(-1, *[1] * len(shape)).astype(np.float32)
    return x, y


BODIES: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "convolutions": (
        [
            L.Conv2D(4, 3, padding="same", strides=2),
            L.BatchNormalization(),
            L.ReLU(),
            L.DepthwiseConv2D(3),
            L.SpatialDropout2D(0.1),
            L.Activation("silu"),
            L.LayerNormalization(),
            L.Dense(5, activation="gelu"),
            L.GlobalAveragePooling2D(),
        ],
        (11, 11, 1),
    ),
    "transposed": ([L.Conv2DTranspose(3, 3, strides=2), L.UpSampling2D(2), L.MaxPooling2D(3), L.Flatten()], (5, 5, 1)),
    "sequence": ([L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(4), L.Dropout(0.1)], (5, 2)),
    "steps": ([L.Conv1D(4, 3, padding="causal"), L.TimeDistributed(L.Dense(3)), L.SimpleRNN(4)], (6, 2)),
}


@pytest.mark.training
@pytest.mark.parametrize("body", BODIES)
def test_a_converted_network_trains(body: str, tmp_path: Path, rng: np.random.Generator) -> None:
    inner, shape = BODIES[body]
    inner = [type(layer).from_config(layer.get_config()) for layer in inner]
    network = randomize(functional([*inner, L.Dense(3, activation="softmax", name="head")], shape), rng)
    model = convert(save(network, tmp_path / "net.keras"))
    before = {name: parameter(model, name).copy() for name in model.graph.initializers}
    result = surgery.train(
        model, images(rng, shape, 3), epochs=4, batch_size=16, learning_rate=0.01, optimizer="adam", seed=1
    )
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0]
    trained = {
        name
        for layer in layers_of(result.model)
        for role, value in layer.parameters.items()
        if role not in ("mean", "var") and (name := str(value.name)) in before
        and not np.array_equal(before[name], parameter(result.model, name))
    }  # fmt: skip
    names = {str(v.name) for x in layers_of(model) for r, v in x.parameters.items() if r not in ("mean", "var")}
    assert trained == names
    assert [o.name for o in result.model.graph.outputs] == ["head"]
    run(result.model, images(rng, shape, 3)[0])
