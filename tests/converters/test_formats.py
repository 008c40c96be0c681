"""One trained network in the format of every framework computes the same, and keeps the same for training."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import converters
import surgery
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import Preprocessing
from surgery.runtime import session

FOLDER = Path(__file__).resolve().parents[2] / "models" / "lenet_mnist"
# With the modules that the converter needs, and what it must be told.
FORMATS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lenet_mnist.prototxt": ((), {}),
    "formats/lenet.keras": (("h5py",), {}),
    "formats/lenet.pt2": (("torch",), {}),
    "formats/lenet.pb": (("tensorflow", "tf2onnx"), {}),
    "formats/lenet.t7": ((), {"shape": "1x28x28"}),
}


def converted(name: str) -> ir.Model:
    for module in FORMATS[name][0]:
        pytest.importorskip(module)
    how = Preprocessing("gray", scale=1 / 256)  # as on its card
    return converters.convert(FOLDER / name, preprocessing=how, **FORMATS[name][1])


def images(count: int) -> np.ndarray:
    """Strokes on black, [N, 1, 28, 28], that the network takes for digits, not all for the same one."""
    rng = np.random.default_rng(7)
    found = np.zeros((count, 1, 28, 28), np.float32)
    for image in found:
        for _ in range(3):
            row, column, length = rng.integers(4, 12, 3)
            if rng.random() < 0.5:
                image[0, row : row + 3, column : column + length] = 1
            else:
                image[0, row + 4 : row + 4 + length, column + 6 : column + 9] = 1
    return found


def probabilities(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """What `model` makes of `x`, whose channels go where its input has them."""
    (value,) = model.graph.inputs
    assert value.shape is not None
    last = value.shape[3] == 1
    runner = session(model, ["CPUExecutionProvider"], threads=1)
    return runner.run(None, {str(value.name): x.transpose(0, 2, 3, 1) if last else x})[0]


def test_every_format_is_here() -> None:
    assert [name for name in FORMATS if not (FOLDER / name).is_file()] == []


@pytest.mark.parametrize("name", [name for name in FORMATS if "/" in name])
def test_they_compute_the_same(name: str) -> None:
    x = images(12)
    expected = probabilities(converted("lenet_mnist.prototxt"), x)
    assert len(set(expected.argmax(1))) > 3
    assert 0.05 < expected.max(1).min() < 0.9  # not all is saturated
    found = probabilities(converted(name), x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_they_keep_the_same_for_training(name: str) -> None:
    model = converted(name)
    found = [layer for layer in layers(model) if layer.parameters]
    assert [layer.name for layer in found] == ["conv1", "conv2", "ip1", "ip2"]
    assert all(layer.trainable for layer in found)
    sizes = [sum(int(np.prod(p.shape.numpy())) for p in layer.parameters.values() if p.shape) for layer in found]
    assert sizes == [520, 25_050, 400_500, 5_010]
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["Dropout"] == 1
    (dropout,) = (node for node in model.graph if node.op_type == "Dropout")
    ratio = ir.convenience.get_const_tensor(dropout.inputs[1]) if dropout.inputs[1] is not None else None
    assert ratio is not None
    assert float(ratio.numpy()) == 0.5


@pytest.mark.parametrize("name", FORMATS)
def test_they_can_be_operated_on_alike(name: str) -> None:
    """The recipe of the demo fits whatever the network came from."""
    recipe = [
        {"replace_head": {"units": 7, "activation": "softmax", "initializer": "glorot", "seed": 0}},
        {"freeze": {"first": 2}},
        {"insert_dropout": {"layers": "conv2", "rate": 0.2}},
        {"max_norm": 3},
    ]
    model = converted(name)
    surgery.apply(model, recipe)
    assert probabilities(model, images(2)).shape == (2, 7)
    assert [layer.trainable for layer in layers(model) if layer.parameters] == [False, False, True, True]


@pytest.mark.parametrize("name", FORMATS)
def test_they_agree_with_their_own_frameworks(name: str) -> None:
    model = converted(name)
    pytest.importorskip({"keras": "keras", "prototxt": "cv2", "t7": "cv2"}.get(name.rpartition(".")[2], "json"))
    compared = converters.verify(FOLDER / name, model, **FORMATS[name][1])
    assert compared.relative < 1e-4


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", [name for name in FORMATS if "/" in name])
def test_what_is_cut_short_is_an_error_that_names_the_file(tmp_path: Path, name: str, part: float) -> None:
    for module in FORMATS[name][0]:
        pytest.importorskip(module)
    data = (FOLDER / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SurgeryError, match=re.escape(str(path))):
        converters.convert(path, **FORMATS[name][1])


@pytest.mark.parametrize("name", [name for name in FORMATS if "/" in name])
def test_damaged_files_end_in_one_line_or_a_model(tmp_path: Path, name: str) -> None:
    """A byte in the middle of numbers may be another number; elsewhere it is told of."""
    for module in FORMATS[name][0]:
        pytest.importorskip(module)
    data, rng = (FOLDER / name).read_bytes(), np.random.default_rng(0)
    path = tmp_path / Path(name).name
    ends = [rng.integers(0, 2000), len(data) - rng.integers(1, 2000)]  # where the structure is
    for at in ends:
        changed = bytearray(data)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        with contextlib.suppress(SurgeryError):
            converters.convert(path, **FORMATS[name][1])
