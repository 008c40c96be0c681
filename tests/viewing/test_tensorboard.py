"""The event files are read back with TensorBoard's own reader."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import surgery
from surgery.errors import SurgeryError
from surgery.training.callbacks import Plan
from surgery.viewing.tensorboard import TensorBoard
from tests.nets import Residual, batches, residual


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.training
def test_scalars_graph_and_histograms_are_what_was_trained(tmp_path: Path) -> None:
    model = residual(Residual())
    result = surgery.train(
        model, batches(1, 40, (3, 8, 8), 4)[0], epochs=3, batch_size=10, validation=0.25, keep="last",
        callbacks=[TensorBoard(tmp_path, model)],
    )  # fmt: skip
    (run,) = tmp_path.iterdir()
    train, watched = read(run / "train"), read(run / "validation")
    for events, prefix in ((train, ""), (watched, "val_")):
        for figure in ("loss", "accuracy"):
            told = [(e.step, e.value) for e in events.Scalars(figure)]
            assert told == [(r["epoch"], np.float32(r[prefix + figure])) for r in result.history]
    assert [e.step for e in train.Scalars("step_loss")] == list(range(1, 10))
    assert [e.value for e in train.Scalars("learning_rate")] == pytest.approx([0.01] * 3)
    assert "learning_rate" not in watched.Tags()["scalars"]

    weight = result.model.graph.initializers["fc.weight"].const_value.numpy()  # type: ignore[union-attr]
    events = train.Histograms("fc.weight")
    assert [e.step for e in events] == [0, 1, 2, 3]
    last = events[-1].histogram_value
    assert (last.num, last.min, last.max) == (weight.size, weight.min(), weight.max())
    assert last.sum == pytest.approx(weight.sum(), rel=1e-4)
    assert last.sum_squares == pytest.approx((weight**2).sum(), rel=1e-4)
    below = [(weight <= limit).sum() for limit in last.bucket_limit]
    np.testing.assert_allclose(np.cumsum(last.bucket), below, atol=1)  # float32 edges


def test_the_graph_names_operators_parameters_and_shapes(tmp_path: Path) -> None:
    model = residual(Residual())
    board = TensorBoard(tmp_path, model, histograms=False)
    board.on_train_begin(Plan(1, 1, 1, 0, 1, [], [], "cpu"))
    board.on_train_end()
    nodes = {node.name: node for node in read(next(tmp_path.iterdir()) / "train").Graph().node}
    assert len(nodes) == len(model.graph) + len(model.graph.inputs) + len(model.graph.initializers)
    assert (nodes["conv1"].op, list(nodes["conv1"].input)) == ("Conv", ["data", "conv1.weight"])
    assert nodes["conv1"].attr["pads"].s == b"(1, 1, 1, 1)"
    dims = nodes["conv1"].attr["_output_shapes"].list.shape[0].dim
    assert [d.size for d in dims] == [-1, 8, 8, 8]
    known = set(nodes)
    assert all(source.split(":")[0] in known for node in nodes.values() for source in node.input)


def test_a_training_that_goes_on_tells_of_the_epochs_before(tmp_path: Path) -> None:
    past = [{"epoch": 1, "loss": 0.5, "val_loss": 0.75}, {"epoch": 2, "loss": 0.25, "val_loss": 0.5}]
    board = TensorBoard(tmp_path)
    board.on_train_begin(Plan(3, 4, 1, 1, 1, [], [], "cpu", past=past, weights=lambda: {"w": np.arange(3.0)}))
    board.on_step_end(3, 1, 0.2)
    board.on_train_end()
    train = read(next(tmp_path.iterdir()) / "train")
    assert [(e.step, e.value) for e in train.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [e.step for e in train.Scalars("step_loss")] == [9]
    assert [e.step for e in train.Histograms("w")] == [2]


def test_two_trainings_in_a_second_do_not_mix(tmp_path: Path) -> None:
    for loss in (0.5, 0.25, 0.75):
        board = TensorBoard(tmp_path)
        board.on_train_begin(Plan(1, 1, 1, 0, 1, [], [], "cpu", weights=lambda: {"w": np.ones(2)}))
        board.on_epoch_end({"epoch": 1, "loss": loss})
        board.on_train_end()
    found = [read(run / "train").Scalars("loss") for run in sorted(tmp_path.iterdir())]
    assert [[e.value for e in events] for events in found] == [[0.5], [0.25], [0.75]]


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SurgeryError, match=r"onnx-surgery\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SurgeryError, match="cannot be written"):
        TensorBoard(tmp_path / "file").on_train_begin(Plan(1, 1, 1, 0, 1, [], [], "cpu"))
