"""From raw images to a network's input."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from surgery.data import from_arrays, from_folder, input_spec
from surgery.data.preprocess import preparer, resize
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing
from tests.data.models import model_with_input

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (("N", 8, 6, 3), "NHWC"),
        (("N", 28, 28, 1), "NHWC"),
        (("N", 28, 28, 4), "NHWC"),
        (("N", "h", "w", 3), "NHWC"),
        (("N", 3, 8, 6), "NCHW"),
        (("N", 1, 28, 28), "NCHW"),
        (("N", 3, 224, 3), "NCHW"),
        (("N", 20, 8, 8), "NCHW"),
    ],
)
def test_the_layout_is_that_of_the_axis_that_can_be_colours(shape: tuple[int | str, ...], layout: str) -> None:
    spec = input_spec(model_with_input(*shape))
    assert spec.how.layout == layout
    assert spec.assumed


def test_images_fit_an_nhwc_input_that_says_nothing() -> None:
    images = RANDOM.integers(0, 256, (2, 8, 6, 3)).astype(np.uint8)
    data = from_arrays(images, np.arange(2), model_with_input("N", 8, 6, 3))
    ((examples, _),) = data.batches(2)
    np.testing.assert_allclose(examples, images / 255, atol=1e-7)


def test_gray_images_fit_an_nhwc_input_of_one_channel() -> None:
    images = RANDOM.integers(0, 256, (2, 28, 28)).astype(np.uint8)
    data = from_arrays(images, np.arange(2), model_with_input("N", 28, 28, 1))
    assert data.assumed["data"].color == "gray"
    ((examples, _),) = data.batches(2)
    np.testing.assert_allclose(examples, images[..., None] / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((8, 6, 4), None, r"\[8, 6, 3\] become \[8, 6, 3\] \(NHWC\).*\[8, 6, 4\]"),
        ((8, 6, 3), Preprocessing(layout="NCHW"), r"become \[3, 6, 3\] \(NCHW\).*\[8, 6, 3\]"),
        ((3, 8, "w"), Preprocessing(size=(9, 6)), r"become \[3, 9, 6\].*\[3, 8, None\]"),
        ((1, 8, 6), Preprocessing(mean=(1, 2, 3)), "mean of 3 numbers for 1 channels"),
        ((3, 8, 6), Preprocessing(std=(1, 2)), "std of 2 numbers for 3 channels"),
    ],
)
def test_images_that_cannot_become_the_input_are_told_with_both_shapes(
    shape: tuple[int | str, ...], how: Preprocessing | None, message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        preparer(np.zeros((2, 8, 6, 3), np.uint8), input_spec(model_with_input("N", *shape, how=how)))


def test_images_one_pixel_high_keep_their_axes() -> None:
    images = np.array([0, 0, 80, 80, 160, 160, 240, 240], np.uint8).reshape(1, 1, 8, 1)
    model = model_with_input("N", 1, 1, 2, how=Preprocessing(color="gray"))
    made = preparer(images, input_spec(model))(images)
    assert made.shape == (1, 1, 1, 2)
    assert made[0, 0, 0, 0] < made[0, 0, 0, 1]


def test_what_is_assumed_is_said_of_raw_images_only() -> None:
    model = model_with_input("N", 3, 8, 8)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert from_arrays(images, np.arange(2), model).assumed == {"data": Preprocessing(scale=1 / 255)}
    assert from_arrays(np.zeros((2, 3, 8, 8)), np.arange(2), model).assumed == {}
    known = model_with_input("N", 3, 8, 8, how=Preprocessing(scale=0.5))
    assert from_arrays(images, np.arange(2), known).assumed == {}


def test_without_pillow_resizing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    images = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(SurgeryError, match=r"onnx-surgery\[train\]"):
        list(from_arrays(images, np.arange(2), model_with_input("N", 1, 8, 8)).batches(2))


SMOOTH = cv2.GaussianBlur(RANDOM.integers(0, 256, (48, 75, 3)).astype(np.uint8), (0, 0), 4)


def made_of(image: np.ndarray, how: Preprocessing, size: int = 28) -> np.ndarray:
    """What a network of `size` gets of an image, [3, size, size]."""
    data = from_arrays(image[None], np.zeros(1), model_with_input("N", 3, size, size, how=how))
    ((examples, _),) = data.batches(1)
    return np.asarray(examples[0])


@pytest.mark.parametrize(("image", "longer"), [(SMOOTH, 50), (SMOOTH.transpose(1, 0, 2), 50)], ids=["wide", "tall"])
def test_torchvisions_evaluation_is_the_shorter_side_resized_and_the_middle_cut(image: np.ndarray, longer: int) -> None:
    """Resize(32), CenterCrop(28), ToTensor, Normalize: torch's own antialiased resampling (torchvision's for tensors);
    32 · 75 / 48 = 50; crops begin at round(2.0) and round(11.0)."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None]
    sides = (32, longer) if image.shape[0] < image.shape[1] else (longer, 32)
    resized = F.interpolate(tensor, sides, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = ((side - 28) // 2 for side in sides)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    want = (resized[:, top : top + 28, left : left + 28] / 255 - mean[:, None, None]) / std[:, None, None]
    how = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=32)
    np.testing.assert_allclose(made_of(image, how), want, atol=1.1 / 255 / 0.224)  # to one gray level


def test_the_longer_side_is_rounded_down_and_the_cut_to_even() -> None:
    # 33 · 75 / 48 = 51.56 → 51; the cut of 28 begins at round(2.5) = 2 and round(11.5) = 12.
    found = resize(SMOOTH, (28, 28), 33)
    want = np.asarray(Image.fromarray(SMOOTH).resize((51, 33), Image.Resampling.BILINEAR))[2:30, 12:40]
    np.testing.assert_array_equal(found, want)


def test_caffes_images_are_stretched_then_cut_bgr_minus_the_mean() -> None:
    """As its classification example does: 32 × 32 whatever the proportions, the middle 28, BGR, the mean of ILSVRC."""
    how = Preprocessing(color="bgr", mean=(104.0, 117.0, 123.0), resize=(32, 32))
    up = cv2.resize(SMOOTH, (32, 32), interpolation=cv2.INTER_AREA)  # an average, as antialiasing
    want = up[2:30, 2:30, ::-1].astype(np.float32) - [104, 117, 123]
    found = made_of(SMOOTH, how)
    assert np.abs(found.transpose(1, 2, 0) - want).mean() < 1.5
    blob = cv2.dnn.blobFromImage(
        np.asarray(Image.fromarray(SMOOTH).resize((32, 32), Image.Resampling.BILINEAR))[2:30, 2:30, ::-1],
        mean=(104, 117, 123),
    )
    np.testing.assert_allclose(found, blob[0], atol=1e-4)


def test_keras_modes() -> None:
    """`imagenet_utils.preprocess_input`: tf is x / 127.5 − 1; torch is as torchvision; caffe is BGR minus its mean."""
    pixel = np.array([[[200, 100, 50]]], np.uint8)
    image = np.tile(pixel, (28, 28, 1))
    tf = made_of(image, Preprocessing(scale=1 / 127.5, mean=(1.0,)))[:, 0, 0]
    np.testing.assert_allclose(tf, pixel[0, 0] / 127.5 - 1, atol=1e-6)
    caffe = made_of(image, Preprocessing(color="bgr", mean=(103.939, 116.779, 123.68)))[:, 0, 0]
    np.testing.assert_allclose(caffe, [50 - 103.939, 100 - 116.779, 200 - 123.68], atol=1e-4)
    torch_mode = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    want = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(made_of(image, torch_mode)[:, 0, 0], want, atol=1e-5)


def test_files_are_resized_as_arrays_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(SMOOTH).save(tmp_path / name / "x.png")
    for first in (None, 32, (40, 32)):
        model = model_with_input("N", 3, 28, 28, how=Preprocessing(resize=first))
        (files, _), *_ = from_folder(tmp_path, model).batches(2)
        (arrays, _), *_ = from_arrays(SMOOTH[None], np.zeros(1), model).batches(1)
        np.testing.assert_array_equal(files[:1], arrays)
