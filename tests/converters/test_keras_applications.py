"""Networks of keras.applications with random weights, against Keras itself."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from tests.converters.keras_checks import expected, keras, randomize, run, save

# Name, height and width, arguments. Sizes are as small as a network takes, classes few.
NETWORKS: list[tuple[str, int, dict[str, Any]]] = [
    ("MobileNet", 32, {"alpha": 0.25}),
    ("MobileNetV2", 64, {}),
    ("MobileNetV3Small", 32, {"alpha": 0.75}),
    ("VGG16", 32, {"include_top": False, "pooling": "max"}),
    ("ResNet50", 64, {}),
    ("InceptionV3", 75, {}),
    ("Xception", 71, {}),
    ("DenseNet121", 64, {}),
    ("EfficientNetB0", 32, {}),
    ("NASNetMobile", 64, {}),
    ("ConvNeXtTiny", 32, {}),
]


def build(name: str, size: int, arguments: dict[str, Any]) -> Any:
    if name == "NASNetMobile":  # Keras refuses its name on PyTorch, whose uneven average pooling is wrong
        from keras.src.applications.nasnet import NASNet

        return NASNet((size, size, 3), 1056, 4, 32, False, 2, True, None, None, None, 5, size, None)
    arguments = arguments if "include_top" in arguments else arguments | {"classes": 5, "classifier_activation": None}
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), **arguments)


def settle(network: Any, x: np.ndarray) -> None:
    """Gives the normalizations the statistics of `x`: with random ones a signal dies in a deep network.

    The variances are a little larger, so that rounding does not grow from layer to layer.
    """
    norms = [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    with torch.no_grad():
        network(x, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        variance = keras.ops.convert_to_numpy(layer.moving_variance)
        layer.moving_variance.assign(variance + 0.3 * variance.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "arguments"), NETWORKS, ids=[n for n, _, _ in NETWORKS])
def test_a_network_computes_what_keras_does(
    name: str, size: int, arguments: dict[str, Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    network = randomize(build(name, size, arguments), rng)
    x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    settle(network, rng.normal(size=(4, size, size, 3)).astype(np.float32))
    want = expected(network, [x])[0]
    path = save(network, tmp_path / "net.keras")
    del network
    model = convert(path)
    (found,) = run(model, x).values()
    most = np.abs(want).max()
    assert np.abs(want[0] - want[1]).max() > 1e-3 * most  # that the input counts
    assert np.abs(found - want).max() <= 1e-4 * most
    assert all(node.name for node in model.graph)
    path.unlink()
    gc.collect()
