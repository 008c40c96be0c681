"""The pass set_preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surgery.data import from_arrays
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing, preprocessing
from surgery.passes import SetInputSize, SetPreprocessing
from surgery.recipe import Recipe, apply
from tests.data.models import model_with_input

PIXEL = np.array([200, 100, 50], np.uint8)  # red, green, blue


def prepared(*shape: int | str, **keys: Any) -> np.ndarray:
    """What the model is given of images of one colour."""
    model = model_with_input("N", *shape)
    apply(model, [{"set_preprocessing": keys}])
    ((examples, _),) = from_arrays(np.tile(PIXEL, (1, 6, 6, 1)), np.zeros(1), model).batches(1)
    assert isinstance(examples, np.ndarray)
    return examples


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # (200 / 255 − 0.485) / 0.229, …, by hand
        ({"preset": "torchvision"}, [1.30705, -0.28501, -0.93299]),
        ({"preset": "caffe"}, [50 - 104.00699, 100 - 116.66877, 200 - 122.67892]),
        ({"preset": "tf"}, [0.56863, -0.21569, -0.60784]),
        ({"preset": "unit"}, [0.78431, 0.39216, 0.19608]),
        ({}, [200, 100, 50]),
        ({"scale": 2, "mean": [100.0], "std": [10.0, 20.0, 50.0]}, [30, 5, 0]),
        ({"preset": "caffe", "mean": [0], "color": "rgb"}, [200, 100, 50]),
    ],
)
@pytest.mark.parametrize("shape", [(3, 6, 6), (6, 6, 3)], ids=["NCHW", "NHWC"])
def test_images_become_the_input_so(shape: tuple[int, ...], keys: dict[str, Any], expected: list[float]) -> None:
    made = prepared(*shape, **keys)
    assert made.shape == (1, *shape)
    pixel = made[0, :, 0, 0] if shape[0] == 3 else made[0, 0, 0]
    np.testing.assert_allclose(pixel, expected, rtol=1e-4, atol=1e-5)


def test_gray_is_what_one_channel_is() -> None:
    np.testing.assert_allclose(prepared(1, 6, 6), 0.299 * 200 + 0.587 * 100 + 0.114 * 50, rtol=1e-6)


def test_an_input_of_any_size_gets_one() -> None:
    assert prepared(3, "h", "w", size=[2, 3]).shape == (1, 3, 2, 3)


def test_it_is_written_as_a_recipe_and_run_twice() -> None:
    model = model_with_input("N", 3, 8, 8)
    (item,) = Recipe(passes=[{"set_preprocessing": "torchvision"}]).passes
    assert isinstance(item, SetPreprocessing)
    assert [change.where for change in item(model).changes] == ["data"]
    assert not item(model).changes
    assert preprocessing(model, "data") == Preprocessing(
        scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert SetPreprocessing(**item.arguments()) == item


@pytest.mark.parametrize(
    ("shape", "keys", "message"),
    [
        ((1, 8, 8), {"preset": "torchvision"}, "1 channels as NCHW, but rgb images 3"),
        ((3, 8, 8), {"layout": "NHWC"}, "8 channels as NHWC"),
        ((3, 8, 8), {"mean": [1.0, 2.0]}, "mean has 2 numbers"),
        ((3, 8, 8), {"size": [9, 8]}, "size 9 × 8 does not fit"),
        ((3, 8, 8), {"input": "other"}, "0 inputs could be images"),
        ((64,), {}, "0 inputs could be images"),
        ((3, 8, 8), {"std": [0.0]}, "std"),
        ((3, 8, 8), {"mean": []}, "mean"),
        ((3, 8, 8), {"preset": "tensorflow"}, "preset"),
    ],
)
def test_what_cannot_be(shape: tuple[int, ...], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        apply(model_with_input("N", *shape), [{"set_preprocessing": keys}])


def test_set_input_size_sees_the_layout_of_a_silent_model() -> None:
    model = model_with_input("N", 8, 6, 3)
    SetInputSize(size=[9, 7])(model)
    assert list(model.graph.inputs[0].shape or ())[1:] == [9, 7, 3]


@pytest.mark.parametrize(
    ("shape", "keys", "resize"),
    [
        ((3, 224, 224), {"preset": "torchvision"}, 256),
        ((299, 299, 3), {"preset": "torchvision"}, 342),
        ((3, 224, 224), {"preset": "torchvision", "resize": 232}, 232),
        ((3, 224, 192), {"preset": "torchvision"}, None),
        ((3, "h", "w"), {"preset": "torchvision"}, None),
        ((3, "h", "w"), {"preset": "torchvision", "size": [224, 224]}, 256),
        ((3, 227, 227), {"preset": "caffe", "resize": [256, 256]}, (256, 256)),
        ((3, 224, 224), {"preset": "tf"}, None),
    ],
)
def test_what_images_are_resized_to_first(shape: tuple[int | str, ...], keys: dict[str, Any], resize: object) -> None:
    model = model_with_input("N", *shape)
    apply(model, [{"set_preprocessing": keys}])
    how = preprocessing(model, "data")
    assert how is not None
    assert how.resize == resize


def test_images_are_not_resized_below_the_input() -> None:
    with pytest.raises(SurgeryError, match=r"resize \(7, 9\) leaves images smaller than the input, 8 × 8"):
        apply(model_with_input("N", 3, 8, 8), [{"set_preprocessing": {"resize": [7, 9]}}])
    with pytest.raises(SurgeryError, match="resizes images to 7, which is less than the input takes, 8 × 8"):
        from_arrays(
            np.zeros((1, 9, 9, 3), np.uint8), np.zeros(1), model_with_input("N", 3, 8, 8, how=Preprocessing(resize=7))
        )


@pytest.mark.parametrize(
    ("size", "resize", "scaled"),
    [(112, 256, 128), ([112, 224], 256, 256), (112, (256, 320), (128, 160)), (112, None, None), (225, 224, 225)],
)
def test_another_input_size_keeps_the_share_of_the_image_that_is_cut(size: Any, resize: Any, scaled: Any) -> None:
    model = model_with_input("N", 3, 224, 224, how=Preprocessing(resize=resize))
    for _ in range(2):
        apply(model, [{"set_input_size": {"size": size}}])
        how = preprocessing(model, "data")
        assert how is not None
        assert how.resize == scaled
