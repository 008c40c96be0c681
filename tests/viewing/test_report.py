"""Pictures are looked at through what they are drawn of, and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearns

import surgery
from surgery.data import from_arrays
from surgery.demo.digits import digits
from surgery.marks import Preprocessing, set_labels, set_preprocessing
from surgery.viewing.confusion import confusion_matrix, plot_confusion
from surgery.viewing.report import write_report
from surgery.viewing.wrong import most_wrong, pictures, plot_wrong
from tests.nets import Residual, lenet, residual, torch_lenet


def test_the_confusion_matrix_is_scikit_learns(rng: np.random.Generator) -> None:
    targets, predicted = rng.integers(0, 6, (2, 200))
    targets[targets == 4] = 3  # a class without examples
    expected = sklearns(targets, predicted, labels=range(6))
    np.testing.assert_array_equal(confusion_matrix(targets, predicted, 6), expected)


def test_the_most_wrong_come_first_and_nothing_right() -> None:
    scores = np.array([[0.6, 0.4, 0.0], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    targets = np.array([1, 2, 1, 1, 0])
    assert most_wrong(scores, targets).tolist() == [1, 3, 4, 0]  # the true class has 0.05, 0.2, 0.3, 0.4
    assert most_wrong(scores, targets, 2).tolist() == [1, 3]


@pytest.mark.parametrize("classes", [2, 12, 200])
def test_pictures_of_many_classes_stay_of_a_size(tmp_path: Path, rng: np.random.Generator, classes: int) -> None:
    matrix = rng.integers(0, 50, (classes, classes))
    plot_confusion(matrix, tmp_path / "c.png", [f"a class with a long name {i}" for i in range(classes)], "title")
    width, height = Image.open(tmp_path / "c.png").size
    assert 250 < height <= width < 1900


def shown(model: ir.Model, images: np.ndarray, flat: bool = False) -> list[np.ndarray]:
    data = from_arrays(images, np.zeros(len(images), np.int64), model)
    found = pictures(data, np.array([1, 0]), model)
    assert found is not None
    return found


def test_raw_images_are_shown_as_they_are(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 28, 28), np.uint8)
    first, second = shown(lenet(torch_lenet()), images)
    np.testing.assert_array_equal(first, images[1])
    np.testing.assert_array_equal(second, images[0])


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(color="bgr", mean=(103.9, 116.8, 123.7)),  # Caffe's
        Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),  # torchvision's
        Preprocessing(scale=1 / 127.5, mean=(1.0,)),  # TensorFlow's
    ],
)
def test_prepared_images_become_pixels_again(rng: np.random.Generator, how: Preprocessing) -> None:
    model = residual(Residual())
    set_preprocessing(model, "data", how)
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    prepared = from_arrays(images, np.zeros(2, np.int64), model).prepare(images)
    for image, original in zip(shown(model, prepared), images[::-1], strict=True):
        np.testing.assert_array_equal(image, original)


def test_numbers_of_unknown_meaning_are_stretched_from_black_to_white(rng: np.random.Generator) -> None:
    first, _ = shown(residual(Residual()), rng.standard_normal((2, 3, 8, 8)).astype(np.float32))
    assert (first.min(), first.max()) == (0, 255)


def test_vectors_are_no_pictures(rng: np.random.Generator) -> None:
    model = lenet(torch_lenet())
    data = from_arrays(rng.standard_normal((2, 784)).astype(np.float32).reshape(2, 1, 28, 28), np.zeros(2, int), model)
    assert pictures(data.__class__(np.zeros((2, 7)), data.targets), np.array([0]), model) is None


@pytest.mark.training
def test_a_report_of_digits(tmp_path: Path) -> None:
    model = lenet(torch_lenet())
    arrays = digits(100)
    trained = surgery.train(model, (arrays["x_train"], arrays["y_train"]), epochs=3, learning_rate=0.01).model
    set_labels(trained, str(trained.graph.outputs[0].name), list("ABCDEFGHIJ"))
    data = from_arrays(arrays["x_test"][:200], arrays["y_test"][:200], trained)
    files = write_report(trained, data, tmp_path / "deep")
    assert {name: path.name for name, path in files.items()} == {"confusion": "confusion.png", "wrong": "wrong.png"}
    assert all(Image.open(path).size[0] > 300 for path in files.values())


def test_an_earlier_report_does_not_stay(tmp_path: Path, rng: np.random.Generator) -> None:
    model = residual(Residual())
    examples = rng.standard_normal((8, 3, 8, 8)).astype(np.float32)
    right = from_arrays(examples, surgery.predict(model, examples).argmax(1), model)
    assert "wrong" in write_report(model, from_arrays(examples, 3 - right.targets, model), tmp_path)  # type: ignore[operator]
    assert list(write_report(model, right, tmp_path)) == ["confusion"]
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


def test_each_of_several_outputs_has_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    model = residual(Residual())
    logits = model.graph.outputs[0].producer().inputs[0]  # type: ignore[union-attr]
    model.graph.outputs.append(logits)  # type: ignore[arg-type]
    examples, classes = rng.standard_normal((8, 3, 8, 8)).astype(np.float32), np.arange(8) % 4
    data = from_arrays(examples, {"prob": classes, logits.name: np.ones((8, 4))}, model)  # type: ignore[union-attr, dict-item]
    losses = {"prob": "cross_entropy", logits.name: "mean_squared_error"}  # type: ignore[union-attr]
    assert list(write_report(model, data, tmp_path, loss=losses)) == ["prob-confusion", "prob-wrong"]


def test_regression_has_no_report(tmp_path: Path, rng: np.random.Generator) -> None:
    model = residual(Residual())
    data = from_arrays(rng.standard_normal((5, 3, 8, 8)).astype(np.float32), np.ones((5, 4), np.float32), model)
    assert write_report(model, data, tmp_path, loss="mean_squared_error") == {}
    assert not list(tmp_path.iterdir())


def test_names_with_dollar_signs_are_no_formulas(tmp_path: Path) -> None:
    names = ["a $x_{ $ thing", "costs 5 $"]
    plot_confusion(np.eye(2, dtype=int), tmp_path / "c.png", names, "$_{$")
    image = np.zeros((4, 4), np.uint8)
    plot_wrong([image], np.array([0]), np.array([[0.2, 0.8]]), tmp_path / "w.png", names, "$_{$")
    assert (tmp_path / "c.png").stat().st_size
    assert (tmp_path / "w.png").stat().st_size
