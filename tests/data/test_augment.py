"""Augmentation: what is drawn, and what it does to images, against numpy, OpenCV and the papers' distributions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from surgery.data import Dataset, from_arrays, from_folder
from surgery.data.augment import Augment, ColorJitter, ResizedCrop, paste
from surgery.errors import SurgeryError
from tests.data.models import model_with_input

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)
SMOOTH = cv2.GaussianBlur(NOISE, (0, 0), 3)


def changed(image: np.ndarray, count: int, size: tuple[int, int] | None = None, **how: object) -> list[np.ndarray]:
    augment = Augment(**how)  # type: ignore[arg-type]
    size = size or (image.shape[0], image.shape[1])
    return [augment.image(image, size, np.random.default_rng([7, i])) for i in range(count)]


def quantiles_fit(drawn: np.ndarray, low: float, high: float) -> bool:
    """Whether numbers are drawn evenly between two: their deciles are within four standard errors."""
    share = (np.sort(drawn) - low) / (high - low)
    at = np.arange(0.1, 1, 0.1)
    return bool((np.abs(np.quantile(share, at) - at) < 4 * np.sqrt(at * (1 - at) / len(drawn))).all())


def test_a_resized_crop_draws_area_and_ratio_as_inception_does() -> None:
    crop, rng = ResizedCrop(scale=(0.1, 0.3), ratio=(0.5, 2.0)), np.random.default_rng(0)
    boxes = np.array([crop.box(2000, 2000, rng) for _ in range(4000)])
    left, top, w, h = boxes.T
    assert quantiles_fit(w * h / 2000**2, 0.1, 0.3)
    assert quantiles_fit(np.log(w / h), np.log(0.5), np.log(2))
    assert quantiles_fit(left / (2000 - w), 0, 1)
    assert quantiles_fit(top / (2000 - h), 0, 1)


@pytest.mark.parametrize(("width", "height", "box"), [(100, 10, (43, 0, 13, 10)), (10, 100, (0, 43, 10, 13))])
def test_where_no_crop_fits_the_largest_middle_one_is_taken(
    width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    assert ResizedCrop(scale=(1, 1)).box(width, height, np.random.default_rng(0)) == box


def test_a_resized_crop_is_that_part_of_the_image() -> None:
    for seed, made in enumerate(changed(SMOOTH, 20, (16, 24), resized_crop=True)):
        left, top, w, h = ResizedCrop().box(60, 40, np.random.default_rng([7, seed]))
        part = Image.fromarray(SMOOTH[top : top + h, left : left + w])
        want = np.asarray(part.resize((24, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(made, want)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    padded = np.pad(NOISE, ((3, 3), (3, 3), (0, 0)))
    windows = {padded[y : y + 40, x : x + 60].tobytes() for y in range(7) for x in range(7)}
    made = {image.tobytes() for image in changed(NOISE, 400, crop={"padding": 3})}
    assert made == windows  # all 49 places come, and no other


def test_a_crop_resizes_the_shorter_side_first() -> None:
    full = np.asarray(Image.fromarray(SMOOTH).resize((30, 20), Image.Resampling.BILINEAR))
    windows = {full[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(15)}
    made = {image.tobytes() for image in changed(SMOOTH, 200, (16, 16), crop={"resize": 20})}
    assert made <= windows
    assert len(made) > 50


def test_an_image_smaller_than_the_crop_is_enlarged() -> None:
    assert changed(SMOOTH, 1, (80, 80), crop={})[0].shape == (80, 80, 3)
    assert changed(SMOOTH, 1, (80, 80), crop={"resize": 20})[0].shape == (80, 80, 3)


@pytest.mark.parametrize(("name", "turned"), [("horizontal_flip", NOISE[:, ::-1]), ("vertical_flip", NOISE[::-1])])
def test_flips_come_as_often_as_asked(name: str, turned: np.ndarray) -> None:
    made = changed(NOISE, 400, **{name: 0.25})
    flips = [np.array_equal(image, turned) for image in made]
    assert all(flip or np.array_equal(image, NOISE) for flip, image in zip(flips, made, strict=True))
    assert 65 < sum(flips) < 135  # 100 ± 4 standard deviations
    assert getattr(Augment(**{name: True}), name) == 0.5  # type: ignore[arg-type]


def test_a_rotation_is_about_the_middle_by_the_angle_that_opencv_finds() -> None:
    image = cv2.GaussianBlur(RNG.integers(0, 256, (61, 61)).astype(np.uint8), (0, 0), 4)
    angles = []
    for made in changed(image, 60, rotate=30):
        errors = {}
        for angle in np.arange(-31, 31.5, 1):
            matrix = cv2.getRotationMatrix2D((30, 30), angle, 1)
            turned = cv2.warpAffine(image, matrix, (61, 61), flags=cv2.INTER_LINEAR)
            errors[angle] = np.abs(turned[15:46, 15:46].astype(float) - made[15:46, 15:46]).mean()
        best = min(errors, key=lambda a: errors[a])
        assert errors[best] < 1.5
        angles.append(best)
    assert -30.5 < min(angles) < -20
    assert 20 < max(angles) < 30.5


def blend(image: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    return np.clip(other + factor * (image.astype(float) - other), 0, 255)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_jitter_goes_by_the_formulas(name: str) -> None:
    luma = (SMOOTH.astype(float) @ [0.299, 0.587, 0.114])[..., None]  # ITU-R BT.601
    other = {"brightness": 0.0, "contrast": np.round(luma.mean()), "saturation": np.round(luma)}[name]
    factors = []
    for made in changed(SMOOTH, 200, color_jitter={name: 0.4}):
        distance = SMOOTH.astype(float) - other
        inside = (made > 0) & (made < 255)
        factor = ((made - other) * distance)[inside].sum() / (distance**2)[inside].sum()
        np.testing.assert_allclose(made, blend(SMOOTH, other, factor), atol=2.5)
        factors.append(factor)
    assert quantiles_fit(np.array(factors), 0.6, 1.4)


def test_a_number_is_the_jitter_of_all_three() -> None:
    assert Augment(color_jitter=0.3).color_jitter == ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)  # type: ignore[arg-type]


def test_erasing_takes_a_rectangle_of_the_area_asked() -> None:
    gray = np.full((100, 100), 7, np.uint8)
    shares = []
    for made in changed(gray, 200, erase=1):
        rows, columns = np.nonzero(made != 7)
        box = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.97 * box[0] * box[1] < len(rows) <= box[0] * box[1]  # 1 in 256 pixels of noise is 7
        shares.append(box[0] * box[1] / 1e4)
    assert 0.015 < min(shares) < 0.05
    assert 0.25 < max(shares) < 0.34


MODEL = model_with_input("N", 3, 8, 8)


def dataset(count: int = 64, **how: object) -> Dataset:
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return from_arrays(images, np.arange(count) % 4, MODEL).augmented(Augment(**how))  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_mixup_mixes_examples_and_targets_in_one_proportion(alpha: float) -> None:
    data = dataset(mixup=alpha).one_hot(4)
    plain = np.concatenate([x for x, _ in dataset().batches(64)])
    classes, kept = np.eye(4)[np.arange(64) % 4], []
    for epoch in range(300):
        (order,) = data.order(64, seed=3, epoch=epoch)
        ((mixed, targets),) = data.batches(64, seed=3, epoch=epoch)
        x, t = plain[order], classes[order]
        share = None
        for i in range(4):  # the partner is the one that explains the mixture
            best = min(
                (
                    (float(np.abs(mixed[i] - (k * x[i] + (1 - k) * x[j])).max()), k, j)
                    for j in range(64)
                    if j != i
                    for k in [np.vdot(mixed[i] - x[j], x[i] - x[j]) / np.vdot(x[i] - x[j], x[i] - x[j])]
                ),
            )
            if best[0] > 1e-4 or np.array_equal(mixed[i], x[i]):
                continue  # it is its own partner
            share = best[1]
            np.testing.assert_allclose(targets[i], share * t[i] + (1 - share) * t[best[2]], atol=1e-4)
            break
        kept.append(share)
        if epoch == 20 and alpha == 2.0:
            break
    if alpha == 0.3:
        drawn = np.array([k for k in kept if k is not None])
        assert len(drawn) > 250
        assert abs(drawn.mean() - 0.5) < 0.1
        assert abs(drawn.var() - 1 / (4 * (2 * alpha + 1))) < 0.03  # of Beta(α, α)


def test_cutmix_pastes_a_rectangle_and_mixes_targets_by_its_area() -> None:
    data = from_arrays(np.arange(16, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 8, 8, 3), np.uint8),
                       np.arange(16), MODEL).augmented(Augment(cutmix=1.0)).one_hot(16)  # fmt: skip
    shares = []
    for epoch in range(50):
        (order,) = data.order(16, seed=0, epoch=epoch)
        ((images, targets),) = data.batches(16, seed=0, epoch=epoch)
        values = np.round(images[:, 0] * 255).astype(int)
        for own, image, target in zip(order, values, targets, strict=True):
            share = np.array([(image == number).mean() for number in range(16)])
            np.testing.assert_allclose(target, share, atol=1e-6)
            rows, columns = np.nonzero(image != own)
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) if len(rows) else True
        shares.append(float((values != order[:, None, None]).mean()))
    assert 0.1 < np.mean(shares) < 0.4
    assert np.ptp(shares) > 0.5


def test_a_pasted_rectangle_has_the_sides_asked_where_it_lies_inside() -> None:
    zeros, ones = np.zeros((1, 101, 51, 1), np.uint8), np.ones((1, 101, 51, 1), np.uint8)
    for seed in range(30):
        made, kept = paste(zeros, ones, 0.96, np.random.default_rng(seed))  # √0.04 = 0.2: 20 × 10
        assert kept == pytest.approx(1 - made.mean())
        rows, columns = np.nonzero(made[0, ..., 0])
        if rows.min() > 0 and rows.max() < 100 and columns.min() > 0 and columns.max() < 50:
            assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 10)
    assert not zeros.any()


EVERYTHING = {
    "resized_crop": True, "horizontal_flip": True, "vertical_flip": True, "rotate": 20, "color_jitter": 0.4,
    "erase": 0.5, "mixup": 1.0, "cutmix": 1.0,
}  # fmt: skip


def test_all_of_it_is_drawn_by_seed_epoch_and_place() -> None:
    data = dataset(**EVERYTHING).one_hot(4)
    whole = list(data.batches(10, seed=1, epoch=2))
    rest = list(data.batches(10, seed=1, epoch=2, first=4))
    assert len(rest) == 3
    for (x, t), (y, u) in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(t, u)
    assert not np.array_equal(whole[0][0], next(data.batches(10, seed=1, epoch=3))[0])
    assert not np.array_equal(whole[0][0], next(data.batches(10, seed=2, epoch=2))[0])


def test_without_a_seed_nothing_is_changed() -> None:
    data = dataset(**EVERYTHING)
    plain, same = (np.concatenate([x for x, _ in d.batches(10)]) for d in (dataset(), data))
    np.testing.assert_array_equal(plain, same)
    assert not data.deterministic
    assert dataset().deterministic
    assert dataset(horizontal_flip=0).deterministic
    assert data.fingerprint() == dataset().fingerprint()  # the examples are the same


def test_images_in_files_are_cut_out_of_what_the_files_have(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))).save(
            tmp_path / name / "a.png"
        )
    model = model_with_input("N", 1, 16, 16)
    crop = Augment(resized_crop={"scale": [0.0625, 0.0625], "ratio": [1, 1]})  # type: ignore[arg-type]
    data = from_folder(tmp_path, model).augmented(crop)
    # A sixteenth of 64 × 64 pixels is 16 × 16: not resized, so that black and white stay what they are.
    parts = np.concatenate([x for epoch in range(20) for x, _ in data.batches(2, seed=0, epoch=epoch)])
    assert set(np.unique(parts)) == {0, 1}
    assert len(np.unique(parts.reshape(40, -1), axis=0)) > 20


def test_gray_images_of_one_channel_are_changed(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    data = from_arrays(images, np.arange(4), model_with_input("N", 1, 8, 8)).augmented(Augment(horizontal_flip=1.0))
    ((x, _),) = data.batches(4, seed=0)
    np.testing.assert_allclose(x[:, 0], images[data.order(4, seed=0)[0], :, ::-1, 0] / 255, atol=1e-6)


def test_numbers_can_only_be_mixed() -> None:
    floats = Dataset(np.zeros((4, 3, 8, 8), np.float32), np.arange(4))
    with pytest.raises(SurgeryError, match=r"raw images.*float32 \[4, 3, 8, 8\]; only mixup"):
        floats.augmented(Augment(vertical_flip=True))  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="raw images"):
        floats.augmented(Augment(cutmix=1.0))
    pair = Dataset({"a": np.zeros((4, 8, 8), np.uint8), "b": np.zeros((4, 8, 8), np.uint8)}, np.arange(4))
    with pytest.raises(SurgeryError, match="images of one input; there are a, b"):
        pair.augmented(Augment(vertical_flip=True))  # type: ignore[arg-type]
    mixed = Dataset({"a": np.eye(4)}, {"p": np.eye(4), "q": np.arange(4)}).augmented(Augment(mixup=1.0))
    ((x, t),) = mixed.one_hot({"p": 4, "q": 4}).batches(4, seed=0)
    assert isinstance(x, dict)
    assert isinstance(t, dict)
    np.testing.assert_allclose(x["a"], t["p"], atol=1e-6)
    np.testing.assert_allclose(t["p"], t["q"], atol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"crop": {}, "resized_crop": True}, "take one of them"),
        ({"resized_crop": {"scale": [0.5, 0.1]}}, "scale: the first number is the least"),
        ({"horizontal_flip": 1.5}, "less than or equal to 1"),
        ({"mixup": 0}, "greater than 0"),
        ({"blur": 1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense(how: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augment(**how)


def test_balanced_sampling_draws_all_classes_alike() -> None:
    counts = [80, 15, 5]
    data = Dataset(np.arange(100)[:, None], np.repeat([0, 1, 2], counts)).augmented(None, "balanced")
    drawn = np.concatenate([np.concatenate(data.order(10, seed=4, epoch=e)) for e in range(90)])
    np.testing.assert_allclose(np.bincount(data.targets[drawn]), [3000] * 3, atol=4 * np.sqrt(9000 * 2 / 9))
    of_last = np.bincount(drawn)[95:]
    np.testing.assert_allclose(of_last, [600] * 5, atol=4 * np.sqrt(600))
    assert sorted(np.concatenate(data.order(10))) == list(range(100))  # measuring sees each once
    same = data.one_hot(3).order(10, seed=4, epoch=0)
    np.testing.assert_array_equal(np.concatenate(same), np.concatenate(data.order(10, seed=4, epoch=0)))
    with pytest.raises(SurgeryError, match="not a class number for each example"):
        Dataset(np.zeros((3, 1)), np.zeros(3, np.float32)).augmented(None, "balanced")


def test_maps_of_classes_are_not_left_behind_their_images() -> None:
    images, maps = RNG.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), RNG.integers(0, 3, (4, 8, 8))
    data = from_arrays(images, maps, MODEL)
    for how in ({"horizontal_flip": True}, {"cutmix": 1.0}, {"crop": {}}, {"erase": 0.1}, {"rotate": 5}):
        with pytest.raises(SurgeryError, match=r"not their targets, which are maps of shape \[8, 8\]"):
            data.augmented(Augment(**how))  # type: ignore[arg-type]
    mixed = data.augmented(Augment(mixup=1.0, color_jitter=0.2)).one_hot(3)  # type: ignore[arg-type]
    ((_, targets),) = mixed.batches(4, seed=0)
    assert targets.shape == (4, 3, 8, 8)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    ((_, plain),) = data.one_hot(3).batches(4)
    np.testing.assert_array_equal(plain.argmax(1), maps)


def test_mixing_images_in_files_reads_them_in_threads(tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / name / f"{index}.png")
    kept, read = (from_folder(tmp_path, MODEL, memory=m).augmented(Augment(mixup=1.0)).one_hot(2) for m in (10**6, 0))
    for (x, t), (y, u) in zip(kept.batches(4, seed=0), read.batches(4, seed=0), strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(t, u)
