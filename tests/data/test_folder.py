"""Folders of images: what decodes and how, what is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.data import from_folder, open_data, open_part
from surgery.errors import SurgeryError
from tests.data.models import model_with_input

RGB = model_with_input("N", 3, 8, 8)
GRAY = model_with_input("N", 1, 8, 8)


def write(path: Path, image: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), (9, 9, 9))).save(path)


def broken(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff no picture")


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("model", [GRAY, RGB], ids=["gray", "rgb"])
def test_gray_images_of_16_bits_are_scaled_to_8(tmp_path: Path, name: str, model: object) -> None:
    if name == "a.pgm":  # PGM, section "format": two bytes a sample, the most significant first
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / name).write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        write(tmp_path / "one" / name, Image.fromarray(RAMP.astype(np.uint16)))
    write(tmp_path / "two" / "b.png")
    data = from_folder(tmp_path, model)  # type: ignore[arg-type]
    found = data.examples[0] if model is GRAY else data.examples[0][..., 1]
    np.testing.assert_allclose(found, RAMP / 257, atol=0.51)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(RAMP.astype(np.float32) / 65535, "floats"), (RAMP.astype(np.int32) * 1000, "integers of 32 bits")],
)
def test_images_of_no_known_range_do_not_decode(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    write(tmp_path / "one" / "a.tif", Image.fromarray(pixels))
    write(tmp_path / "two" / "b.png")
    with pytest.raises(SurgeryError, match=rf"a\.tif.*{message}"):
        from_folder(tmp_path, RGB)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.png", Image.new("RGBA", (8, 8), (10, 20, 30, 0)))
    write(tmp_path / "two" / "b.png")
    assert from_folder(tmp_path, RGB).examples[0, 0, 0].tolist() == [10, 20, 30]


def test_a_turned_16_bit_image_is_upright(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP.astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 3  # Orientation: turned by 180° (EXIF 2.3, table 4)
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / "a.png", exif=exif)
    write(tmp_path / "two" / "b.png")
    np.testing.assert_allclose(from_folder(tmp_path, GRAY).examples[0], RAMP[::-1, ::-1] / 257, atol=0.51)


def test_skipped_files_are_named(tmp_path: Path) -> None:
    for name in ("train/ants", "train/bees", "val/bees"):
        write(tmp_path / name / "good.png")
        broken(tmp_path / name / "bad.jpg")
    data, held = open_data(tmp_path, RGB, skip_bad=True)
    assert data.skipped == tuple(str(tmp_path / "train" / name / "bad.jpg") for name in ("ants", "bees"))
    assert held is not None
    assert held.skipped == (str(tmp_path / "val" / "bees" / "bad.jpg"),)
    assert data.subset(np.array([0])).skipped == data.skipped


@pytest.mark.parametrize("skip_bad", [True, False])
def test_images_none_of_which_decodes(tmp_path: Path, skip_bad: bool) -> None:
    broken(tmp_path / "ants" / "a.jpg")
    broken(tmp_path / "bees" / "b.jpg")
    with pytest.raises(SurgeryError, match=r"none of its 2 images decodes.*a\.jpg"):
        from_folder(tmp_path, RGB, skip_bad=skip_bad)


def test_a_class_without_an_image_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "ants" / "a.png")
    write(tmp_path / "bees" / "b.png")
    (tmp_path / "wasps").mkdir()
    with pytest.raises(SurgeryError, match="wasps: has no images"):
        from_folder(tmp_path, RGB)
    broken(tmp_path / "wasps" / "c.jpg")
    with pytest.raises(SurgeryError, match="wasps: none of its images decodes"):
        from_folder(tmp_path, RGB, skip_bad=True)


def test_without_pillow_no_image_is_called_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ants" / "a.png")
    write(tmp_path / "bees" / "b.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for skip_bad in (True, False):
        with pytest.raises(SurgeryError, match=r"need Pillow.*onnx-surgery\[train\]"):
            from_folder(tmp_path, RGB, skip_bad=skip_bad)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path / "plane" / "a.png")
    write(tmp_path / "train" / "b.png")
    assert open_part(tmp_path, RGB).labels == ("plane", "train")
