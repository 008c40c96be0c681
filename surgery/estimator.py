"""Fine-tuning as scikit-learn's estimators."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.errors import SurgeryError
from surgery.io import load
from surgery.layers import find_output
from surgery.marks import labels, set_labels
from surgery.passes import ReplaceHead
from surgery.perceptron import perceptron
from surgery.recipe import Recipe, apply_recipe
from surgery.training.callbacks import Callback
from surgery.training.losses import activation_loss
from surgery.training.measure import predict
from surgery.training.settings import TrainSettings, changed
from surgery.training.trainer import train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise SurgeryError(
        f"estimators need scikit-learn 1.6 ({error}); install it with: pip install 'onnx-surgery[train]'"
    ) from error

__all__ = ["FineTuneClassifier", "FineTuneRegressor"]


class _FineTuner(BaseEstimator):
    """What both estimators share."""

    def __init__(
        self,
        model: ir.Model | str | os.PathLike[str] | None = None,
        *,
        passes: Sequence[Any] = (),
        dropout_rate: float | None = None,
        input_dropout_rate: float | None = None,
        max_norm: float | None = None,
        epochs: int = 10,
        batch_size: int = 32,
        optimizer: Any = "sgd",
        learning_rate: float | None = None,
        schedule: Any = "constant",
        weight_decay: float | None = None,
        validation: float = 0.0,
        early_stopping: Any = None,
        settings: dict[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        device: runtime.Device = "auto",
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.passes = passes
        self.dropout_rate = dropout_rate
        self.input_dropout_rate = input_dropout_rate
        self.max_norm = max_norm
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.validation = validation
        self.early_stopping = early_stopping
        self.settings = settings
        self.callbacks = callbacks
        self.device = device
        self.random_state = random_state

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # a deep graph is too deep for pickle
        return {key: _Packed(value) if isinstance(value, ir.Model) else value for key, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({k: v.model() if isinstance(v, _Packed) else v for k, v in state.items()})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.model is not None
        return tags

    def _settings(self, seed: int) -> TrainSettings:
        names = ("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "validation")
        own = {name: _plain(getattr(self, name)) for name in (*names, "early_stopping")} | {"seed": seed}
        others = dict(self.settings or {})
        if twice := own.keys() & others.keys():
            raise SurgeryError(f"settings: {min(twice)} is an argument of its own (seed is random_state)")
        return changed(TrainSettings(), own | others)

    def _fit(self, X: np.ndarray, y: np.ndarray, units: int, names: list[str] | None) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31))
        settings = self._settings(seed)
        network = self._operated(X, units, names, settings)
        result = train(network, (X, y), settings, device=self.device, callbacks=self.callbacks)
        if result.ending == "interrupted":
            raise KeyboardInterrupt
        if result.ending == "diverged":
            warnings.warn(result.message, ConvergenceWarning, stacklevel=3)
        self.model_, self.history_, self.verdict_ = result.model, result.history, result.verdict

    def _operated(self, X: np.ndarray, units: int, names: list[str] | None, settings: TrainSettings) -> ir.Model:
        """The network to train: with a head for the targets, passes, dropout and max-norm applied."""
        passes: list[Any] = Recipe(passes=list(self.passes)).passes
        activation: Literal["softmax", "linear"] = "softmax" if names else "linear"
        if self.model is None:
            network = perceptron(X, units, activation, settings.seed)
        else:
            network = self.model.clone() if isinstance(self.model, ir.Model) else load(self.model)
            headed = any(isinstance(p, ReplaceHead) for p in passes)
            if not headed and not _fits(network, settings.output, units, names):
                head = {"units": units, "labels": names, "output": settings.output, "seed": settings.seed}
                passes.insert(0, ReplaceHead(activation=activation, **head))
        rates = {"hidden": _plain(self.dropout_rate), "input": _plain(self.input_dropout_rate)}
        if rates := {key: rate for key, rate in rates.items() if rate is not None}:
            passes.append({"insert_dropout": rates})
        if self.max_norm is not None:
            passes.append({"max_norm": _plain(self.max_norm)})
        apply_recipe(Recipe(passes=passes), network)
        end = find_output(network, settings.output)
        have = end.shape[1] if end.shape is not None and len(end.shape) > 1 else None
        if names and isinstance(have, int) and have != units:
            raise SurgeryError(
                f"output {end.name!r} has {have} units for {units} classes; leave replace_head out or mend it"
            )
        if names and labels(network, str(end.name)) is None:
            set_labels(network, str(end.name), names)
        return network

    def _predicted(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return predict(self.model_, self._validated(X), output=self._output(), device=self.device)

    def _output(self) -> str | None:
        return (self.settings or {}).get("output")

    def _validated(self, X: Any, **how: Any) -> Any:
        """Checks X, and y where it is given, as scikit-learn does; a network's images may have any number of axes."""
        # Bytes are pixels to a network that is given (0 to 255 is 0 to 1), features like others to one that is made.
        dtype = "numeric" if self.model is not None else (np.float64, np.float32)
        return validate_data(self, X, allow_nd=self.model is not None, dtype=dtype, reset="y" in how, **how)


class FineTuneClassifier(ClassifierMixin, _FineTuner):
    """Fine-tunes a network as a classifier.

    A copy of the network gets a new head, unless its output has a unit for each class (with the classes' names, where
    it has names) or one of `passes` replaces the head; then `passes`, dropout and max-norm are applied, and it is
    trained.

    Args:
        model: The network, or its file; without one, a small one is made to the data's size: standardized features, a
            hidden layer of 100 units with ReLU.
        passes: What to do to it first, as in a recipe: ``[{"freeze": {"first": 2}}]``, or `surgery.passes` objects.
        dropout_rate: Of the units of each hidden layer; None leaves the network's dropout as it is.
        input_dropout_rate: Of the inputs; likewise.
        max_norm: Bound of the norm of each unit's incoming weights; likewise.
        epochs: How often all examples are seen.
        batch_size: Examples in a step.
        optimizer: A name, or a name with settings, as in a recipe.
        learning_rate: At the start; by default the optimizer's usual one.
        schedule: How the learning rate goes on, as in a recipe.
        weight_decay: How much to regularize; by default the optimizer's usual.
        validation: The share of the examples that is split off to watch; the weights of the best epoch are kept.
        early_stopping: For how many epochs the loss may fail to improve, or a mapping as in a recipe.
        settings: Other fields of `surgery.training.settings.TrainSettings`, by name.
        callbacks: What to tell how it goes.
        device: Where to run: auto, cpu or cuda.
        random_state: Of the first weights, the split, the order of the examples and dropout.

    Attributes:
        model_: The trained network, an `onnx_ir.Model`; `surgery.save` writes it.
        history_: A record for each epoch.
        verdict_: How the training went.
        classes_: The classes.
        n_features_in_: The length of the examples' first axis.
    """

    def fit(self, X: Any, y: Any) -> FineTuneClassifier:
        """Fine-tunes.

        Args:
            X: `[N, features]`, or as the network takes them; uint8 images `[N, H, W]` or `[N, H, W, C]`.
            y: `[N]` classes: numbers or text.

        Raises:
            ValueError: X or y are not what they should be.
            SurgeryError: A setting is wrong, or the data do not fit the network.
        """
        X, y = self._validated(X, y=y)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"there is one class only, {self.classes_[0]!r}; a classifier needs two")
        self._fit(X, numbers.astype(np.int64), len(self.classes_), [str(name) for name in self.classes_])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns each class's probability, `[N, classes]`."""
        found = self._predicted(X)
        while found.ndim > 2 and found.shape[-1] == 1:  # of a fully convolutional network
            found = found[..., 0]
        if activation_loss(find_output(self.model_, self._output())) is None or found.min() < 0:
            found = np.exp(found - found.max(1, keepdims=True))  # logits, or logarithms
            found /= found.sum(1, keepdims=True)
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each example, `[N]`."""
        scores = self.predict_proba(X)
        return self.classes_[scores.argmax(1)]


class FineTuneRegressor(RegressorMixin, _FineTuner):
    """Fine-tunes a network as a regressor.

    As `FineTuneClassifier`, but the head is linear, with a unit for each target; it is replaced unless the output has
    as many units and no softmax or sigmoid. The loss is the mean squared error, unless ``settings={"loss": …}`` says
    otherwise. Targets far from 0 ± 1 are best scaled: `sklearn.compose.TransformedTargetRegressor` does.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> FineTuneRegressor:
        """Fine-tunes.

        Args:
            X: As `FineTuneClassifier.fit` takes them.
            y: `[N]` or `[N, targets]` numbers.

        Raises:
            ValueError: X or y are not what they should be.
            SurgeryError: A setting is wrong, or the data do not fit the network.
        """
        X, y = self._validated(X, y=y, multi_output=True, y_numeric=True)
        self._single = y.ndim == 1
        y = y.reshape(len(y), -1).astype(np.float32)
        self._fit(X, y, y.shape[1], None)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the predictions, `[N]` or `[N, targets]` as `fit` had them."""
        found = self._predicted(X)
        found = found.reshape(len(found), -1).astype(np.float64)
        return found[:, 0] if self._single else found


class _Packed:
    """A model as the bytes of its file."""

    def __init__(self, model: ir.Model) -> None:
        self._bytes = ir.to_proto(model).SerializeToString()

    def model(self) -> ir.Model:
        import onnx

        return ir.from_proto(onnx.ModelProto.FromString(self._bytes))


def _plain(value: Any) -> Any:
    """A number of NumPy's, as `np.logspace` and the like give, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _fits(network: ir.Model, output: str | None, units: int, names: list[str] | None) -> bool:
    """Whether the head is one for these classes, or for as many numbers."""
    end = find_output(network, output)
    if end.shape is None or len(end.shape) < 2 or end.shape[1] != units:
        return False
    if names is None:
        return activation_loss(end) is None
    return labels(network, str(end.name)) in (None, names)
