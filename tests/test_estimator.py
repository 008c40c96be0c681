"""The estimators do what scikit-learn asks of estimators, and what the training they wrap does."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import surgery
from surgery.demo.digits import digits
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import labels, marks
from surgery.passes import Freeze, ReplaceHead
from surgery.training.callbacks import Callback
from surgery.training.losses import strip_activation
from tests.conftest import ROOT
from tests.graphs import run
from tests.nets import graph_with_input, lenet, model_of, torch_lenet

pytestmark = pytest.mark.training
Classifier, Regressor = surgery.FineTuneClassifier, surgery.FineTuneRegressor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([Classifier(random_state=0), Regressor(random_state=0)])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def scaled(kind: Any) -> Any:
    """scikit-learn's own network with the same hyper-parameters: 100 hidden units, Adam at 0.001."""
    return make_pipeline(StandardScaler(), kind(batch_size=32, max_iter=50, random_state=0))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_a_network_it_is_as_good_as_scikit_learns() -> None:
    X, y = load_iris(return_X_y=True)
    y = np.array(["setosa", "versicolor", "virginica"])[y]
    estimators = Classifier(epochs=50, optimizer="adam", random_state=0), scaled(MLPClassifier)
    ours, theirs = (cross_val_score(estimator, X, y, cv=3).mean() for estimator in estimators)
    assert ours > theirs - 0.04 > 0.8


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_targets_far_from_zero_are_scaled_by_scikit_learn() -> None:
    X, y = load_diabetes(return_X_y=True)  # 25 to 346
    estimators = Regressor(epochs=50, optimizer="adam", random_state=0), scaled(MLPRegressor)
    ours, theirs = (
        cross_val_score(TransformedTargetRegressor(estimator, transformer=StandardScaler()), X, y, cv=3).mean()
        for estimator in estimators
    )
    assert ours > theirs - 0.04 > 0.4  # the share of the variance


def test_predictions_are_the_networks_and_the_classes_its_labels(rng: np.random.Generator) -> None:
    X, y = rng.standard_normal((30, 4)), np.array(["b", "a", "c"] * 10)
    estimator = Classifier(random_state=0, epochs=2).fit(X, y)
    scores = run(estimator.model_, X.astype(np.float32))[0]
    np.testing.assert_allclose(estimator.predict_proba(X), scores, rtol=1e-6)
    np.testing.assert_array_equal(estimator.predict(X), np.array(["a", "b", "c"])[scores.argmax(1)])
    assert labels(estimator.model_, "output") == ["a", "b", "c"]
    assert [record["epoch"] for record in estimator.history_] == [1, 2]


@pytest.mark.parametrize("ending", ["logits", "logarithms"])
def test_a_head_without_softmax_gives_probabilities_too(ending: str, rng: np.random.Generator) -> None:
    model = lenet(torch_lenet())
    strip_activation(model.graph, model.graph.outputs[0])
    X, y = rng.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 10
    expected = torch.softmax(torch.from_numpy(surgery.predict(model, X)), 1).numpy()
    if ending == "logarithms":
        logits = model.graph.outputs[0]
        node = ir.node("LogSoftmax", [logits], {"axis": 1})
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "log", logits.type, logits.shape
        model.graph.append(node)
        model.graph.outputs[:] = node.outputs
    estimator = Classifier(model, epochs=1, learning_rate=1e-30, random_state=0).fit(X, y)
    np.testing.assert_allclose(estimator.predict_proba(X), expected, rtol=1e-5)


def test_the_same_state_gives_the_same_weights(rng: np.random.Generator) -> None:
    X, y = rng.standard_normal((30, 4)), np.arange(30) % 2
    first, again, other = (
        Classifier(random_state=state, epochs=1, dropout_rate=0.5).fit(X, y).predict_proba(X) for state in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_grid_of_dropout_and_learning_rates_in_a_pipeline() -> None:
    X, y = load_iris(return_X_y=True)
    grid = {
        "finetuneclassifier__dropout_rate": np.logspace(-2, -0.2, 2),
        "finetuneclassifier__learning_rate": np.logspace(-4, -1, 2),
    }
    pipeline = make_pipeline(StandardScaler(), Classifier(epochs=3, random_state=0))
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=1).fit(X, y)
    assert search.best_params_["finetuneclassifier__learning_rate"] == 0.1
    assert len({*search.cv_results_["mean_test_score"]}) > 1
    dropouts = [n for n in search.best_estimator_[-1].model_.graph if n.op_type == "Dropout"]
    rate = dropouts[0].inputs[1].const_value.numpy()  # type: ignore[union-attr]
    assert rate == pytest.approx(search.best_params_["finetuneclassifier__dropout_rate"])


def test_copies_and_pickles_carry_network_and_result(rng: np.random.Generator) -> None:
    op, x = graph_with_input("N", 3)
    for _ in range(600):  # too deep for pickle to follow
        x = op.Identity(x)
    model = model_of(op.graph, {"y": x})
    X, y = rng.standard_normal((12, 3)), np.arange(12) % 2
    passes = [{"add_hidden": {"units": 4}}]
    estimator = Classifier(lenet(torch_lenet()), epochs=1, random_state=0, passes=passes)
    assert clone(estimator).get_params()["passes"] == passes
    assert pickle.loads(pickle.dumps(Classifier(model))).model.graph.num_nodes() == 600
    fitted = Classifier(epochs=1, random_state=0).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert again.history_ == fitted.history_
    assert again.set_params(epochs=7).get_params()["epochs"] == 7


def test_a_pretrained_network_gets_a_head_for_the_classes(tmp_path: Path) -> None:
    arrays = digits(60)
    model = lenet(torch_lenet())
    surgery.save(model, tmp_path / "lenet.onnx")
    X, y = arrays["x_train"], np.array([f"digit {d}" for d in arrays["y_train"] % 5])
    how: dict[str, Any] = {"epochs": 1, "random_state": 0, "passes": [{"freeze": {"first": 2}}], "max_norm": 3}
    results = [Classifier(source, **how).fit(X, y) for source in (model, tmp_path / "lenet.onnx")]
    for estimator in results:
        assert estimator.predict_proba(X).shape == (60, 5)
        assert labels(estimator.model_, estimator.model_.graph.outputs[0].name) == [f"digit {d}" for d in range(5)]
        view = [layer for layer in layers(estimator.model_) if layer.parameters]
        assert [layer.trainable for layer in view] == [False, False, True, True]
        assert all(marks(layer.parameters["weight"]).constraint is not None for layer in view)
    np.testing.assert_allclose(*(estimator.predict_proba(X) for estimator in results), rtol=1e-6)
    assert model.graph.outputs[0].shape[1] == 10  # the given one is as it was


@pytest.mark.parametrize("named", ["no names", "these names", "other names"])
def test_a_head_that_fits_is_kept(named: str, rng: np.random.Generator) -> None:
    from surgery.marks import set_labels

    model = lenet(torch_lenet())
    output = str(model.graph.outputs[0].name)
    if named != "no names":
        set_labels(model, output, [str(d) if named == "these names" else f"class {d}" for d in range(10)])
    X, y = rng.integers(0, 256, (20, 28, 28), np.uint8), np.arange(20) % 10
    # so small a learning rate changes nothing
    estimator = Classifier(model, epochs=1, learning_rate=1e-30, random_state=0).fit(X, y)
    same = np.allclose(estimator.predict_proba(X), surgery.predict(model, X), rtol=1e-4)
    assert same == (named != "other names")


def test_a_head_of_the_users_own(rng: np.random.Generator) -> None:
    X, y = rng.integers(0, 256, (12, 28, 28), np.uint8), np.arange(12) % 3
    passes = [Freeze(layers={"first": 2}), ReplaceHead(units=3, initializer="zeros")]
    estimator = Classifier(lenet(torch_lenet()), passes=passes, epochs=1, learning_rate=1e-30).fit(X, y)
    np.testing.assert_allclose(estimator.predict_proba(X), 1 / 3, rtol=1e-5)


def test_regression_on_a_classifiers_body_and_of_several_targets(rng: np.random.Generator) -> None:
    arrays = digits(200)
    X, y = arrays["x_train"], arrays["y_train"]
    one = Regressor(lenet(torch_lenet()), epochs=15, optimizer="adam", random_state=0).fit(X, y)
    assert one.predict(X).shape == (200,)
    assert one.score(X, y) > 0.8
    two = Regressor(lenet(torch_lenet()), epochs=1, random_state=0).fit(X, np.stack([y, -y], 1))
    assert two.predict(X).shape == (200, 2)
    assert two.model_.graph.outputs[0].shape[1] == 2


def test_training_settings_and_callbacks_are_passed_on(rng: np.random.Generator) -> None:
    class Count(Callback):
        epochs = 0

        def on_epoch_end(self, record: Any) -> None:
            Count.epochs += 1

    X, y = rng.standard_normal((40, 4)), np.arange(40) % 2
    estimator = Classifier(
        epochs=np.int64(30), validation=0.25, early_stopping=2, callbacks=[Count()], settings={"keep": "last"},
        learning_rate=1.0, random_state=0,
    )  # fmt: skip
    history = estimator.fit(X, y).history_
    assert "val_loss" in history[0]
    assert len(history) == Count.epochs < 30
    assert estimator.verdict_.kind in ("overfits", "diverges", "flat", "converges")


def test_faults_are_told(rng: np.random.Generator) -> None:
    X, y = rng.standard_normal((10, 4)), np.arange(10) % 2
    with pytest.raises(ValueError, match="one class only"):
        Classifier().fit(X, y * 0)
    with pytest.raises(SurgeryError, match="epochs is an argument of its own"):
        Classifier(settings={"epochs": 3}).fit(X, y)
    with pytest.raises(SurgeryError, match="dropout"):
        Classifier(dropout_rate=1.5).fit(X, y)
    with pytest.raises(SurgeryError, match=r"train\.epochs"):
        Classifier(epochs=0).fit(X, y)
    with pytest.raises(SurgeryError, match="freze: unknown pass"):
        Classifier(passes=[{"freze": "all"}]).fit(X, y)
    with pytest.warns(ConvergenceWarning, match="lower the learning rate"):
        Classifier(learning_rate=1e30).fit(X, y)


def test_ctrl_c_ends_a_search_too(rng: np.random.Generator) -> None:
    class Impatient(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Classifier(callbacks=[Impatient()]).fit(rng.standard_normal((10, 4)), np.arange(10) % 2)


def test_without_scikit_learn_the_rest_works_and_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("raise ImportError('No module named sklearn')")
    code = (
        "import surgery; surgery.train; print('fine')\n"
        "try: surgery.FineTuneClassifier\n"
        "except surgery.SurgeryError as error: print(error)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=60)
    assert done.stdout.startswith("fine\nestimators need scikit-learn")
    assert "onnx-surgery[train]" in done.stdout, done.stderr


def test_models_given_as_objects_stay_what_they_are() -> None:
    model = lenet(torch_lenet())
    assert isinstance(Classifier(model).get_params()["model"], ir.Model)
    assert Classifier(model).model is model


@pytest.mark.slow
def test_the_documented_search(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "GridSearchCV" in block]
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    assert float(done.stdout.splitlines()[-1].rstrip("%")) > 97, done.stderr
    assert (tmp_path / "out" / "digits.onnx").is_file()


def test_features_in_bytes_are_features_like_others() -> None:
    data = digits(60)
    x, y = data["x_train"].reshape(-1, 784)[:, ::4], data["y_train"]
    assert x.dtype == np.uint8
    as_bytes, as_floats = (Classifier(epochs=3, random_state=0).fit(some, y) for some in (x, x.astype(np.float32)))
    np.testing.assert_allclose(as_bytes.predict_proba(x), as_floats.predict_proba(x), atol=1e-6)
    np.testing.assert_allclose(as_bytes.predict_proba(x.astype(float)), as_floats.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("units", [9, 11])
def test_a_head_with_other_units_than_there_are_classes_is_refused(units: int) -> None:
    data = digits(20)
    classifier = Classifier(lenet(torch_lenet()), passes=[{"replace_head": units}], epochs=1)
    with pytest.raises(SurgeryError, match=f"has {units} units for 10 classes"):
        classifier.fit(data["x_train"], data["y_train"])
