"""Measuring a model: its loss and metric on data, its predictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Arrays, Dataset, Source, as_part, from_arrays
from surgery.layers import find_output
from surgery.marks import labels
from surgery.training.losses import Objective
from surgery.training.metrics import Predictions, check_metrics, compute, kind_of, predicted
from surgery.training.runner import Evaluation
from surgery.training.step import evaluation_step
from surgery.training.targets import count, fit, objective_of

__all__ = ["Scores", "evaluate", "examine", "measure", "predict"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `evaluate` returns.

    Attributes:
        measures: The loss and the metric, means over the examples, by name; of several outputs, each one's.
        examples: How many there were.
    """

    measures: dict[str, float]
    examples: int

    @property
    def loss(self) -> float:
        """The loss that training minimizes."""
        return self.measures["loss"]

    @property
    def metric(self) -> str:
        """The name of the first metric, as ``accuracy``."""
        return next(name for name in self.measures if not name.endswith("loss"))

    @property
    def value(self) -> float:
        """The first metric."""
        return self.measures[self.metric]


def measure(evaluation: Evaluation, data: Dataset, batch_size: int, metrics: Sequence[str] = ()) -> Scores:
    """Measures the model of `evaluation` on `data`; for `metrics`, its step is built with `predictions`."""
    return _examine(evaluation, data, batch_size, metrics, {})[0]


def _examine(
    evaluation: Evaluation,
    data: Dataset,
    batch_size: int,
    metrics: Sequence[str],
    names: Mapping[str, Sequence[str] | None],
    keep: bool = False,
) -> tuple[Scores, dict[str, Predictions]]:
    """Measures, and with `metrics` or `keep` collects the predictions of each output; `names` are its classes'."""
    step = evaluation.step_graph
    total = np.zeros(len(step.measures))
    found: dict[str, list[np.ndarray]] = {term.output: [] for term in step.terms}
    for examples, targets in data.batches(batch_size):
        measures, raw = evaluation.run_all(examples, targets)
        total += np.array(measures) * count(targets)
        for term, array in zip(step.terms, raw, strict=False) if metrics or keep else ():
            found[term.output].append(array)
    if not math.isfinite(total[0]):
        data.check_finite()
    values = dict(zip(step.measures, (total / len(data)).tolist(), strict=True))
    predictions = {}
    for term in step.terms if metrics or keep else ():
        targets = data.targets[term.output] if isinstance(data.targets, dict) else data.targets
        known = names.get(term.output) or data.labels
        predictions[term.output] = predicted(term.loss, np.concatenate(found[term.output]), targets, known)
        prefix = "" if len(step.terms) == 1 else f"{term.output}_"
        values |= {f"{prefix}{n}": v for n, v in compute(metrics, predictions[term.output]).items()}
    return Scores(values, len(data)), predictions


def evaluate(
    model: ir.Model,
    data: Source,
    *,
    loss: Objective = "auto",
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
    split: str | None = None,
    metrics: Sequence[str] = (),
) -> Scores:
    """Measures `model` on `data`, as it infers; of a path, on the part that `split` says, as `open_part` takes it.

    `metrics` are names of `surgery.training.metrics`, measured beside the loss and its own metric.

    Raises:
        SurgeryError: The data do not fit the model, or have no such part, or are not finite numbers; there is no such
            metric.
    """
    args = {"loss": loss, "output": output, "batch_size": batch_size, "device": device, "metrics": metrics}
    return _examine_model(model, as_part(data, model, split), keep=False, **args)[0]


def examine(
    model: ir.Model,
    data: Source,
    *,
    loss: Objective = "auto",
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
    split: str | None = None,
    metrics: Sequence[str] = (),
) -> tuple[Scores, dict[str, Predictions]]:
    """Measures as `evaluate` does; returns the scores and, by output, what is predicted of each example."""
    args = {"loss": loss, "output": output, "batch_size": batch_size, "device": device, "metrics": metrics}
    return _examine_model(model, as_part(data, model, split), keep=True, **args)


def _examine_model(
    model: ir.Model,
    data: Dataset,
    keep: bool,
    loss: Objective,
    output: str | None,
    batch_size: int,
    device: runtime.Device,
    metrics: Sequence[str],
) -> tuple[Scores, dict[str, Predictions]]:
    check_metrics(metrics)
    objective = objective_of(model, loss, output, data.targets)
    step = evaluation_step(model, loss=objective, output=output, predictions=bool(metrics) or keep)
    check_metrics(metrics, [kind_of(term.loss, term.units) for term in step.terms])
    names = {term.output: labels(model, term.output) for term in step.terms}
    evaluation = Evaluation(step, runtime.providers(device))
    return _examine(evaluation, fit(data, step), batch_size, metrics, names, keep)


def predict(
    model: ir.Model,
    examples: Arrays,
    *,
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
) -> np.ndarray:
    """Returns an output of `model`, by default the first, for each of `examples`, as `from_arrays` takes them."""
    end = model.graph.outputs[0] if output is None else find_output(model, output)
    data = from_arrays(examples, np.zeros(count(examples), np.int64), model)
    session = runtime.session(model, runtime.providers(device))
    outputs, batch = [str(end.name)], str(model.graph.inputs[0].name)
    feeds = (x if isinstance(x, dict) else {batch: x} for x, _ in data.batches(batch_size))
    return np.concatenate([session.run(outputs, feed)[0] for feed in feeds])
