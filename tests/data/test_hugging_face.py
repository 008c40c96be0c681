"""Data sets that Hugging Face's library saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.data import open_data, open_part
from surgery.data.augment import Augment
from surgery.errors import SurgeryError
from tests.data.models import model_with_input
from tests.graphs import parse

RGB = model_with_input("N", 3, 8, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the package datasets, which writes such folders, is not installed")


def pictures(datasets: Any, count: int = 6) -> Any:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"img": [Image.fromarray(p) for p in PIXELS[:count]], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def read(data: Any, **how: int) -> np.ndarray:
    return np.concatenate([x for x, _ in data.batches(4, **how)])


def test_images_and_class_labels(datasets: Any, tmp_path: Path) -> None:
    pictures(datasets).save_to_disk(tmp_path / "d")
    data, held = open_data(tmp_path / "d", RGB)
    assert held is None
    np.testing.assert_allclose(read(data), PIXELS.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert data.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.labels == ("ant", "bee")
    assert data.fingerprint() == open_data(tmp_path / "d", RGB)[0].fingerprint()
    assert data.fingerprint() != data.subset(np.arange(5)).fingerprint()
    flipped = data.augmented(Augment(horizontal_flip=1.0))
    order = np.concatenate(data.order(4, seed=0))
    np.testing.assert_allclose(read(flipped, seed=0), PIXELS[order, :, ::-1].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_splits_are_parts(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": pictures(datasets, 4), "validation": pictures(datasets, 2), "test": pictures(datasets, 3)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    data, held = open_data(tmp_path / "d", RGB)
    assert held is not None
    assert (len(data), len(held), len(open_part(tmp_path / "d", RGB))) == (4, 2, 3)
    datasets.DatasetDict({"extra": parts["test"]}).save_to_disk(tmp_path / "e")
    with pytest.raises(SurgeryError, match="has no split called train"):
        open_data(tmp_path / "e", RGB)


@pytest.mark.parametrize("memory", [0, 10**6])
def test_columns_of_numbers(datasets: Any, tmp_path: Path, memory: int) -> None:
    x = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    table = datasets.Dataset.from_dict({"data": x.tolist(), "y": [0.5 * i for i in range(6)]})
    table.save_to_disk(tmp_path / "d")
    data, _ = open_data(tmp_path / "d", model_with_input("N", 3), memory=memory)
    np.testing.assert_allclose(read(data), x, rtol=1e-6)
    np.testing.assert_allclose(read(data.subset(np.array([4, 1]))), x[[4, 1]], rtol=1e-6)
    assert data.targets.tolist() == [0.5 * i for i in range(6)]
    assert data.targets.dtype == np.float32


def test_columns_are_named_as_inputs_and_outputs(datasets: Any, tmp_path: Path) -> None:
    model = parse(
        "(float[N,3] a, float[N,2] b) => (float[N,2] kind, float[N,1] size)",
        "c = Concat<axis = 1>(a, b) kind = Gemm<transB = 1>(c, w, d) size = Gemm<transB = 1>(c, v, e)",
        {"w": [2, 5], "d": [2], "v": [1, 5], "e": [1]},
    )
    rows = {
        "a": [[1.0, 2, 3], [4, 5, 6]],
        "b": [[1.0, 2], [3, 4]],
        "kind": [1, 0],
        "size": [0.5, 1.5],
        "note": ["", ""],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    data, _ = open_data(tmp_path / "d", model)
    ((x, t),) = data.batches(2)
    assert {name: array.tolist() for name, array in x.items()} == {"a": rows["a"], "b": rows["b"]}
    assert {name: array.tolist() for name, array in t.items()} == {"kind": [1, 0], "size": [0.5, 1.5]}


def test_what_is_missing_is_told(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"q": [1.0], "label": [1]}).save_to_disk(tmp_path / "d")
    with pytest.raises(SurgeryError, match=r"which column has the examples\? Call it image \(there are q, label\)"):
        open_data(tmp_path / "d", RGB)
    for file in (tmp_path / "d").glob("*.arrow"):
        file.write_bytes(b"no arrow")
    with pytest.raises(SurgeryError, match="d: cannot be read"):
        open_data(tmp_path / "d", RGB)


def test_without_the_package_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SurgeryError, match=r"package datasets.*onnx-surgery\[datasets\]"):
        open_data(tmp_path, RGB)
