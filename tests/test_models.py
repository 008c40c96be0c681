"""The networks that the project ships are what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import converters
import surgery

MODELS = Path(__file__).resolve().parents[1] / "models"
CARDS = sorted(MODELS.glob("*/card.yaml"))


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.parent.name)
def test_a_card_names_its_files_and_they_are_small(card: Path) -> None:
    data = yaml.safe_load(card.read_text())
    assert {"name", "source", "licence", "files", "input", "preprocessing", "labels", "accuracy"} <= data.keys()
    sizes = [(card.parent / name).stat().st_size for name in data["files"].values()]
    assert sum(sizes) < 2_000_000


@pytest.mark.training
def test_lenet_has_its_accuracy_on_mnist(shared_data: Path) -> None:
    card = yaml.safe_load((MODELS / "lenet_mnist" / "card.yaml").read_text())
    model = converters.convert(MODELS / "lenet_mnist")
    scores = surgery.evaluate(model, shared_data / "mnist.npz")
    assert scores.examples == 10_000
    assert scores.value == pytest.approx(card["accuracy"]["top1"], abs=0.0005)
    assert scores.value >= 0.99
