"""The learning-rate range test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import surgery
from surgery.errors import SurgeryError
from tests.cli.test_cli import fails, run
from tests.nets import Residual, batches, graph_with_input, model_of, parameter, residual

pytestmark = pytest.mark.training
PLAIN: dict[str, Any] = {"optimizer": {"name": "sgd", "momentum": 0}}


def linear(inputs: int = 3) -> ir.Model:
    op, x = graph_with_input("N", inputs)
    x = op.Gemm(x, parameter(op, "fc.weight", torch.zeros(inputs, 1)), _name="fc")
    return model_of(op.graph, {"y": x})


def regression(count: int = 256) -> tuple[np.ndarray, np.ndarray, float]:
    """Examples, targets, and the learning rate beyond which gradient descent diverges: 2 / λ of 2·XᵀX/N."""
    rng = np.random.default_rng(0)
    examples = rng.normal(0, [3, 1, 0.5], (count, 3)).astype(np.float32)
    targets = examples @ np.array([[1.0], [-2.0], [3.0]], np.float32)
    return examples, targets, float(1 / np.linalg.eigvalsh(examples.T @ examples / count).max())


@pytest.mark.parametrize("more", [{}, {"accumulate": 4}, {"optimizer": PLAIN["optimizer"], "schedule": "one_cycle"}])
def test_the_loss_grows_where_theory_has_it(more: dict[str, Any]) -> None:
    """Whole-batch gradient descent on a quadratic: nothing can grow below the limit, and soon behind it it must."""
    examples, targets, limit = regression()
    how = {"batch_size": 256 // more.get("accumulate", 1), **PLAIN, **more}
    curve = surgery.find_learning_rate(linear(), (examples, targets), lowest=1e-5, highest=10, steps=80, **how)
    assert curve.ending == "diverged"
    lowest = curve.rates[int(np.argmin(curve.losses))]
    assert limit < lowest < 10 * limit  # what has shrunk to nothing takes some steps to grow again
    steps = zip(curve.rates, curve.losses[:-1], curve.losses[1:], strict=False)
    assert all(after <= before for rate, before, after in steps if rate < limit)
    assert curve.suggestion is not None
    assert limit / 30 < curve.suggestion < limit
    assert np.diff(np.log(curve.rates)) == pytest.approx(np.log(1e6) / 79, rel=1e-6)
    trained = surgery.train(linear(), (examples, targets), epochs=20, learning_rate=curve.suggestion, **PLAIN)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"] / 10


def test_the_model_stays_as_it_is_and_the_first_loss_is_its_own() -> None:
    ((examples, targets),) = batches(1, 24, (3, 8, 8), 4)
    model = residual(Residual())
    surgery.apply(model, [{"freeze": {"type": "BatchNormalization"}}])
    before = ir.to_proto(model).SerializeToString()
    done: list[tuple[int, int]] = []
    curve = surgery.find_learning_rate(
        model, (examples, targets), batch_size=24, steps=20, progress=lambda *now: done.append(now)
    )
    assert ir.to_proto(model).SerializeToString() == before
    assert curve.losses[0] == pytest.approx(surgery.evaluate(model, (examples, targets)).loss, rel=1e-5)
    assert done == [(i, 20) for i in range(1, len(curve.losses) + 1)]
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed)
    again = surgery.find_learning_rate(model, (examples, targets), batch_size=24, steps=20)
    assert again == curve


def test_constraints_that_do_not_hold_yet_are_no_divergence() -> None:
    """Without negative weights the network is another one, of ten times the loss, from the first update on."""
    ((examples, targets),) = batches(1, 64, (3, 8, 8), 4)
    model = residual(Residual())
    surgery.apply(model, [{"non_neg": "conv*"}, {"min_max_norm": {"minimum": 30, "maximum": 40, "layers": "fc"}}])
    curve = surgery.find_learning_rate(model, (examples, targets), batch_size=16)
    assert curve.losses[0] > 5 * surgery.evaluate(model, (examples, targets)).loss
    assert len(curve.losses) > 50
    assert curve.suggestion is not None


def test_a_range_that_is_too_low_and_one_that_is_too_high() -> None:
    examples, targets, limit = regression()
    how = {"batch_size": 256, "steps": 30, **PLAIN}
    low = surgery.find_learning_rate(linear(), (examples, targets), lowest=1e-6, highest=1e-4, **how)
    assert low.ending == "finished"
    high = surgery.find_learning_rate(linear(), (examples, targets), lowest=3 * limit, highest=100 * limit, **how)
    assert (high.ending, high.suggestion, high.steepest) == ("diverged", None, None)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "from 1 to 0.1 are no range"),
        ({"lowest": -1.0}, "are no range"),
        ({"lowest": 0.0}, "from 0 to .* are no range; the first must be above 0"),
        ({"steps": 3}, "3 steps are too few"),
        ({"optimiser": "sgd"}, "unknown key"),
    ],
)
def test_what_cannot_be(how: dict[str, Any], message: str) -> None:
    examples, targets, _ = regression(32)
    with pytest.raises(SurgeryError, match=message):
        surgery.find_learning_rate(linear(), (examples, targets), **how)


def test_the_command_draws_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples, targets, _ = regression()
    surgery.save(linear(), tmp_path / "line.onnx")
    before = (tmp_path / "line.onnx").read_bytes()
    np.savez(tmp_path / "data.npz", x=examples, y=targets)
    (tmp_path / "how.yaml").write_text("train: {batch_size: 256, optimizer: {name: sgd, momentum: 0}}\n")
    text = run("find-lr", "line.onnx", "data.npz", "--recipe", "how.yaml", "--steps", "60").stdout
    assert "try --lr 0.0" in text
    assert "line-lr.png shows it" in text
    assert (tmp_path / "line-lr.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    words = ["find-lr", "line.onnx", "data.npz", "--recipe", "how.yaml", "-o", "lr.png", "--steps", "20"]
    data = json.loads(run(*words, "--highest", "1e-3", "--json").stdout)
    assert (data["picture"], data["ending"], len(data["rates"])) == ("lr.png", "finished", 20)
    assert (tmp_path / "lr.png").is_file()
    assert "did not grow yet" in run(*words, "--highest", "1e-3").stdout
    assert "falls at none of them" in run(*words, "--lowest", "1", "--highest", "10").stdout
    assert (tmp_path / "line.onnx").read_bytes() == before
    assert "need a --recipe" in fails("find-lr", "line.onnx", "data.npz", "--set", "train.seed=1")
    assert "are no range" in fails(*words, "--lowest", "3", "--highest", "2")
