from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import surgery
from surgery.errors import SurgeryError
from surgery.training.callbacks import Callback, Csv, EarlyStopping, JsonLines, Plan
from surgery.training.history import History, Record
from surgery.training.settings import TrainSettings, changed
from tests.nets import Residual, batches, residual

RECORDS: History = [
    {"epoch": 1, "loss": 1.5, "accuracy": 0.5, "val_loss": 1.25, "learning_rate": 0.1, "seconds": 0.5},
    {"epoch": 2, "loss": 0.75, "accuracy": 0.75, "val_loss": 1.0, "learning_rate": 0.1, "seconds": 0.5},
]


def plan(validation: int = 10, **more: Any) -> Plan:
    return Plan(9, 1, 10, validation, 5, ["cross_entropy"], ["accuracy"], "cpu", **more)


def data() -> tuple[Any, Any]:
    return batches(1, 40, (3, 8, 8), 4)[0]  # type: ignore[return-value]


def losses(values: list[float], name: str = "val_loss") -> History:
    return [{"epoch": i, "loss": 1.0, name: value} for i, value in enumerate(values, 1)]


def stops_after(stopping: EarlyStopping, history: History, the_plan: Plan | None = None) -> int | None:
    stopping.on_train_begin(the_plan or plan())
    return next((record["epoch"] for record in history if stopping.on_epoch_end(record)), None)


@pytest.mark.parametrize(
    ("values", "options", "epoch"),
    [
        ([3, 2, 1, 0.5], {"patience": 1}, None),
        ([3, 2, 2.5, 2.6], {"patience": 1}, 3),
        ([3, 2, 2.5, 2.6], {"patience": 2}, 4),
        ([3, 2, 2.5, 1.9, 2.5, 2.6], {"patience": 2}, 6),  # a better one starts the count anew
        ([3, 2.95, 2.9, 2.85], {"patience": 3, "min_delta": 0.2}, 4),  # too small a gain is none
        ([3, 2.9, 2.7], {"patience": 2, "min_delta": 0.2}, None),  # but gains add up
    ],
)
def test_early_stopping_waits_for_the_loss_to_improve(
    values: list[float], options: dict[str, Any], epoch: int | None
) -> None:
    assert stops_after(EarlyStopping(**options), losses(values)) == epoch


def test_of_scores_the_greatest_is_best() -> None:
    history = losses([0.5, 0.6, 0.55, 0.58], "val_accuracy")
    assert stops_after(EarlyStopping(2, monitor="val_accuracy"), history) == 4
    assert stops_after(EarlyStopping(2, monitor="val_accuracy"), losses([0.5, 0.6, 0.7], "val_accuracy")) is None


def test_without_validation_the_loss_is_watched() -> None:
    assert stops_after(EarlyStopping(1), [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 1.0}], plan(0)) == 2


def test_a_training_that_goes_on_counts_the_epochs_before() -> None:
    past = losses([1.0, 2.0, 2.0])
    stopping = EarlyStopping(3)
    stopping.on_train_begin(plan(past=past))
    assert (
        stopping.on_epoch_end({"epoch": 4, "loss": 1.0, "val_loss": 1.5}) == "val loss has not improved since epoch 1"
    )


@pytest.mark.parametrize(("monitor", "validation"), [("val_acuracy", 5), ("val_loss", 0)])
def test_a_figure_that_is_not_there_is_told_before_the_training(monitor: str, validation: int) -> None:
    with pytest.raises(SurgeryError, match=f"no figure is named '{monitor}'.* did you mean"):
        EarlyStopping(2, monitor=monitor).on_train_begin(plan(validation))


def test_figures_of_further_metrics_are_looked_for_when_there_are_some() -> None:
    stopping = EarlyStopping(1, monitor="val_f1")
    stopping.on_train_begin(plan(watched=["f1"]))
    history = [{**record, "val_f1": value} for record, value in zip(losses([1, 1]), [0.5, 0.25], strict=True)]
    assert [bool(stopping.on_epoch_end(record)) for record in history] == [False, True]
    stopping = EarlyStopping(1, monitor="val_f1_ants")
    stopping.on_train_begin(plan(watched=["f1"]))
    with pytest.raises(SurgeryError, match="did you mean 'val_f1'"):
        stopping.on_epoch_end(history[0])


def test_settings_take_a_number_or_all_of_it() -> None:
    assert changed(TrainSettings(), {"early_stopping": 4}).early_stopping.patience == 4  # type: ignore[union-attr]
    whole = changed(TrainSettings(), {"early_stopping": {"patience": 2, "monitor": "loss"}}).early_stopping
    assert whole is not None
    assert (whole.patience, whole.min_delta, whole.monitor) == (2, 0.0, "loss")
    for wrong in (0, True, {"patiences": 2}, "soon"):
        with pytest.raises(SurgeryError, match="early_stopping"):
            changed(TrainSettings(), {"early_stopping": wrong})


@pytest.mark.training
def test_a_training_stops_early_and_keeps_the_best_weights() -> None:
    model = residual(Residual())
    result = surgery.train(
        model, data(), epochs=50, learning_rate=0.5, validation=0.5, early_stopping={"patience": 2}, batch_size=20
    )
    watched = [record["val_loss"] for record in result.history]
    assert result.ending == "stopped"
    assert len(watched) < 50
    assert len(watched) == result.kept_epoch + 2  # the best one, and two that were not better
    assert min(watched) == watched[result.kept_epoch - 1]
    assert (
        result.message
        == f"stopped after epoch {len(watched)}: val loss has not improved since epoch {result.kept_epoch}"
    )


@pytest.mark.training
def test_a_callback_ends_a_training_after_all_were_told() -> None:
    told: list[tuple[str, int]] = []

    class Enough(Callback):
        def on_epoch_end(self, record: Record) -> str | None:
            told.append(("enough", record["epoch"]))
            return "it is enough" if record["epoch"] == 2 else None

    class Other(Callback):
        def on_epoch_end(self, record: Record) -> None:
            told.append(("other", record["epoch"]))

        def on_train_end(self) -> None:
            told.append(("end", 0))

    result = surgery.train(residual(Residual()), data(), epochs=9, callbacks=[Enough(), Other()])
    assert (result.ending, result.message) == ("stopped", "stopped after epoch 2: it is enough")
    assert len(result.history) == 2
    assert told == [("enough", 1), ("other", 1), ("enough", 2), ("other", 2), ("end", 0)]


@pytest.mark.training
def test_the_plan_gives_the_present_weights() -> None:
    seen = []

    class Weights(Callback):
        def on_train_begin(self, plan: Plan) -> None:
            self.plan = plan
            seen.append(plan.weights()["fc.weight"])

        def on_epoch_end(self, record: Record) -> None:
            seen.append(self.plan.weights()["fc.weight"])

    model = residual(Residual())
    result = surgery.train(model, data(), epochs=2, callbacks=[Weights()], keep="last")
    first, _, last = seen
    assert (first == model.graph.initializers["fc.weight"].const_value.numpy()).all()  # type: ignore[union-attr]
    assert (last == result.model.graph.initializers["fc.weight"].const_value.numpy()).all()  # type: ignore[union-attr]
    assert (first != last).any()


@pytest.mark.training
def test_the_plan_gives_the_figures_so_far() -> None:
    seen, losses = [], []

    class Running(Callback):
        def on_train_begin(self, plan: Plan) -> None:
            self.plan = plan

        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            seen.append(self.plan.so_far())
            losses.append(loss)

    result = surgery.train(residual(Residual()), data(), epochs=1, batch_size=16, callbacks=[Running()])
    assert [figures["loss"] for figures in seen[:2]] == pytest.approx([losses[0], (losses[0] + losses[1]) / 2])
    assert {k: v for k, v in result.history[0].items() if k in seen[-1]} == pytest.approx(seen[-1])  # 16 + 16 + 8
    assert list(seen[-1]) == ["loss", "accuracy", "learning_rate"]


@pytest.mark.training
def test_a_bar_on_a_terminal_shows_the_figures_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    from surgery.cli.progress import EpochLines

    lines = EpochLines()
    surgery.train(residual(Residual()), data(), epochs=2, batch_size=8, callbacks=[lines])
    shown = terminal.getvalue()
    assert "training" in shown
    assert re.search(r"loss [\d.]+  accuracy [\d.]+  rate 0\.01", shown)
    assert re.search(r"/10", shown)


@pytest.mark.parametrize("kind", [JsonLines, Csv])
def test_files_keep_what_was_there_until_there_is_something_new(tmp_path: Path, kind: type[Csv]) -> None:
    path = tmp_path / "deep" / "file"
    path.parent.mkdir()
    path.write_text("old")
    writer = kind(path)
    writer.on_train_begin(plan())
    assert path.read_text() == "old"
    writer.on_epoch_end(RECORDS[0])
    assert "old" not in path.read_text()
    writer.on_train_end()
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("past", [0, 1])
def test_csv_and_json_lines_hold_the_records(tmp_path: Path, past: int) -> None:
    for kind in (JsonLines, Csv):
        writer = kind(tmp_path / kind.__name__)
        writer.on_train_begin(plan(past=RECORDS[:past]))
        for record in RECORDS[past:]:
            writer.on_epoch_end(record)
        writer.on_train_end()
    assert [json.loads(line) for line in (tmp_path / "JsonLines").read_text().splitlines()] == RECORDS
    with open(tmp_path / "Csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in rows] == RECORDS


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SurgeryError, match="cannot be written"):
        Csv(tmp_path / "file" / "history.csv").on_train_begin(plan())
