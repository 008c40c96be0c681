from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.training.history import History
from surgery.training.verdict import verdict
from tests.nets import Residual, batches, residual

EPOCHS = np.arange(20)


def history(train: Any, watched: Any = None) -> History:
    records = [{"epoch": i, "loss": float(loss)} for i, loss in enumerate(train, 1)]
    for record, loss in zip(records, [] if watched is None else watched, strict=False):
        record["val_loss"] = float(loss)
    return records  # type: ignore[return-value]


FALLING = 0.1 + 2 * 0.7**EPOCHS  # settles at 0.1
CURVES: dict[str, tuple[Any, Any, str]] = {
    "settled": (FALLING, FALLING + 0.05, "converges"),
    "settled, without validation": (FALLING, None, "converges"),
    "noisy but settled": (FALLING, 0.3 + 0.01 * np.random.default_rng(0).standard_normal(20), "converges"),
    "cut off while it falls": (FALLING[:5], FALLING[:5] + 0.05, "improves"),
    "slowly, but it falls": ([1.847, 0.7135, 0.6591], [0.7301, 0.6677, 0.6528], "improves"),
    "a straight way down": (2 - 0.09 * EPOCHS, None, "improves"),
    "validation turns": (2 * 0.8**EPOCHS, 1 + 0.02 * (EPOCHS - 6) ** 2, "overfits"),
    "validation worse in the last epoch only": (FALLING, [*FALLING[:-1], 0.11], "converges"),
    "both rise": (0.5 + 0.02 * (EPOCHS - 4) ** 2, 0.6 + 0.02 * (EPOCHS - 4) ** 2, "diverges"),
    "rises from the start": (0.5 + 0.1 * EPOCHS, None, "diverges"),
    "chance": (2.303 + 0.002 * np.cos(EPOCHS), 2.303 + 0.002 * np.sin(EPOCHS), "flat"),
    "two epochs": ([2, 1], None, "too short"),
    "no epoch": ([], None, "too short"),
    "zero at once": ([0, 0, 0, 0], [0, 0, 0, 0], "flat"),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_judged_as_one_would(name: str) -> None:
    train, watched, kind = CURVES[name]
    assert verdict(history(train, watched)).kind == kind


def test_the_sentence_has_the_figures_and_what_to_do() -> None:
    losses, watched = [1.0, 0.5, 0.25, 0.125, 0.0625], [1.0, 0.5, 0.75, 1.0, 1.25]
    assert str(verdict(history(losses, watched))) == (
        "the training overfits: since epoch 2 the validation loss rose from 0.5 to 1.25 while the training loss fell "
        "to 0.0625; keep the weights of epoch 2, or bring more data, dropout or weight decay, or train fewer layers"
    )
    assert str(verdict(history([1.0, 0.5, 0.4]))) == (
        "the training should go on: the training loss still fell by 20% in the last epoch, to 0.4"
    )
    infinite = verdict([], "the loss became inf at step 2 of epoch 1")
    assert str(infinite) == "the training diverges: the loss became inf at step 2 of epoch 1"


def noise(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, count)


CLASSES = batches(1, 64, (3, 8, 8), 4)[0]


@pytest.mark.training
@pytest.mark.parametrize(
    ("kind", "data", "watched", "settings"),
    [
        ("overfits", noise(24, 0), noise(24, 1), {"epochs": 40, "learning_rate": 0.05}),  # there is nothing to learn
        ("improves", CLASSES, None, {"epochs": 5, "learning_rate": 0.01}),
        ("flat", CLASSES, None, {"epochs": 5, "learning_rate": 1e-6}),
        ("diverges", CLASSES, None, {"epochs": 5, "learning_rate": 1e30}),
        (
            "converges",
            CLASSES,
            0.25,
            {"epochs": 60, "learning_rate": 0.05, "schedule": "cosine"},
        ),
    ],
)
def test_real_trainings_are_judged_right(kind: str, data: Any, watched: Any, settings: dict[str, Any]) -> None:
    model: ir.Model = residual(Residual())
    result = surgery.train(model, data, validation=watched, **settings)
    assert result.verdict.kind == kind, (result.verdict, result.history)
