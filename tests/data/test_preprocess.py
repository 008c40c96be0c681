"""From raw images to a network's input."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from surgery.data import from_arrays, input_spec
from surgery.data.preprocess import preparer
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
