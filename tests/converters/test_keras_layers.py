"""Each layer against Keras itself, in both of the forms that Keras 3 saves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert
from tests.converters.keras_checks import compare, functional, keras, run, save

L = keras.layers
IMAGE, WIDE, SEQUENCE, VOLUME, ROW = (9, 8, 6), (9, 10, 3), (7, 4), (5, 6, 4, 2), (12,)

# The layer's class, its arguments, the input's shape.
CASES: list[tuple[Any, dict[str, Any], tuple[int, ...]]] = [
    (L.Dense, {"units": 5, "activation": "relu"}, ROW),
    (L.Dense, {"units": 5, "use_bias": False}, SEQUENCE),
    (L.Dense, {"units": 5, "activation": "softmax"}, IMAGE),
    (L.EinsumDense, {"equation": "abc,cd->abd", "output_shape": (None, 5), "bias_axes": "d"}, SEQUENCE),
    (L.EinsumDense, {"equation": "...x,xy->...y", "output_shape": 5, "activation": "tanh"}, IMAGE),
    (L.Conv1D, {"filters": 5, "kernel_size": 3}, SEQUENCE),
    (L.Conv1D, {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}, SEQUENCE),
    (L.Conv1D, {"filters": 4, "kernel_size": 2, "padding": "same", "strides": 2, "groups": 2}, SEQUENCE),
    (L.Conv2D, {"filters": 5, "kernel_size": 3}, IMAGE),
    (L.Conv2D, {"filters": 5, "kernel_size": (3, 2), "padding": "same", "activation": "elu"}, IMAGE),
    (L.Conv2D, {"filters": 5, "kernel_size": (2, 4), "padding": "same", "strides": 2}, IMAGE),
    (L.Conv2D, {"filters": 4, "kernel_size": 5, "padding": "same", "strides": (3, 2), "use_bias": False}, IMAGE),
    (L.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 3, "dilation_rate": 2, "padding": "same"}, IMAGE),
    (L.Conv2D, {"filters": 5, "kernel_size": 1, "strides": 2, "padding": "same"}, IMAGE),
    (L.Conv3D, {"filters": 3, "kernel_size": (2, 3, 2), "padding": "same", "strides": 2}, VOLUME),
    (L.Conv3D, {"filters": 3, "kernel_size": 2}, VOLUME),
    (L.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}, SEQUENCE),
    (L.DepthwiseConv2D, {"kernel_size": 3, "padding": "same"}, IMAGE),
    (L.DepthwiseConv2D, {"kernel_size": (3, 3), "depth_multiplier": 2, "strides": 2, "activation": "relu"}, IMAGE),
    (L.DepthwiseConv2D, {"kernel_size": 3, "dilation_rate": 2, "use_bias": False}, IMAGE),
    (L.SeparableConv1D, {"filters": 5, "kernel_size": 3, "padding": "same"}, SEQUENCE),
    (L.SeparableConv2D, {"filters": 5, "kernel_size": 3, "depth_multiplier": 2, "padding": "same"}, IMAGE),
    (L.SeparableConv2D, {"filters": 5, "kernel_size": 3, "strides": 2, "use_bias": False}, IMAGE),
    (L.Conv1DTranspose, {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}, SEQUENCE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 3}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 4, "strides": 2, "padding": "same", "use_bias": False}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 2, "strides": 3, "padding": "same"}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 2, "strides": 3}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": (5, 3), "strides": (1, 2), "padding": "same"}, IMAGE),
    (L.Conv2DTranspose, {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "valid", "output_padding": 1}, IMAGE),
    (L.Conv3DTranspose, {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"}, VOLUME),
    (L.MaxPooling1D, {"pool_size": 3, "strides": 2}, SEQUENCE),
    (L.MaxPooling2D, {}, IMAGE),
    (L.MaxPooling2D, {"pool_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    (L.MaxPooling2D, {"pool_size": (2, 3), "strides": 1, "padding": "same"}, IMAGE),
    (L.MaxPooling3D, {"pool_size": 2}, VOLUME),
    (L.AveragePooling1D, {"pool_size": 3, "padding": "same"}, SEQUENCE),
    (L.AveragePooling2D, {"pool_size": 3, "strides": 2, "padding": "same"}, (9, 7, 3)),
    (L.AveragePooling2D, {"pool_size": (3, 2), "strides": (2, 3)}, IMAGE),
    (L.AveragePooling3D, {"pool_size": 2, "strides": 1, "padding": "same"}, VOLUME),
    (L.GlobalMaxPooling1D, {}, SEQUENCE),
    (L.GlobalAveragePooling1D, {"keepdims": True}, SEQUENCE),
    (L.GlobalMaxPooling2D, {"keepdims": True}, IMAGE),
    (L.GlobalAveragePooling2D, {}, IMAGE),
    (L.GlobalAveragePooling3D, {}, VOLUME),
    (L.AdaptiveAveragePooling2D, {"output_size": (3, 4)}, IMAGE),
    (L.AdaptiveMaxPooling2D, {"output_size": (3, 2)}, IMAGE),
    (L.BatchNormalization, {}, IMAGE),
    (L.BatchNormalization, {"scale": False, "epsilon": 0.1}, ROW),
    (L.BatchNormalization, {"center": False, "axis": 1}, IMAGE),
    (L.BatchNormalization, {"axis": 2}, IMAGE),
    (L.BatchNormalization, {}, SEQUENCE),
    (L.LayerNormalization, {}, SEQUENCE),
    (L.LayerNormalization, {"axis": [1, 2, 3], "center": False}, IMAGE),
    (L.LayerNormalization, {"axis": -1, "scale": False, "epsilon": 0.1}, IMAGE),
    (L.RMSNormalization, {}, SEQUENCE),
    (L.GroupNormalization, {"groups": 3}, IMAGE),
    (L.GroupNormalization, {"groups": -1, "scale": False}, IMAGE),
    (L.GroupNormalization, {"groups": 2}, SEQUENCE),
    (L.UnitNormalization, {}, IMAGE),
    (L.UnitNormalization, {"axis": [1, 2]}, IMAGE),
    (L.Normalization, {"mean": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "variance": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, IMAGE),
    (L.Normalization, {"mean": 1.0, "variance": 2.0, "invert": True}, IMAGE),
    (L.Normalization, {"axis": None, "mean": 1.0, "variance": 4.0}, SEQUENCE),
    (L.Rescaling, {"scale": 1 / 255, "offset": -1.0}, IMAGE),
    (L.Rescaling, {"scale": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "offset": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}, IMAGE),
    (L.Resizing, {"height": 5, "width": 13}, IMAGE),
    (L.CenterCrop, {"height": 5, "width": 4}, IMAGE),
    (L.ZeroPadding1D, {"padding": (1, 2)}, SEQUENCE),
    (L.ZeroPadding2D, {"padding": ((1, 2), (0, 3))}, IMAGE),
    (L.ZeroPadding2D, {"padding": 2}, IMAGE),
    (L.ZeroPadding3D, {"padding": (1, 0, 2)}, VOLUME),
    (L.Cropping1D, {"cropping": (1, 2)}, SEQUENCE),
    (L.Cropping2D, {"cropping": ((1, 2), (0, 3))}, IMAGE),
    (L.Cropping3D, {"cropping": 1}, VOLUME),
    (L.UpSampling1D, {"size": 3}, SEQUENCE),
    (L.UpSampling2D, {"size": (2, 3)}, IMAGE),
    (L.UpSampling2D, {"size": 2, "interpolation": "bilinear"}, IMAGE),
    (L.UpSampling3D, {"size": 2}, VOLUME),
    (L.Flatten, {}, IMAGE),
    (L.Reshape, {"target_shape": (12, 36)}, IMAGE),
    (L.Reshape, {"target_shape": (-1, 3)}, ROW),
    (L.Reshape, {"target_shape": (1, 1, 12)}, ROW),
    (L.Permute, {"dims": (3, 1, 2)}, IMAGE),
    (L.RepeatVector, {"n": 3}, ROW),
    (L.ReLU, {}, IMAGE),
    (L.ReLU, {"max_value": 1.0, "negative_slope": 0.1, "threshold": 0.5}, IMAGE),
    (L.ReLU, {"max_value": 0.5}, ROW),
    (L.LeakyReLU, {"negative_slope": 0.2}, IMAGE),
    (L.ELU, {"alpha": 0.5}, IMAGE),
    (L.PReLU, {}, IMAGE),
    (L.PReLU, {"shared_axes": [1, 2]}, IMAGE),
    (L.Softmax, {"axis": 1}, IMAGE),
    (L.Softmax, {}, ROW),
    (L.Dropout, {"rate": 0.4}, IMAGE),
    (L.Dropout, {"rate": 0.4, "noise_shape": (None, 1, 6)}, (8, 6)),
    (L.SpatialDropout1D, {"rate": 0.4}, SEQUENCE),
    (L.SpatialDropout2D, {"rate": 0.4}, IMAGE),
    (L.GaussianNoise, {"stddev": 0.4}, IMAGE),
    (L.GaussianDropout, {"rate": 0.4}, IMAGE),
    (L.AlphaDropout, {"rate": 0.4}, IMAGE),
    (L.ActivityRegularization, {"l2": 0.4}, ROW),
    (L.Identity, {}, ROW),
    (L.LSTM, {"units": 3}, SEQUENCE),
    (
        L.LSTM,
        {"units": 3, "return_sequences": True, "recurrent_activation": "hard_sigmoid", "use_bias": False},
        SEQUENCE,
    ),
    (L.LSTM, {"units": 3, "return_sequences": True, "go_backwards": True, "activation": "relu"}, SEQUENCE),
    (L.LSTM, {"units": 3, "return_state": True}, SEQUENCE),
    (L.GRU, {"units": 3}, SEQUENCE),
    (L.GRU, {"units": 3, "reset_after": False, "return_sequences": True}, SEQUENCE),
    (L.GRU, {"units": 3, "return_sequences": True, "return_state": True, "go_backwards": True}, SEQUENCE),
    (L.SimpleRNN, {"units": 3}, SEQUENCE),
    (L.SimpleRNN, {"units": 3, "return_sequences": True, "activation": "linear"}, SEQUENCE),
]


def name(case: tuple[Any, dict[str, Any], tuple[int, ...]]) -> str:
    kind, arguments, _ = case
    return kind.__name__ + "-" + "-".join(f"{k}={v}" for k, v in arguments.items())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_layer_computes_what_keras_does(case: tuple[Any, dict[str, Any], Any], rng: np.random.Generator) -> None:
    kind, arguments, shape = case
    compare(functional(kind(**arguments), shape), rng)


ACTIVATIONS = """linear relu relu6 leaky_relu elu selu celu gelu sigmoid hard_sigmoid log_sigmoid tanh hard_tanh
                 tanh_shrink hard_shrink soft_shrink softplus softsign softmax log_softmax exponential silu hard_silu
                 mish"""


@pytest.mark.parametrize("activation", ACTIVATIONS.split())
def test_an_activation_computes_what_keras_does(activation: str, rng: np.random.Generator) -> None:
    start = keras.Input(WIDE)
    outputs = [L.Conv2D(4, 3, activation=activation)(start), L.Activation(activation)(start)]
    compare(keras.Model(start, outputs), rng, [".keras"])


def test_an_average_leaves_out_uneven_padding(rng: np.random.Generator) -> None:
    """As TensorFlow; Keras on PyTorch repeats the edge there, which is a known fault of it."""
    model = functional(L.AveragePooling2D(3, strides=2, padding="same"), (9, 8, 2))
    x = rng.normal(size=(2, 9, 8, 2)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (1, 1), (0, 1), (0, 0)], constant_values=np.nan)
    want = np.stack(
        [
            np.stack([np.nanmean(padded[:, i : i + 3, j : j + 3], (1, 2)) for j in range(0, 8, 2)], 1)
            for i in range(0, 9, 2)
        ],
        1,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = run(convert(save(model, Path(folder) / "model.keras")), x)
    np.testing.assert_allclose(next(iter(found.values())), want, rtol=1e-5, atol=1e-6)


def test_statistics_of_the_data_come_from_the_file(rng: np.random.Generator) -> None:
    layer = L.Normalization(axis=(1, 3))
    layer.adapt(rng.normal(2, 3, size=(20, 5, 4, 3)).astype(np.float32))
    compare(functional(layer, (5, 4, 3)), rng, randomized=False)
