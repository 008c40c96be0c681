from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.data import from_arrays, input_spec, open_data, open_part
from surgery.data.preprocess import preparer
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing, set_labels
from tests.data.models import model_with_input

RGB = model_with_input("N", 3, 8, 8)


def write_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("bees", (255, 255, 0)), ("ants", (200, 0, 0))):
        for number in range(3):
            write_image(tmp_path / "data" / name / f"{number}.png", color)
    return tmp_path / "data"


def test_a_folder_of_classes_gives_images_classes_in_order_and_their_names(folder: Path) -> None:
    data, held = open_data(folder, RGB)
    assert held is None
    assert data.labels == ("ants", "bees")
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]
    (examples, _), *_ = data.batches(6)
    assert examples.shape == (6, 3, 8, 8)
    np.testing.assert_allclose(examples[0, :, 4, 4], [200 / 255, 0, 0], atol=1e-6)
    np.testing.assert_allclose(examples[5, :, 0, 7], [1, 1, 0], atol=1e-6)


def test_train_and_val_folders_are_told_apart(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "train")
    (tmp_path / "set").mkdir()
    (tmp_path / "train").rename(tmp_path / "set" / "train")
    write_image(tmp_path / "set" / "val" / "bees" / "x.jpg", (250, 250, 10))
    data, held = open_data(tmp_path / "set", RGB)
    assert len(data) == 6
    assert held is not None
    assert held.targets.tolist() == [1]  # as training counts the classes
    tested = open_part(tmp_path / "set", RGB)
    assert (tested.part, tested.targets.tolist()) == ("val", [1])


def test_classes_are_numbered_as_the_models_labels(folder: Path) -> None:
    model = model_with_input("N", 3, 8, 8)
    set_labels(model, "out", ["bees", "cats", "ants"])
    data, _ = open_data(folder, model)
    assert data.targets.tolist() == [0, 0, 0, 2, 2, 2]
    assert data.examples[0, 0, 0].tolist() == [255, 255, 0]  # a bee


def test_a_class_that_only_validation_has_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder.rename(tmp_path / "set" / "train")
    write_image(tmp_path / "set" / "val" / "wasps" / "x.png", (1, 1, 1))
    with pytest.raises(SurgeryError, match="wasps"):
        open_data(tmp_path / "set", RGB)


def test_images_that_do_not_decode_are_named_and_skipped_only_on_request(folder: Path) -> None:
    (folder / "ants" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(SurgeryError, match=r"1 image does not decode.*broken\.jpg"):
        open_data(folder, RGB)
    data, _ = open_data(folder, RGB, skip_bad=True)
    assert len(data) == 6
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_caffes_preprocessing_is_bgr_minus_the_mean(folder: Path) -> None:
    how = Preprocessing(color="bgr", mean=(104.0, 117.0, 123.0))
    data, _ = open_data(folder, model_with_input("N", 3, 8, 8, how=how))
    (examples, _), *_ = data.batches(1)
    np.testing.assert_allclose(examples[0, :, 0, 0], [0 - 104, 0 - 117, 200 - 123])


def test_torchvisions_preprocessing_scales_then_standardizes(folder: Path) -> None:
    how = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data, _ = open_data(folder, model_with_input("N", 3, 8, 8, how=how))
    (examples, _), *_ = data.batches(1)
    np.testing.assert_allclose(examples[0, 0, 0, 0], (200 / 255 - 0.485) / 0.229, rtol=1e-5)


def test_an_nhwc_input_gets_its_layout(folder: Path) -> None:
    how = Preprocessing(layout="NHWC", scale=1 / 255)
    data, _ = open_data(folder, model_with_input("N", 8, 6, 3, how=how))
    (examples, _), *_ = data.batches(2)
    assert examples.shape == (2, 8, 6, 3)


def test_npz_files_have_their_parts_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.normal(size=(5, 3, 8, 8)), "y_train": np.arange(5) % 2}
    arrays |= {"x_test": rng.normal(size=(2, 3, 8, 8)), "y_test": np.array([[1], [0]])}
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    data, held = open_data(tmp_path / "d.npz", RGB)
    assert held is None
    (examples, targets), *_ = data.batches(5)
    np.testing.assert_allclose(examples, arrays["x_train"], rtol=1e-6)
    assert targets.tolist() == [0, 1, 0, 1, 0]
    tested = open_part(tmp_path / "d.npz", RGB)
    assert tested.targets.tolist() == [1, 0]  # Keras' data sets have a column


def test_gray_images_of_another_size_fit_a_colour_input(tmp_path: Path) -> None:
    images = np.full((2, 28, 28), 51, np.uint8)
    np.savez(tmp_path / "d.npz", x=images, y=np.zeros(2, np.int64))
    data, _ = open_data(tmp_path / "d.npz", RGB)
    (examples, _), *_ = data.batches(2)
    np.testing.assert_allclose(examples, np.full((2, 3, 8, 8), 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "not a readable"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut short"), "not a readable"),
        (lambda p: np.savez(p, images=np.zeros(3)), "no array x_train or x, but images"),
        (lambda p: np.savez(p, x=np.zeros(3)), "no array y"),
        (lambda p: np.savez(p, x=np.zeros((0, 3, 8, 8)), y=np.zeros(0)), "empty"),
        (
            lambda p: np.savez(p, x=np.zeros((2, 3, 9, 9)), y=np.zeros(2)),
            r"\[3, 9, 9\] do not fit the input's \[3, 8, 8\]",
        ),
        (lambda p: np.savez(p, x=np.array([{}], object), y=np.zeros(1)), "cannot be read"),
    ],
    ids=["missing", "empty file", "truncated", "other names", "no targets", "no examples", "other shape", "pickle"],
)
def test_bad_npz_files_get_a_clear_error(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "d.npz"
    make(path)  # type: ignore[operator]
    with pytest.raises(SurgeryError, match=message):
        open_data(path, RGB)


def test_a_folder_without_classes_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(SurgeryError, match="0 class folders"):
        open_data(tmp_path, RGB)


def test_arrays_keep_float_targets_for_regression() -> None:
    data = from_arrays(np.zeros((3, 3, 8, 8)), np.array([0.5, 1.5, 2.5]), RGB)
    assert data.targets.dtype == np.float32


def test_a_vector_input_takes_flattened_images() -> None:
    spec = input_spec(model_with_input("N", 64))
    prepared = preparer(np.zeros((2, 8, 8), np.uint8) + 255, spec)(np.full((2, 8, 8), 255, np.uint8))
    assert prepared.shape == (2, 64)
    assert prepared.max() == 1.0


def test_examples_by_input_are_prepared_each_as_its_input_takes_them() -> None:
    model = model_with_input("N", 3, 2, 2)
    data = from_arrays({"data": [[[255, 0], [0, 51]]]}, np.zeros(1), model_with_input("N", 1, 2, 2))  # type: ignore[dict-item]
    ((examples, _),) = data.batches(1)
    assert isinstance(examples, dict)
    assert examples["data"].tolist() == [[[[255, 0], [0, 51]]]]  # numbers that are not uint8 are taken as they are
    raw = from_arrays({"data": np.full((1, 2, 2, 3), 51, np.uint8)}, np.zeros(1), model)
    assert set(raw.assumed) == {"data"}
    ((examples, _),) = raw.batches(1)
    assert isinstance(examples, dict)
    np.testing.assert_allclose(examples["data"], np.full((1, 3, 2, 2), 0.2), rtol=1e-6)
    with pytest.raises(SurgeryError, match="empty"):
        from_arrays({"data": np.zeros((0, 3, 2, 2))}, np.zeros(0), model)
    with pytest.raises(SurgeryError, match="given for image, but the model's inputs are data"):
        from_arrays({"image": np.zeros((1, 3, 2, 2))}, np.zeros(1), model)


def test_a_model_without_inputs_takes_no_examples() -> None:
    model = model_with_input("N", 4)
    model.graph.inputs.clear()
    with pytest.raises(SurgeryError, match="0 inputs"):
        from_arrays(np.zeros((1, 4)), np.zeros(1), model)


def test_hidden_files_and_folders_are_no_examples(folder: Path) -> None:
    write_image(folder / "ants" / ".ipynb_checkpoints" / "0-checkpoint.png", (0, 0, 0))
    (folder / "bees" / "._0.png").write_bytes(b"not an image")
    assert len(open_data(folder, RGB)[0]) == 6
