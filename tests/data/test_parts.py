"""Which part of the data is opened, and what it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.data import as_part, open_data, open_part
from surgery.errors import SurgeryError
from tests.data.models import model_with_input

MODEL = model_with_input("N", 3, 8, 8)


def source(path: Path, kind: str, *parts: str) -> Path:
    """Data with some parts, each of which has its own number of examples: 2, 4, 6; as an archive or a folder."""
    if kind == "npz":
        arrays = {}
        for number, part in enumerate(parts, start=1):
            ending = f"_{part}" if part else ""
            arrays[f"x{ending}"] = np.zeros((2 * number, 3, 8, 8))
            arrays[f"y{ending}"] = np.arange(2 * number) % 2
        np.savez(path / "d.npz", **arrays)  # type: ignore[arg-type]
        return path / "d.npz"
    for number, part in enumerate(parts, start=1):
        for name in ("ants", "bees"):
            (path / "d" / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (8, 8)).save(path / "d" / part / name / f"{index}.png")
    return path / "d"


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize(
    ("parts", "wanted", "part", "count"),
    [
        (("",), None, "all", 2),
        (("",), "all", "all", 2),
        (("train", "test"), None, "test", 4),
        (("train", "val", "test"), None, "test", 6),
        (("train", "val"), None, "val", 4),
        (("train", "validation"), None, "val", 4),
        (("train", "valid"), "val", "val", 4),
        (("train", "val", "test"), "train", "train", 2),
    ],
)
def test_the_part_that_is_measured(
    tmp_path: Path, kind: str, parts: tuple[str, ...], wanted: str | None, part: str, count: int
) -> None:
    data = open_part(source(tmp_path, kind, *parts), MODEL, wanted)
    assert (data.part, len(data)) == (part, count)


@pytest.mark.parametrize("kind", ["npz", "folder"])
@pytest.mark.parametrize(
    ("parts", "wanted", "message"),
    [
        (("",), "test", "no part 'test'; it has all, as it is not divided"),
        (("",), "train", "no part 'train'; it has all"),
        (("train", "test"), "val", "no part 'val'; it has train, test"),
        (("train", "test"), "all", "no part 'all'; it has train, test"),
        (("train",), None, "no test part; it has train"),
    ],
)
def test_a_part_that_is_not_there(
    tmp_path: Path, kind: str, parts: tuple[str, ...], wanted: str | None, message: str
) -> None:
    path = source(tmp_path, kind, *parts)
    with pytest.raises(SurgeryError, match=message):
        open_part(path, MODEL, wanted)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_the_part_that_is_trained_on(tmp_path: Path, kind: str) -> None:
    data, held = open_data(source(tmp_path, kind, "train", "validation", "test"), MODEL)
    assert held is not None
    assert [(d.part, len(d)) for d in (data, held)] == [("train", 2), ("val", 4)]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_test_part_alone_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SurgeryError, match="no part to train on, only test"):
        open_data(source(tmp_path, kind, "test"), MODEL)


def test_arrays_have_no_parts() -> None:
    arrays = np.zeros((2, 3, 8, 8)), np.arange(2)
    assert as_part(arrays, MODEL).part == "all"
    with pytest.raises(SurgeryError, match="'test' is asked for"):
        as_part(arrays, MODEL, "test")


def test_inputs_and_parts_are_told_apart_by_name(tmp_path: Path) -> None:
    model = model_with_input("N", 4)
    np.savez(tmp_path / "d.npz", x_data=np.zeros((3, 4)), y=np.arange(3), x_test_data=np.zeros((2, 4)), y_test=[0, 1])
    train, _ = open_data(tmp_path / "d.npz", model)
    assert (train.part, len(train)) == ("all", 3)
    assert len(open_part(tmp_path / "d.npz", model)) == 2
