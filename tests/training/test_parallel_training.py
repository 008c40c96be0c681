"""`surgery.train` and its kin on several processors: the same numbers, and going on to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.marks import set_marks
from surgery.training import stages
from surgery.training.callbacks import Callback
from surgery.training.checkpoint import Checkpoints
from surgery.training.parallel import Shards
from surgery.training.step import Step, training_step
from surgery.training.trainer import Trained
from tests.nets import Residual, batches, residual

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _tiny_networks_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.training.shards._WORTH", 1)


def network() -> ir.Model:
    """With frozen statistics, so that examples are independent."""
    model = residual(Residual())
    for name in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
        set_marks(model.graph.initializers[name], trainable=False)
    return model


def fit(monkeypatch: pytest.MonkeyPatch, cores: int, **how: Any) -> Trained:
    """A training of 37 examples in batches of 8, the last of 5, on so many processors."""
    monkeypatch.setattr(stages, "cores", lambda: cores)
    steps: list[Step] = []

    def noted(*args: Any, **given: Any) -> Step:
        steps.append(training_step(*args, **given))
        return steps[-1]

    monkeypatch.setattr(stages, "training_step", noted)
    data, held = (batches(1, count, (3, 8, 8), 4, seed)[0] for count, seed in ((37, 0), (20, 1)))
    usual: dict[str, Any] = {"epochs": 3, "batch_size": 8, "validation": held, "learning_rate": 0.05, "device": "cpu"}
    result = surgery.train(network(), data, **usual | how)
    assert {step.shards for step in steps} == {cores}
    return result


def _arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


@pytest.mark.parametrize(
    "how", [{}, {"optimizer": "adam", "learning_rate": 0.001, "schedule": "one_cycle", "ema": 0.9, "clip_norm": 0.5}]
)
def test_the_history_is_the_same_whatever_the_number_of_processors(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, *others = (fit(monkeypatch, cores, **how) for cores in (1, 2, 3))
    for other in others:
        for ours, theirs in zip(other.history, alone.history, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours.keys() - {"seconds"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name  # type: ignore[literal-required]
        for name, array in _arrays(alone.model).items():
            np.testing.assert_allclose(_arrays(other.model)[name], array, rtol=1e-5, atol=1e-5)


class Killed(Exception):
    """Stands for what ends a training without a word."""


class Kill(Callback):
    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (2, 4):
            raise Killed


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_divided_training_goes_on_to_the_same_bits(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"optimizer": optimizer, "ema": 0.9, "keep": "last", "learning_rate": 0.01}
    whole = fit(monkeypatch, 2, **how)
    store = Checkpoints(tmp_path, steps=3)
    with pytest.raises(Killed):
        fit(monkeypatch, 2, **how, checkpoints=store, callbacks=[Kill()])
    rest = fit(monkeypatch, 2, **how, checkpoints=store, resume=True)
    assert [r["loss"] for r in rest.history] == [r["loss"] for r in whole.history]
    for name, array in _arrays(whole.model).items():
        np.testing.assert_array_equal(_arrays(rest.model)[name], array, err_msg=name)


def test_the_range_of_rates_is_tested_on_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    count, runs, run = 0, [], Shards.run

    def counted(self: Shards, *args: Any) -> Any:
        nonlocal count
        count += 1
        return run(self, *args)

    monkeypatch.setattr(Shards, "run", counted)
    curves = []
    for cores in (1, 2):
        monkeypatch.setattr(stages, "cores", lambda cores=cores: cores)
        how: dict[str, Any] = {"steps": 30, "highest": 0.5, "batch_size": 8, "device": "cpu"}
        curves.append(surgery.find_learning_rate(network(), batches(1, 80, (3, 8, 8), 4)[0], **how))
        runs.append(count)
    assert runs == [0, 1 + len(curves[1].losses)]  # one without a rate comes first
    np.testing.assert_allclose(curves[1].losses, curves[0].losses, rtol=1e-4)
    assert curves[1].suggestion == pytest.approx(curves[0].suggestion)
