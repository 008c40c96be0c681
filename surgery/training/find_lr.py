"""The learning-rate range test (Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.3)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Arrays, Dataset, Source, as_dataset
from surgery.errors import SurgeryError
from surgery.training.batchnorm import reestimated
from surgery.training.checkpoint import State
from surgery.training.settings import TrainSettings, changed
from surgery.training.stages import Stages
from surgery.training.targets import count, objective_of, soft

__all__ = ["RateCurve", "find_learning_rate"]

_BELOW, _ABOVE = 1e-4, 1e3  # the range, times the optimizer's usual rate
_DIVERGED = 4.0  # times the best loss so far
_SMOOTHING = 0.03  # the width of the smoothing, as a share of the steps
_LEAST = 10  # steps that are needed to see anything


@dataclasses.dataclass(frozen=True)
class RateCurve:
    """What `find_learning_rate` found.

    Attributes:
        rates: The learning rate of each step, growing by the same factor from step to step.
        losses: The loss of each step, before its update.
        smoothed: The same without noise, and without the delay of a moving average.
        suggestion: A tenth of the rate with the lowest smoothed loss: safely below where the loss grows again. None
            where the loss never falls.
        steepest: The rate at which the smoothed loss falls fastest, the other rule in use. A pretrained network begins
            with a low loss, whose fall from batch to batch is less than its noise: it is not what is suggested.
        ending: ``diverged``, as it should; ``finished`` where the range ended before.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    steepest: float | None
    ending: Literal["finished", "diverged"]


def find_learning_rate(
    model: ir.Model,
    data: Source,
    settings: TrainSettings | None = None,
    *,
    lowest: float | None = None,
    highest: float | None = None,
    steps: int = 100,
    device: runtime.Device = "auto",
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> RateCurve:
    """Trains for some steps, each with a larger learning rate, until the loss grows; `model` is left as it is.

    Args:
        model: A model with marks.
        data: What to train on, as `surgery.train` takes it.
        settings: How to train; learning rate, schedule and epochs do not matter.
        lowest: The first learning rate; by default a ten-thousandth of the optimizer's usual one.
        highest: The last; by default a thousand times that.
        steps: How many updates; data that are too few for them are used again.
        device: Where to run; ``auto`` takes CUDA where it starts.
        progress: Called with the steps done and in all.
        **changes: Fields of `TrainSettings` that differ from `settings`.

    Raises:
        SurgeryError: The range is empty, the data do not fit the model, or nothing is trainable.
    """
    settings = changed(settings or TrainSettings(), changes)
    usual = settings.optimizer.default_rate
    lowest = usual * _BELOW if lowest is None else lowest
    highest = usual * _ABOVE if highest is None else highest
    if not 0 < lowest < highest < math.inf:
        raise SurgeryError(
            f"the rates from {lowest:g} to {highest:g} are no range; the first must be above 0 and the smaller one"
        )
    if steps < _LEAST:
        raise SurgeryError(f"{steps} steps are too few to see anything; take {_LEAST} or more")
    training, batches, momentum = _prepare(model, data, settings, runtime.providers(device))

    def group(rate: float) -> float:
        """Makes one update; returns the loss before it."""
        total, seen = 0.0, 0
        for part in range(1, settings.accumulate + 1):
            examples, targets = next(batches)
            measured = training.run(examples, targets, rate, momentum=momentum, update=part == settings.accumulate)
            total, seen = total + measured[0] * count(targets), seen + count(targets)
        return total / seen

    group(0.0)  # brings the weights within their constraints, which may change the loss at once
    rates = np.geomspace(lowest, highest, steps).tolist()
    losses: list[float] = []
    best = trend = math.inf
    for done, rate in enumerate(rates, 1):
        loss = group(rate)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        trend = loss if done == 1 else 0.7 * trend + 0.3 * loss
        best = min(best, trend)
        if progress is not None:
            progress(done, steps)
        if done > _LEAST and trend > _DIVERGED * best:
            break
    if not losses:
        raise SurgeryError("the first loss is no number: look at the data, or begin with a smaller rate (lowest)")
    ending: Literal["finished", "diverged"] = "finished" if done == steps and len(losses) == steps else "diverged"
    return _curve(rates[: len(losses)], losses, ending)


def _prepare(
    model: ir.Model, data: Source, settings: TrainSettings, providers: list[str]
) -> tuple[Any, Iterator[tuple[Arrays, Arrays]], float | None]:
    """What runs the steps, endless batches, and the momentum where that is an input."""
    examples, held = as_dataset(data, model)
    if held is None and settings.validation:
        examples, _ = examples.split(settings.validation, settings.seed)
    examples = examples.augmented(settings.augment, settings.sampling)
    objective = objective_of(model, settings.objective, settings.output, examples.targets)
    if examples.augment is not None and examples.augment.mixes:
        examples = soft(examples, model, objective, settings.output)
        objective = objective_of(model, objective, settings.output, examples.targets)
    if settings.reestimate_batchnorm:
        model = reestimated(model, examples, providers)
    stage = Stages(model, settings, objective, providers, examples, None)(0, State())
    return stage.training, _endless(stage.data, settings), settings.momentum(0, 1)


def _endless(data: Dataset, settings: TrainSettings) -> Iterator[tuple[Arrays, Arrays]]:
    for epoch in itertools.count(1):
        yield from data.batches(settings.batch_size, seed=settings.seed, epoch=epoch)


def _curve(rates: list[float], losses: list[float], ending: Literal["finished", "diverged"]) -> RateCurve:
    smoothed = _smooth(np.array(losses))
    lowest = int(smoothed.argmin())
    suggestion = steepest = None
    if smoothed[lowest] < smoothed[0]:
        slope = np.gradient(smoothed)  # the steps are even in the rate's logarithm
        suggestion, steepest = rates[lowest] / 10, rates[int(slope[: lowest + 1].argmin())]
    return RateCurve(rates, losses, smoothed.tolist(), suggestion, steepest, ending)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """By a Gaussian on both sides, so that nothing moves; at the ends by what is there."""
    width = max(_SMOOTHING * len(losses), 1.0)
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    return (weights @ losses) / weights.sum(1)
