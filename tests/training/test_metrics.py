"""Metrics: numbers worked out by hand, scikit-learn's and PyTorch's on the same predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import sklearn.metrics as sk
import torch
from pydantic import ValidationError
from torch.nn import functional as F

import surgery
from surgery import runtime
from surgery.errors import SurgeryError
from surgery.marks import set_labels
from surgery.training.callbacks import Callback
from surgery.training.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from surgery.training.measure import examine
from surgery.training.metrics import METRICS, Predictions, compute, predicted
from surgery.training.settings import TrainSettings
from tests.graphs import parse

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(60, 4)) * 2
CLASSES = RNG.integers(0, 4, 60)


def of_classes(true: list[int], scores: list[list[float]]) -> Predictions:
    s = np.array(scores)
    return Predictions("classes", np.array(true), s.argmax(1), s, np.arange(len(true)))


# Predicted 0 0 1 1 1 2: class 0 is right in 1 of 2, class 1 in 2 of 3, class 2 in 1 of 1; of 2, 2 and 2 there are.
SIX = of_classes(
    [0, 2, 1, 0, 1, 2],
    [[0.8, 0.1, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.31, 0.4, 0.29], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]],
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 4 / 6),
        ("balanced_accuracy", (1 / 2 + 2 / 2 + 1 / 2) / 3),
        ("precision", (1 / 2 + 2 / 3 + 1) / 3),
        ("recall", (1 / 2 + 1 + 1 / 2) / 3),
        ("f1", (1 / 2 + 4 / 5 + 2 / 3) / 3),
        ("f1_weighted", (1 / 2 + 4 / 5 + 2 / 3) / 3),
        ("precision_micro", 4 / 6),
        ("top_1", 4 / 6),
        ("top_2", 1.0),  # the two that are wrong have the true class second
        ("top_3", 1.0),
        # One against the rest, pairs in the right order: class 0 has 0.8, 0.31 over 0.5, 0.2, 0.1, 0; class 1 0.7, 0.8
        # over 0.1, 0.1, 0.4, 0.1; class 2 0.4, 0.9 over 0.1, 0.1, 0.29, 0.1.
        ("auc", (7 / 8 + 1 + 1) / 3),
    ],
)
def test_metrics_of_six_examples_by_hand(name: str, value: float) -> None:
    assert compute([name], SIX)[name] == pytest.approx(value)


def test_per_class_metrics_are_named_by_class() -> None:
    assert compute(["recall_per_class"], SIX) == pytest.approx({"recall[0]": 0.5, "recall[1]": 1, "recall[2]": 0.5})
    named = Predictions("classes", SIX.y_true, SIX.y_pred, SIX.scores, SIX.indices, ("ant", "bee", "wasp"))
    assert compute(["precision_per_class"], named)["precision[wasp]"] == 1


def test_metrics_of_numbers_by_hand() -> None:
    of = predicted(MeanSquaredError(), np.array([[1.0], [2.0], [5.0]]), np.array([[1.0], [3.0], [2.0]]))
    found = compute(["mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2"], of)
    assert found["mean_absolute_error"] == pytest.approx(4 / 3)
    assert found["mean_squared_error"] == pytest.approx(10 / 3)
    assert found["root_mean_squared_error"] == pytest.approx(np.sqrt(10 / 3))
    assert found["r2"] == pytest.approx(1 - 10 / 2)


def test_logits_of_classes_become_pytorchs_probabilities() -> None:
    of = predicted(CrossEntropy(), LOGITS.astype(np.float32), CLASSES, first=100)
    want = F.softmax(torch.tensor(LOGITS), 1).numpy()
    np.testing.assert_allclose(of.scores, want, atol=1e-6)
    assert of.indices.tolist() == list(range(100, 160))
    names = ["auc", "auc_weighted", "average_precision", "top_2", "f1_weighted", "balanced_accuracy"]
    found = compute(names, of)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(CLASSES, want, multi_class="ovr"), abs=1e-6)
    weighted = sk.roc_auc_score(CLASSES, want, multi_class="ovr", average="weighted")
    assert found["auc_weighted"] == pytest.approx(weighted, abs=1e-6)
    one_hot = np.eye(4)[CLASSES]
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(one_hot, want), abs=1e-6)
    best = torch.topk(torch.tensor(LOGITS), 2).indices.numpy()
    assert found["top_2"] == pytest.approx((best == CLASSES[:, None]).any(1).mean())
    soft = predicted(CrossEntropy(soft_labels=True), LOGITS.astype(np.float32), one_hot.astype(np.float32))
    np.testing.assert_array_equal(soft.y_true, CLASSES)


def test_maps_of_classes_count_pixel_by_pixel() -> None:
    logits, true = RNG.normal(size=(3, 4, 2, 5)).astype(np.float32), RNG.integers(0, 4, (3, 2, 5))
    true[0, 0, :3] = 255
    of = predicted(CrossEntropy(ignore_index=255), logits, true)
    counted = true != 255
    assert len(of.y_true) == 27
    assert of.indices.tolist() == [0] * 7 + [1] * 10 + [2] * 10
    assert compute(["accuracy"], of)["accuracy"] == pytest.approx((logits.argmax(1) == true)[counted].mean())


def test_several_labels_at_once_are_sigmoids() -> None:
    logits, true = RNG.normal(size=(50, 3)), RNG.integers(0, 2, (50, 3)).astype(np.float32)
    of = predicted(BinaryCrossEntropy(), logits, true, ["a", "b", "c"])
    share = torch.sigmoid(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(of.scores, share, atol=1e-12)
    found = compute(["f1", "exact_match", "auc_per_class", "average_precision", "accuracy"], of)
    assert found["f1"] == pytest.approx(sk.f1_score(true, share > 0.5, average="macro"))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(true, share > 0.5))
    assert found["accuracy"] == pytest.approx(((share > 0.5) == true).mean())
    assert found["auc[b]"] == pytest.approx(sk.roc_auc_score(true[:, 1], share[:, 1]))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(true, share))


def test_a_single_sigmoid_tells_two_classes_apart() -> None:
    logits, true = RNG.normal(size=(40, 1)), RNG.integers(0, 2, (40, 1)).astype(np.float32)
    of = predicted(BinaryCrossEntropy(), logits, true)
    assert (of.kind, of.scores.shape) == ("classes", (40, 2))  # type: ignore[union-attr]
    assert compute(["auc"], of)["auc"] == pytest.approx(sk.roc_auc_score(true, logits))
    assert compute(["f1"], of)["f1"] == pytest.approx(sk.f1_score(true, logits > 0, average="macro"))


def test_a_class_that_does_not_occur_has_no_auc() -> None:
    of = predicted(CrossEntropy(), LOGITS, CLASSES % 3)
    assert set(compute(["auc_per_class"], of)) == {"auc[0]", "auc[1]", "auc[2]"}
    with pytest.raises(SurgeryError, match=r"auc compares examples .* all alike"):
        compute(["auc"], predicted(CrossEntropy(), LOGITS, np.zeros(60, np.int64)))


def test_metrics_that_are_not_there() -> None:
    with pytest.raises(SurgeryError, match=r"no metric is named 'f2'.*there are accuracy"):
        compute(["f2"], SIX)
    with pytest.raises(ValidationError, match="no metric is named 'aucc'; did you mean 'auc'"):
        TrainSettings(metrics=("aucc",))
    for name in ("top_0", "top_", "top_k"):
        with pytest.raises(SurgeryError, match="no metric"):
            compute([name], SIX)
    assert compute(["r2"], SIX) == {}  # of numbers
    assert all(compute([name], SIX) or "classes" not in kinds for name, (kinds, _) in METRICS.items())


def classifier(outputs: int = 4, end: str = "Softmax") -> ir.Model:
    return parse(
        f"(float[N,6] x) => (float[N,{outputs}] y)", f"l = Gemm<transB = 1>(x, w, b) y = {end}(l)",
        {"w": [outputs, 6], "b": [outputs]},
    )  # fmt: skip


X = RNG.normal(size=(50, 6)).astype(np.float32)
T = RNG.integers(0, 4, 50)


@pytest.mark.training
@pytest.mark.parametrize("end", ["Softmax", "Identity"])
def test_a_model_is_measured_on_its_own_probabilities(end: str) -> None:
    model = classifier(end=end)
    set_labels(model, "y", list("abcd"))
    scores, found = examine(model, (X, T), metrics=["f1", "top_2", "recall_per_class"], batch_size=16)
    said = runtime.session(model, ["CPUExecutionProvider"]).run(None, {"x": X})[0]
    probabilities = said if end == "Softmax" else F.softmax(torch.tensor(said), 1).numpy()
    np.testing.assert_allclose(found["y"].scores, probabilities, atol=1e-6)
    np.testing.assert_array_equal(found["y"].y_pred, said.argmax(1))
    np.testing.assert_array_equal(found["y"].y_true, T)
    assert found["y"].names == ("a", "b", "c", "d")
    assert scores.measures["f1"] == pytest.approx(sk.f1_score(T, said.argmax(1), average="macro"))
    assert scores.measures["recall[d]"] == pytest.approx((said.argmax(1) == 3)[T == 3].mean())
    assert scores.value == pytest.approx((said.argmax(1) == T).mean())
    plain = surgery.evaluate(model, (X, T), batch_size=16)
    assert plain.measures == {k: scores.measures[k] for k in ("loss", "accuracy")}


class Recorder(Callback):
    began = False

    def on_train_begin(self, plan: object) -> None:
        self.began = True


@pytest.mark.training
def test_training_watches_the_metrics_that_are_asked_for() -> None:
    result = surgery.train(
        classifier(), (X, T), validation=(X[:20], T[:20]), epochs=2, metrics=("f1", "auc"), early_stopping=None
    )
    scores = surgery.evaluate(result.model, (X[:20], T[:20]), metrics=["f1", "auc"])
    record = result.history[result.kept_epoch - 1]
    assert record["val_f1"] == pytest.approx(scores.measures["f1"])
    assert record["val_auc"] == pytest.approx(scores.measures["auc"], abs=1e-6)
    recorder = Recorder()
    with pytest.raises(SurgeryError, match=r"auc compares examples .* all alike"):
        surgery.train(classifier(), (X, T), validation=(X[:3], [1, 1, 1]), metrics=("auc",), callbacks=[recorder])
    assert not recorder.began  # told before anything is trained
    with pytest.raises(SurgeryError, match="the metric r2 is of numbers, but the model predicts classes"):
        surgery.train(classifier(), (X, T), epochs=1, metrics=("r2",))


@pytest.mark.training
def test_each_output_has_the_metrics_of_its_kind() -> None:
    model = parse(
        "(float[N,6] x) => (float[N,4] kind, float[N,2] size, float[N,3] tags)",
        "l = Gemm<transB = 1>(x, w, b) kind = Softmax(l) size = Gemm<transB = 1>(x, v, c) "
        "s = Gemm<transB = 1>(x, u, d) tags = Sigmoid(s)",
        {"w": [4, 6], "b": [4], "v": [2, 6], "c": [2], "u": [3, 6], "d": [3]},
    )
    targets = {
        "kind": T,
        "size": RNG.normal(size=(50, 2)).astype(np.float32),
        "tags": RNG.integers(0, 2, (50, 3)).astype(np.float32),
    }
    scores, found = examine(model, (X, targets), metrics=["f1", "r2", "mean_absolute_error"])
    kind, size, tags = runtime.session(model, ["CPUExecutionProvider"]).run(["kind", "size", "tags"], {"x": X})
    assert {name: p.kind for name, p in found.items()} == {"kind": "classes", "size": "numbers", "tags": "labels"}
    measures = scores.measures
    assert measures["kind_f1"] == pytest.approx(sk.f1_score(T, kind.argmax(1), average="macro"))
    assert measures["size_r2"] == pytest.approx(sk.r2_score(targets["size"], size), abs=1e-5)
    assert measures["size_mean_absolute_error"] == pytest.approx(np.abs(size - targets["size"]).mean(), abs=1e-6)
    assert measures["tags_f1"] == pytest.approx(sk.f1_score(targets["tags"], tags > 0.5, average="macro"))
    assert "kind_r2" not in measures
    assert json.loads(json.dumps(measures)) == measures


@pytest.mark.training
def test_mixed_and_balanced_training_reaches_the_graph(tmp_path: Path) -> None:
    """Mixed examples with one-hot targets train by cross-entropy, also where no Softmax says so."""
    labels = (X[:, 0] > 0.8).astype(np.int64)
    how = {"augment": {"mixup": 0.2}, "sampling": "balanced", "epochs": 60, "learning_rate": 0.3}
    result = surgery.train(classifier(2, "Identity"), (X, labels), validation=(X, labels), metrics=("recall",), **how)
    assert result.history[-1]["val_recall"] > 0.85
    weighted = {"name": "cross_entropy", "class_weights": "balanced"}
    plain = surgery.train(classifier(2, "Identity"), (X, labels), loss=weighted, epochs=1, batch_size=50)
    counts = np.bincount(labels)
    ours = torch.tensor(50 / (2 * counts), dtype=torch.float32)
    said = runtime.session(classifier(2, "Identity"), ["CPUExecutionProvider"]).run(None, {"x": X})[0]
    want = F.cross_entropy(torch.tensor(said), torch.tensor(labels), weight=ours)
    assert plain.history[0]["loss"] == pytest.approx(float(want), rel=1e-5)
