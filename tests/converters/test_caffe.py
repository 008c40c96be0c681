"""The Caffe reader against OpenCV's on trained networks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
import pytest

from converters import convert
from surgery.marks import marks
from tests.converters.caffe_checks import opencv, run


@pytest.mark.parametrize("given", ["prototxt", "caffemodel", "folder"])
def test_our_lenet_equals_opencv(lenet_files: tuple[Path, Path], given: str, rng: np.random.Generator) -> None:
    definition, weights = lenet_files
    model = convert({"prototxt": definition, "caffemodel": weights, "folder": definition.parent}[given])
    x = rng.random((3, 1, 28, 28), np.float32)
    np.testing.assert_allclose(run(model, x)["prob"], opencv(definition, weights, x)["prob"], atol=1e-6)


def test_names_and_marks_are_those_of_the_definition(lenet_files: tuple[Path, Path]) -> None:
    model = convert(lenet_files[0])
    assert [n.name for n in model.graph if "/" not in str(n.name)] == [
        *("conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "drop1", "ip2", "prob")
    ]
    assert [d if isinstance(d, int) else d.value for d in model.graph.inputs[0].shape] == ["N", 1, 28, 28]  # type: ignore[union-attr]
    assert set(model.graph.initializers) == {
        *(f"{layer}.{role}" for layer in ("conv1", "conv2", "ip1", "ip2") for role in ("weight", "bias")),
        "drop1.ratio",
    }
    assert marks(model.graph.initializers["conv1.bias"]).learning_rate == 2
    assert marks(model.graph.initializers["conv1.bias"]).decay == 0
    assert marks(model.graph.initializers["conv1.weight"]).learning_rate == 1
    values = {o.name for n in model.graph for o in n.outputs}
    assert {"conv1", "pool1", "ip1", "ip2", "prob"} <= values


def test_dropout_survives_with_its_ratio(lenet_files: tuple[Path, Path]) -> None:
    (dropout,) = [n for n in convert(lenet_files[0]).graph if n.op_type == "Dropout"]
    ratio = dropout.inputs[1]
    assert ratio is not None
    assert ratio.const_value is not None
    assert ratio.const_value.numpy() == np.float32(0.5)


def mtcnn(shared_data: Path, name: str) -> tuple[Path, Path]:
    return shared_data / "caffe" / "mtcnn" / f"{name}.prototxt", shared_data / "caffe" / "mtcnn" / f"{name}.caffemodel"


@pytest.mark.parametrize(("name", "size"), [("det1", 12), ("det2", 24), ("det3", 48)])
def test_mtcnn_equals_opencv(shared_data: Path, name: str, size: int, rng: np.random.Generator) -> None:
    definition, weights = mtcnn(shared_data, name)
    x = rng.normal(size=(2, 3, size, size)).astype(np.float32)
    _compare(convert(definition), x, opencv(definition, weights, x))


@pytest.mark.parametrize("size", [(12, 12), (37, 52), (40, 41), (57, 81), (100, 75)])
@pytest.mark.parametrize("free", [True, False])
@pytest.mark.training
def test_mtcnn_runs_at_other_sizes(
    shared_data: Path, size: tuple[int, int], free: bool, rng: np.random.Generator
) -> None:
    definition, weights = mtcnn(shared_data, "det1")
    model = convert(definition, shape="3x?x?" if free else f"3x{size[0]}x{size[1]}")
    x = rng.normal(size=(1, 3, *size)).astype(np.float32)
    _compare(model, x, opencv(definition, weights, x))


def _compare(model: ir.Model, x: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    found = run(model, x)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, rtol=1e-5, err_msg=name)


def test_opencv_is_the_one_that_reads_caffe() -> None:
    assert cv2.__version__ < "5"
