"""Metrics of a model's predictions: for classes, for several labels at once, for numbers; scikit-learn's numbers."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from surgery.errors import SurgeryError, nearest
from surgery.training.losses import BinaryCrossEntropy, CrossEntropy

__all__ = ["METRICS", "Kind", "Predictions", "check_metrics", "compute", "kind_of", "predicted", "rehearse"]

Kind = Literal["classes", "labels", "numbers"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of examples, and what is true; of one output.

    Attributes:
        kind: ``classes``, one of several; ``labels``, any of several at once; ``numbers``.
        y_true: `[N]` class numbers, `[N, L]` of 0 and 1, or `[N, …]` numbers. Of maps of classes, each pixel counts as
            an example.
        y_pred: What is predicted, in the same form: the most probable class, the labels above one half.
        scores: `[N, classes]` or `[N, L]` probabilities; None of numbers.
        indices: `[N]`: the example's place in the data.
        names: The classes' or labels' names, where they are known.
    """

    kind: Kind
    y_true: np.ndarray
    y_pred: np.ndarray
    scores: np.ndarray | None
    indices: np.ndarray
    names: tuple[str, ...] | None = None


def kind_of(loss: Any, units: Sequence[int | None]) -> Kind:
    """Returns what an output predicts that is trained with `loss`; `units` are the dimensions of one prediction."""
    if isinstance(loss, CrossEntropy):
        return "classes"
    if isinstance(loss, BinaryCrossEntropy):
        return "labels" if any(unit != 1 for unit in units) else "classes"
    return "numbers"


def predicted(
    loss: Any, raw: np.ndarray, targets: np.ndarray, names: Sequence[str] | None = None, first: int = 0
) -> Predictions:
    """Returns the predictions of some examples.

    Args:
        loss: The output's loss, from `surgery.training.losses`.
        raw: What the loss takes, `[N, …]`: logits, where an activation goes with it.
        targets: What it compares them with.
        names: The classes' names.
        first: The first example's place in the data.
    """
    indices = np.arange(first, first + len(raw))
    kind = kind_of(loss, raw.shape[1:])
    raw = raw.astype(np.float64)
    if kind == "numbers":
        return Predictions(kind, targets.astype(np.float64).reshape(raw.shape), raw, None, indices)
    named = tuple(names) if names is not None else None
    if isinstance(loss, BinaryCrossEntropy):
        share = np.exp(-np.logaddexp(0, -raw)).reshape(len(raw), -1)
        true = (targets.reshape(share.shape) > 0.5).astype(np.int64)
        if kind == "labels":
            return Predictions(kind, true, (share > 0.5).astype(np.int64), share, indices, _for(named, share.shape[1]))
        scores = np.concatenate([1 - share, share], 1)
        return Predictions(kind, true[:, 0], (share[:, 0] > 0.5).astype(np.int64), scores, indices, _for(named, 2))
    classes = raw.shape[1]
    logits = np.moveaxis(raw, 1, -1)
    pixels = logits[0, ..., 0].size if len(raw) else 1
    scores = np.exp(logits - logits.max(-1, keepdims=True)).reshape(-1, classes)
    scores /= scores.sum(1, keepdims=True)
    true = targets.argmax(1) if loss.soft_labels else targets
    true, indices = true.reshape(-1), np.repeat(indices, pixels)
    if loss.ignore_index is not None:
        counted = true != loss.ignore_index
        true, scores, indices = true[counted], scores[counted], indices[counted]
    return Predictions(kind, true, scores.argmax(1), scores, indices, _for(named, classes))


def _for(names: tuple[str, ...] | None, count: int) -> tuple[str, ...] | None:
    return names if names is not None and len(names) == count else None


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise SurgeryError(
            f"metrics need scikit-learn ({error}); install it with: pip install 'onnx-surgery[train]'"
        ) from error
    return sklearn.metrics


def _prf(which: int, average: str | None) -> Callable[[Predictions], Any]:
    """Precision (0), recall (1) or F1 (2); 0 where nothing is predicted or true."""

    def measure(p: Predictions) -> Any:
        labels = list(range(_count(p))) if average is None else None
        found = _sklearn().precision_recall_fscore_support(
            p.y_true, p.y_pred, labels=labels, average=average, zero_division=0
        )
        return found[which]

    return measure


def _count(p: Predictions) -> int:
    assert p.scores is not None
    return int(p.scores.shape[1])


def _ranking(name: str, average: str | None) -> Callable[[Predictions], Any]:
    """AUC or average precision: each class against the rest; of two classes, of the second one.

    A class of which there are no examples, or of which all are, has none, and does not count.
    """

    def measure(p: Predictions) -> Any:
        assert p.scores is not None
        score = getattr(_sklearn(), name)
        one_hot = p.y_true if p.kind == "labels" else np.eye(_count(p), dtype=np.int64)[p.y_true]
        columns = [1] if p.kind == "classes" and _count(p) == 2 and average is not None else range(_count(p))
        there = [c for c in columns if 0 < one_hot[:, c].sum() < len(one_hot)]
        if not there:
            raise SurgeryError(
                f"{name.replace('_score', '').replace('roc_', '')} compares examples that are of a class with others; "
                "these are all alike"
            )
        each = {c: float(score(one_hot[:, c], p.scores[:, c])) for c in there}
        if average is None:
            return [each.get(c) for c in columns]
        weights = one_hot.sum(0)[there] if average == "weighted" else None
        return np.average(list(each.values()), weights=weights)

    return measure


def _accuracy(p: Predictions) -> Any:
    return (p.y_true == p.y_pred).mean()


def _numbers(name: str) -> Callable[[Predictions], Any]:
    def measure(p: Predictions) -> Any:
        return getattr(_sklearn(), name)(p.y_true.reshape(len(p.y_true), -1), p.y_pred.reshape(len(p.y_pred), -1))

    return measure


def _balanced(p: Predictions) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        return _sklearn().balanced_accuracy_score(p.y_true, p.y_pred)


_BOTH: tuple[Kind, ...] = ("classes", "labels")
# What each metric is of, and how it is computed; those with _per_class give a number for each class.
METRICS: dict[str, tuple[tuple[Kind, ...], Callable[[Predictions], Any]]] = {
    "accuracy": (_BOTH, _accuracy),
    "balanced_accuracy": (("classes",), _balanced),
    "exact_match": (("labels",), lambda p: (p.y_true == p.y_pred).all(1).mean()),
    **{
        name + ending: (_BOTH, _prf(which, average))
        for which, name in enumerate(("precision", "recall", "f1"))
        for ending, average in (("", "macro"), ("_weighted", "weighted"), ("_micro", "micro"), ("_per_class", None))
    },
    **{
        name + ending: (_BOTH, _ranking(score, average))
        for name, score in (("auc", "roc_auc_score"), ("average_precision", "average_precision_score"))
        for ending, average in (("", "macro"), ("_weighted", "weighted"), ("_per_class", None))
    },
    "mean_absolute_error": (("numbers",), _numbers("mean_absolute_error")),
    "mean_squared_error": (("numbers",), _numbers("mean_squared_error")),
    "root_mean_squared_error": (("numbers",), lambda p: np.sqrt(_numbers("mean_squared_error")(p))),
    "r2": (("numbers",), _numbers("r2_score")),
}
_TOP = re.compile(r"top_([1-9]\d*)")


def _top(name: str) -> tuple[tuple[Kind, ...], Callable[[Predictions], Any]] | None:
    match = _TOP.fullmatch(name)
    if match is None:
        return None
    k = int(match[1])

    def measure(p: Predictions) -> Any:
        assert p.scores is not None
        if _count(p) == 2 or k >= _count(p):  # scikit-learn wants one score of two classes, and warns of all
            return _accuracy(p) if k < _count(p) else 1.0
        return _sklearn().top_k_accuracy_score(p.y_true, p.scores, k=k, labels=range(_count(p)))

    return ("classes",), measure


def check_metrics(names: Iterable[str], kinds: Iterable[Kind] | None = None) -> None:
    """Checks that there are such metrics, and each for an output of one of `kinds`.

    Raises:
        SurgeryError: There is none of that name, or none of these outputs has it.
    """
    for name in names:
        found = METRICS.get(name) or _top(name)
        if found is None:
            stems = [n for n in METRICS if not n.endswith(("_weighted", "_micro", "_per_class"))]
            raise SurgeryError(
                f"no metric is named {name!r}{nearest(name, METRICS)}; there are {', '.join(stems)}, top_<number>, and "
                "of some …_weighted, …_micro, …_per_class"
            )
        have = list(kinds) if kinds is not None else None
        if have is not None and not set(found[0]) & set(have):
            raise SurgeryError(f"the metric {name} is of {' or '.join(found[0])}, but the model predicts {have[0]}")


def rehearse(names: Sequence[str], loss: Any, units: Sequence[int | None], targets: np.ndarray) -> None:
    """Computes metrics as if an output of `units` predicted 0 of everything, to tell at once what cannot be measured.

    Raises:
        SurgeryError: There is no such metric, scikit-learn is missing, or the targets do not have it.
    """
    if names and None not in units and len(units) < 2:  # of maps of classes it would take long
        compute(names, predicted(loss, np.zeros((len(targets), *units), np.float32), targets))  # type: ignore[arg-type]


def compute(names: Iterable[str], of: Predictions) -> dict[str, float]:
    """Returns those of the metrics that are of `of.kind`, by name; one per class as ``f1[ants]``.

    Raises:
        SurgeryError: There is no such metric, scikit-learn is missing, or the examples do not have it.
    """
    measured: dict[str, float] = {}
    for name in names:
        check_metrics([name])
        kinds, function = METRICS.get(name) or _top(name)  # type: ignore[misc]
        if of.kind not in kinds:
            continue
        value = function(of)
        if not name.endswith("_per_class"):
            measured[name] = float(value)
            continue
        classes = of.names or tuple(map(str, range(_count(of))))
        stem = name.removesuffix("_per_class")
        measured |= {f"{stem}[{c}]": float(v) for c, v in zip(classes, value, strict=True) if v is not None}
    return measured
