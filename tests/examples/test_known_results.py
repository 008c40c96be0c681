"""The known results run on little data: they read it, train, and say what they measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import surgery
from tests.conftest import ROOT

pytestmark = [pytest.mark.training, pytest.mark.slow]


def result(name: str, *words: str | Path, code: int = 0) -> str:
    """Runs a known result's script; returns what it printed."""
    script = ROOT / "examples" / "known_results" / f"{name}.py"
    command = [sys.executable, str(script), *map(str, words)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


@pytest.fixture(scope="module")
def mnist(shared_data: Path) -> Path:
    return shared_data / "mnist.npz"


def test_mnist_transfer(tmp_path: Path, mnist: Path) -> None:
    told = result("mnist_transfer", mnist, "--examples", "2000", "--epochs", "2", "-o", tmp_path)
    first, second = percents(told.splitlines()[-1])
    assert first > 75
    assert second > 60
    model = surgery.load(tmp_path / "mnist_transfer.onnx")
    assert model.graph.outputs[0].shape[1] == 5  # type: ignore[index]


def test_mnist_dropout(tmp_path: Path, mnist: Path) -> None:
    told = result("mnist_dropout", mnist, "--examples", "2000", "--epochs", "3", "-o", tmp_path)
    assert min(percents(told.splitlines()[-1])) > 60
    weight = surgery.load(tmp_path / "mnist_dropout.onnx").graph.initializers["hidden1.weight"]
    assert np.linalg.norm(weight.const_value.numpy(), axis=1).max() < 3.001  # type: ignore[union-attr]


def test_new_classes(tmp_path: Path, mnist: Path) -> None:
    told = result("new_classes", mnist, "--examples", "2000", "--each", "40", "--epochs", "3", "-o", tmp_path)
    before, *after = percents(told)
    assert before > 98
    assert len(after) == 3
    assert min(after) > 85
    assert surgery.load(tmp_path / "new_classes.onnx").graph.outputs[0].shape[1] == 14  # type: ignore[index]


def test_vgg_first_five(tmp_path: Path, mnist: Path) -> None:
    told = result("vgg_first_five", mnist, "--examples", "1000", "--epochs", "3", "-o", tmp_path)
    assert "bit for bit" in told
    assert percents(told)[0] > 60


def test_regression_head(tmp_path: Path) -> None:
    told = result("regression_head", "--examples", "200", "--epochs", "10", "-o", tmp_path)
    mean, frozen, *_ = [float(number) for number in re.findall(r"([\d.]+)° off", told)]
    assert frozen < 0.9 * mean


def test_ants_and_bees(tmp_path: Path, shared_data: Path) -> None:
    photographs = shared_data / "ants_bees"
    told = result("pretrain_exemplars", photographs, "--examples", "24", "--epochs", "1", "-o", tmp_path)
    assert "among 24 photographs" in told
    words = "--examples", "12", "--epochs", "2", "--seeds", "1", "-o", tmp_path
    told = result("ants_bees", photographs, tmp_path / "exemplars.onnx", *words)
    assert len(re.findall(r"(?:all layers|the head only), (?:Surgery|PyTorch) +[\d.]+%", told)) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist_transfer", ["none.npz"]),
        ("mnist_dropout", ["none.npz"]),
        ("new_classes", ["none.npz"]),
        ("vgg_first_five", ["none.npz"]),
        ("pretrain_exemplars", ["none"]),
        ("ants_bees", ["none", "none.onnx"]),
    ],
)
def test_without_data_they_say_what_to_download(name: str, words: list[str]) -> None:
    assert "https://" in result(name, *words, code=1)


def test_the_photographs_may_lie_anywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / f"{number}.png")
    assert "among 8 photographs" in result("pretrain_exemplars", tmp_path, "--epochs", "1", "-o", tmp_path)
