"""What `surgery evaluate` measures and writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery import runtime
from surgery.io import load, save
from surgery.marks import set_labels
from tests.cli.test_cli import fails, run
from tests.graphs import parse

pytestmark = pytest.mark.training
X = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = parse(
        "(float[N,5] x) => (float[N,3] y)", "l = Gemm<transB = 1>(x, w, b) y = Softmax(l)", {"w": [3, 5], "b": [3]}
    )
    set_labels(network, "y", ["ant", "bee", "wasp"])
    save(network, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=X, y=np.arange(20) % 3)
    return tmp_path / "d.npz"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_printed_and_in_the_json(model: Path, data: Path) -> None:
    said = runtime.session(load(model), ["CPUExecutionProvider"]).run(None, {"x": X})[0].argmax(1)
    recall = (said == 1)[np.arange(20) % 3 == 1].mean()
    found = json.loads(run("evaluate", model, data, "--metrics", "recall_per_class, auc,top_2", "--json").stdout)
    assert found["recall[bee]"] == pytest.approx(recall)
    assert {"auc", "top_2", "accuracy", "loss"} <= set(found)
    lines = run("evaluate", model, data, "-m", "recall_per_class").stdout.splitlines()
    assert f"  recall[bee] {recall:.4g}" in lines
    assert "no metric is named 'f3'; did you mean" in fails("evaluate", model, data, "--metrics", "f3")
    assert "the metric r2 is of numbers, but the model predicts classes" in fails("evaluate", model, data, "-m", "r2")


def test_predictions_are_written(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "p.csv"
    assert str(out) in run("evaluate", model, data, "--predictions", out).stdout
    said = runtime.session(load(model), ["CPUExecutionProvider"]).run(None, {"x": X})[0]
    found = rows(out)
    assert list(found[0]) == ["index", "true", "predicted", "score[ant]", "score[bee]", "score[wasp]"]
    assert [row["true"] for row in found[:4]] == ["ant", "bee", "wasp", "ant"]
    names = ["ant", "bee", "wasp"]
    for row, scores in zip(found, said, strict=True):
        assert row["predicted"] == names[scores.argmax()]
        np.testing.assert_allclose([float(row[f"score[{n}]"]) for n in names], scores, rtol=1e-4)


def test_a_failed_evaluation_leaves_the_predictions_that_were_there(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("mine")
    np.savez(tmp_path / "bad.npz", x=X, y=np.arange(20))
    fails("evaluate", model, tmp_path / "bad.npz", "-p", tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert not list(tmp_path.glob(".p.csv*"))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("evaluate", model, tmp_path / "bad.npz", "-p", tmp_path / "file" / "p.csv")


def test_predictions_of_images_name_the_files(tmp_path: Path) -> None:
    network = parse(
        "(float[N,3,4,4] x) => (float[N,2] y)",
        "f = Flatten(x) l = Gemm<transB = 1>(f, w, b) y = Softmax(l)",
        {"w": [2, 48], "b": [2]},
    )
    save(network, tmp_path / "m.onnx")
    for name in ("ants", "bees"):
        (tmp_path / "i" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "i" / name / "one.png")
    run("evaluate", tmp_path / "m.onnx", tmp_path / "i", "-p", tmp_path / "p.csv", "-q")
    found = rows(tmp_path / "p.csv")
    assert [Path(row["file"]).parent.name for row in found] == [row["true"] for row in found] == ["ants", "bees"]


def test_predictions_of_numbers_and_of_several_labels(tmp_path: Path) -> None:
    network = parse(
        "(float[N,5] x) => (float[N,2] size, float[N,3] tags)",
        "size = Gemm<transB = 1>(x, w, b) s = Gemm<transB = 1>(x, v, c) tags = Sigmoid(s)",
        {"w": [2, 5], "b": [2], "v": [3, 5], "c": [3]},
    )
    save(network, tmp_path / "m.onnx")
    tags = np.array([[1, 0, 1]] * 20, np.float32)
    np.savez(tmp_path / "d.npz", x=X, y_size=X[:, :2], y_tags=tags)
    run("evaluate", tmp_path / "m.onnx", tmp_path / "d.npz", "-p", tmp_path / "p.csv", "-q")
    size, share = runtime.session(network, ["CPUExecutionProvider"]).run(["size", "tags"], {"x": X})
    for index, row in enumerate(rows(tmp_path / "p.csv")):
        assert float(row["size_true[1]"]) == pytest.approx(X[index, 1], rel=1e-5)
        assert float(row["size_predicted[0]"]) == pytest.approx(size[index, 0], rel=1e-4)
        assert row["tags_true"] == "0|2"
        assert row["tags_predicted"] == "|".join(str(i) for i in range(3) if share[index, i] > 0.5)


def test_classes_that_the_model_does_not_know_are_told(model: Path, tmp_path: Path) -> None:
    for names, said in ((["Wasp", "Bee", "Ant"], True), (["wasp", "bee", "ant"], False)):
        np.savez(tmp_path / "named.npz", x=X, y=np.arange(20) % 3, labels=names)
        told = run("evaluate", model, tmp_path / "named.npz").stderr
        assert ("has no label 'Wasp'; the data's (Wasp, Bee, Ant) are taken in their own order" in told) is said
    assert not run("evaluate", model, tmp_path / "named.npz", "--quiet").stderr


def test_preprocessing_that_is_assumed_is_told(tmp_path: Path) -> None:
    save(
        parse("(float[N,1,4,4] x) => (float[N,2] y)", "f = Flatten(x) y = Gemm(f, w)", {"w": [16, 2]}),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 4, 4), np.uint8), y=np.array([0, 1, 0, 1]))
    assert "preprocessing: GRAY" not in (told := run("evaluate", tmp_path / "m.onnx", tmp_path / "d.npz").stderr)
    assert "preprocessing: gray, NCHW, pixels / 255 (assumed" in told
