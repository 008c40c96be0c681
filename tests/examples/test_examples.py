"""The examples run on what the project ships, and show what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from surgery.io import save
from tests.conftest import ROOT
from tests.graphs import run, squeezenet

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")


def example(name: str, *arguments: str | Path) -> dict[str, Any]:
    """Runs an example as from the command line; returns its variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def picture(path: Path, size: tuple[int, int] = (20, 16)) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def test_saliency_of_digits(tmp_path: Path) -> None:
    told = example("saliency", "--copies", "5", "-o", tmp_path / "deep" / "map.png")
    assert [axis.get_title() for axis in told["axes"][0]] == [str(digit) for digit in range(10)]
    for below in told["axes"][1]:
        ink, slope = (np.asarray(image.get_array()) for image in below.get_images())
        assert slope.max() == 1
        assert slope[ink > 0.1].mean() > 2 * slope[[0, -1]].mean()  # it looks where something is written
    assert Image.open(tmp_path / "deep" / "map.png").size[0] > 800


def test_deep_dream_of_digits_looks_like_them_to_the_network(tmp_path: Path) -> None:
    told = example("deep_dream", "--steps", "25", "-o", tmp_path / "dream.png")
    dreams = np.stack(list(told["dreams"].values())).transpose(0, 3, 1, 2)
    scores = run(told["model"], np.ascontiguousarray(dreams, np.float32))[0]  # LeNet takes 0 to 1
    np.testing.assert_array_equal(scores.argmax(1), np.arange(10))
    assert (scores.diagonal() - np.median(scores, 1) > 10).all()  # logits
    assert 0.02 < dreams.mean() < 0.4  # strokes, neither blank nor white
    assert (tmp_path / "dream.png").is_file()


def test_both_take_another_network_and_picture(tmp_path: Path) -> None:
    model = squeezenet()
    save(model, tmp_path / "net.onnx")
    image = picture(tmp_path / "image.png")
    told = example("saliency", tmp_path / "net.onnx", image, image, "--copies", "2", "-o", tmp_path / "map.png")
    assert told["axes"].shape == (2, 2)
    told = example("deep_dream", tmp_path / "net.onnx", "--steps", "2", "-o", tmp_path / "dream.png")
    assert len(told["dreams"]) == 10
    told = example("deep_dream", tmp_path / "net.onnx", image, "c1", "--steps", "10", "-o", tmp_path / "dream.png")
    before, after = told["dreams"].values()
    x = [np.ascontiguousarray(p.transpose(2, 0, 1)[None], np.float32) for p in (before / 255, after)]
    norms = [float((run(told["model"], p)[-1] ** 2).sum()) for p in x]
    assert norms[1] > norms[0]
