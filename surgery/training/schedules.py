"""Learning-rate schedules: the factor on the learning rate that is set, by the time since the start in epochs."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "InverseTime",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "ScheduleName",
    "Sigmoid",
    "Step",
]

Share = Annotated[float, Field(gt=0, le=1)]
Least = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
_ROUNDING = 1e-9  # in epochs: a third of three epochs is one


class _Schedule(BaseModel):
    """A schedule.

    Attributes:
        warmup: Epochs at the start, over which the factor rises linearly (Goyal et al. 2017, section 2.2); the schedule
            begins behind them.
        warmup_start: The factor that the warm-up begins with.
        each: When the rate changes: with every ``step``, or at the start of each ``epoch`` only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    warmup: NonNegativeFloat = 0.0
    warmup_start: Share = 1e-3
    each: Literal["step", "epoch"] = "step"

    def at(self, step: int, steps: int, epochs: int) -> float:
        """The factor on the learning rate.

        Args:
            step: The number of the update, from 0.
            steps: Updates in an epoch.
            epochs: How many there are.
        """
        epoch, tick = self._time(step, steps)
        if epoch < self.warmup:
            return self.warmup_start + (1 - self.warmup_start) * epoch / self.warmup
        return self.after_warmup(epoch - self.warmup, max(epochs - self.warmup, tick), tick)

    def _time(self, step: int, steps: int) -> tuple[float, float]:
        """The epoch, fractions within, and the time from one change to the next."""
        return (float(step // steps), 1.0) if self.each == "epoch" else (step / steps, 1 / steps)

    @abstractmethod
    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        """The factor at `epoch` of `epochs`, both counted from the end of the warm-up, which changes every `tick`."""

    def momentum_at(self, step: int, steps: int, epochs: int) -> float | None:
        """The momentum, None where that is the optimizer's own."""
        return None


class Constant(_Schedule):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return 1.0


class Step(_Schedule):
    """gamma^⌊epoch / every⌋."""

    name: Literal["step"] = "step"
    every: PositiveFloat
    gamma: Share = 0.1

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return self.gamma ** math.floor(epoch / self.every + _ROUNDING)


class MultiStep(_Schedule):
    """gamma to the number of milestones (epochs) passed."""

    name: Literal["multi_step"] = "multi_step"
    milestones: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    gamma: Share = 0.1

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return self.gamma ** sum(epoch + _ROUNDING >= m for m in self.milestones)


class Exponential(_Schedule):
    """gamma^epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: Share

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return float(self.gamma**epoch)


class InverseTime(_Schedule):
    """(1 + gamma·epoch)^−power, Caffe's ``inv``."""

    name: Literal["inverse_time"] = "inverse_time"
    gamma: PositiveFloat
    power: PositiveFloat = 1.0

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return float((1 + self.gamma * epoch) ** -self.power)


class Sigmoid(_Schedule):
    """1 / (1 + e^(−gamma·(epoch − middle))), Caffe's; it falls where gamma is negative."""

    name: Literal["sigmoid"] = "sigmoid"
    middle: NonNegativeFloat
    gamma: float

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return 0.5 * (1 + math.tanh(self.gamma * (epoch - self.middle) / 2))  # which does not overflow


class Polynomial(_Schedule):
    """(1 − epoch/epochs)^power, down to `minimum`."""

    name: Literal["polynomial"] = "polynomial"
    power: PositiveFloat = 1.0
    minimum: Least = 0.0

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return self.minimum + (1 - self.minimum) * float(max(1 - epoch / epochs, 0.0) ** self.power)


class Cosine(_Schedule):
    """½·(1 + cos(π·epoch/epochs)), down to `minimum` (Loshchilov and Hutter 2017).

    Attributes:
        minimum: The least factor.
        restart_every: Begin anew after so many epochs (PyTorch's ``T_0``).
        t_mult: How many times as long as the last one each run lasts.
    """

    name: Literal["cosine"] = "cosine"
    minimum: Least = 0.0
    restart_every: PositiveFloat | None = None
    t_mult: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _t_mult_needs_restarts(self) -> Cosine:
        if self.t_mult != 1 and self.restart_every is None:
            raise ValueError("t_mult needs restart_every")
        return self

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        if self.restart_every is not None:
            epochs = self.restart_every
            if self.t_mult == 1:
                epoch = max((epoch + _ROUNDING) % epochs - _ROUNDING, 0.0)
            while epoch + _ROUNDING >= epochs:
                epoch, epochs = max(epoch - epochs, 0.0), epochs * self.t_mult
        return self.minimum + (1 - self.minimum) * _cosine(min(epoch / epochs, 1.0))


class OneCycle(_Schedule):
    """Up to the learning rate that is set and down again (Smith and Topin 2018); PyTorch's ``OneCycleLR``.

    Attributes:
        pct_start: The share of the training in which the rate rises.
        anneal: Along a cosine or a line.
        div_factor: What the rate is divided by at first.
        final_div_factor: What that is divided by at last.
        cycle_momentum: Let the momentum (Adam's beta1) fall and rise meanwhile; by default where the optimizer has one.
        base_momentum: When the rate is at its highest.
        max_momentum: At first and at last.
    """

    name: Literal["one_cycle"] = "one_cycle"
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: Annotated[float, Field(ge=1)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4
    cycle_momentum: bool | None = None
    base_momentum: Momentum = 0.85
    max_momentum: Momentum = 0.95

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        first = 1 / self.div_factor
        return self._between(epoch, epochs, tick, (first, 1.0, first / self.final_div_factor))

    def momentum_at(self, step: int, steps: int, epochs: int) -> float | None:
        epoch, tick = self._time(step, steps)
        since, whole = max(epoch - self.warmup, 0.0), max(epochs - self.warmup, tick)
        return self._between(since, whole, tick, (self.max_momentum, self.base_momentum, self.max_momentum))

    def _between(self, epoch: float, epochs: float, tick: float, values: tuple[float, float, float]) -> float:
        """Where it is on its way through `values`."""
        begin, top, end = 0.0, self.pct_start * epochs - tick, epochs - tick
        start, stop = values[:2]
        if epoch > top + _ROUNDING:
            (begin, top), (start, stop) = (top, end), values[1:]
        share = min(max((epoch - begin) / (top - begin), 0.0), 1.0) if top > begin else 1.0
        if self.anneal == "cos":
            share = 1 - _cosine(share)
        return start + (stop - start) * share


class ReduceOnPlateau(_Schedule):
    """Lower the rate when a figure has stopped improving; PyTorch's and Keras' ``ReduceLROnPlateau``.

    Attributes:
        monitor: The figure of an epoch's record; by default the validation loss, or the loss without validation data.
        mode: Whether it is better when smaller (``min``) or larger (``max``); ``auto`` goes by the figure's name:
            losses and errors are better when smaller, accuracies and other scores when larger.
        factor: Multiplies the rate.
        patience: For how many epochs it may fail to improve.
        threshold: What counts as better.
        threshold_mode: As a share of the best so far, or by itself.
        cooldown: Epochs after a reduction that do not count.
        minimum: The least factor in all.
    """

    name: Literal["reduce_on_plateau"] = "reduce_on_plateau"
    monitor: str | None = None
    mode: Literal["auto", "min", "max"] = "auto"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: NonNegativeInt = 10
    threshold: NonNegativeFloat = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: NonNegativeInt = 0
    minimum: Least = 0.0

    def after_warmup(self, epoch: float, epochs: float, tick: float) -> float:
        return 1.0


def _cosine(share: float) -> float:
    """From 1 to 0 along half a wave."""
    return 0.5 * (1 + math.cos(math.pi * share))


ScheduleName = Literal["constant", "polynomial", "cosine", "one_cycle", "reduce_on_plateau"]  # that need no settings
Schedule = Annotated[
    Constant
    | Step
    | MultiStep
    | Exponential
    | InverseTime
    | Sigmoid
    | Polynomial
    | Cosine
    | OneCycle
    | ReduceOnPlateau,
    Field(discriminator="name"),
]
