"""What `surgery train` leaves to look at."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import surgery
from surgery.demo.digits import digits
from tests.cli.test_cli import run
from tests.nets import lenet, torch_lenet

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    surgery.save(lenet(torch_lenet()), folder / "lenet.onnx")
    arrays = digits(60)
    np.savez(folder / "digits.npz", x=arrays["x_train"], y=arrays["y_train"])
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"checkpoints"}


def test_with_validation_data_there_are_pictures_of_mistakes(work: Path) -> None:
    out, words = work / "a", ["train", work / "lenet.onnx", work / "digits.npz", "--epochs", "3", "--lr", "1e-3"]
    done = run(*words, "-o", out, "--validation", "0.5", "--csv", "--tensorboard")
    always = {"model.onnx", "history.jsonl", "curves.png"}
    assert names(out) == always | {"confusion.png", "wrong.png", "history.csv", "tensorboard"}
    assert "confusion.png" in done.stdout
    assert "the training " in done.stdout
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    with open(out / "history.csv", newline="") as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == history
    assert len(list((out / "tensorboard").glob("*/*/events.out.tfevents.*"))) == 2

    told = json.loads(run(*words, "-o", out, "--json").stdout)  # nothing is watched: the old pictures would be wrong
    assert names(out) == always | {"history.csv", "tensorboard"}
    assert told["verdict"]["kind"] in ("improves", "converges", "flat", "diverges", "overfits")
    assert told["verdict"]["why"]


def test_early_stopping_by_a_flag_ends_well(work: Path) -> None:
    words = "--epochs", "60", "--lr", "0.05", "--validation", "0.5", "--early-stopping", "2"
    done = run("train", work / "lenet.onnx", work / "digits.npz", "-o", work / "b", *words)
    epochs = (work / "b" / "history.jsonl").read_text().count("\n")
    assert epochs < 60
    assert f"stopped after epoch {epochs}: val loss has not improved since epoch" in done.stdout
