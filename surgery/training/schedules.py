"""Learning-rate schedules: the factor on the first learning rate, by the time since the start in epochs."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

__all__ = ["Constant", "Cosine", "Exponential", "InverseTime", "MultiStep", "Polynomial", "Schedule", "Step"]

Share = Annotated[float, Field(gt=0, le=1)]


class _Schedule(BaseModel):
    """A schedule.

    Attributes:
        warmup: Epochs at the start, over which the factor rises linearly from zero (Goyal et al. 2017, section 2.2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    warmup: NonNegativeFloat = 0.0

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor on the learning rate at `epoch` (0 at the start, fractions within) of `epochs`."""
        if epoch < self.warmup:
            return max(epoch / self.warmup, 1e-3)
        return self.after_warmup(epoch - self.warmup, max(epochs - self.warmup, 1e-9))

    @abstractmethod
    def after_warmup(self, epoch: float, epochs: float) -> float:
        """The factor at `epoch` of `epochs`, both counted from the end of the warm-up."""


class Constant(_Schedule):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return 1.0


class Step(_Schedule):
    """gamma^⌊epoch / every⌋."""

    name: Literal["step"] = "step"
    every: PositiveFloat
    gamma: Share = 0.1

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return self.gamma ** math.floor(epoch / self.every)


class MultiStep(_Schedule):
    """gamma to the number of milestones (epochs) passed."""

    name: Literal["multi_step"] = "multi_step"
    milestones: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    gamma: Share = 0.1

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return self.gamma ** sum(epoch >= m for m in self.milestones)


class Exponential(_Schedule):
    """gamma^epoch, falling with every step."""

    name: Literal["exponential"] = "exponential"
    gamma: Share

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return float(self.gamma**epoch)


class InverseTime(_Schedule):
    """(1 + gamma·epoch)^−power, Caffe's ``inv``."""

    name: Literal["inverse_time"] = "inverse_time"
    gamma: PositiveFloat
    power: PositiveFloat = 1.0

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return float((1 + self.gamma * epoch) ** -self.power)


class Polynomial(_Schedule):
    """(1 − epoch/epochs)^power."""

    name: Literal["polynomial"] = "polynomial"
    power: PositiveFloat = 1.0

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return float(max(1 - epoch / epochs, 0.0) ** self.power)


class Cosine(_Schedule):
    """½·(1 + cos(π·epoch/epochs)) (Loshchilov and Hutter 2017), without restarts."""

    name: Literal["cosine"] = "cosine"

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


Schedule = Annotated[
    Constant | Step | MultiStep | Exponential | InverseTime | Polynomial | Cosine, Field(discriminator="name")
]
