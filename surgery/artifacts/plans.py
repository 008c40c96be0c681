"""What a device trains with, and how its two optimizers come to do what marks say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError, nearest
from surgery.marks import Marks, marks

__all__ = ["OPTIMIZERS", "AdamW", "Plan", "Sgd", "check_decay", "choose", "plan_of"]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as in PyTorch.

    Attributes:
        weight_decay: Times the learning rate, the share of each weight that every step takes away.
        beta1: Of the mean of the gradients.
        beta2: Of the mean of their squares.
        epsilon: Added to the square root.
    """

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_range("weight_decay", self.weight_decay)
        _check_range("beta1", self.beta1, below=1.0)
        _check_range("beta2", self.beta2, below=1.0)
        if not 0 < self.epsilon < math.inf:
            raise SurgeryError(f"epsilon is a number above 0; it is {self.epsilon!r}")


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent; the API has no momentum.

    Attributes:
        weight_decay: L2 regularization, the gradient of ½·weight_decay·‖w‖².
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_range("weight_decay", self.weight_decay)


def _check_range(name: str, value: float, below: float = math.inf) -> None:
    if not 0 <= value < below:
        raise SurgeryError(f"{name} is a number from 0{'' if below == math.inf else ' to below 1'}; it is {value!r}")


OPTIMIZERS: dict[str, type[AdamW] | type[Sgd]] = {"adamw": AdamW, "sgd": Sgd}


def choose(optimizer: str | AdamW | Sgd) -> AdamW | Sgd:
    """Returns the optimizer of a name, or the one given."""
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise SurgeryError(
            f"onnxruntime's on-device training has no optimizer {optimizer!r}{nearest(optimizer, OPTIMIZERS)}; it has "
            f"{' and '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[optimizer]()


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a parameter is kept and trained on the device.

    Attributes:
        name: Its name in the model.
        marks: Its marks.
        divisor: It is kept divided by this. AdamW's steps do not grow with the gradient: a parameter that is to learn
            twice as fast is kept as its half and used as that times two.
        gradient_factor: What SGD's gradient is multiplied by.
        decay: What is added to SGD's gradient for each unit of weight.
    """

    name: str
    marks: Marks
    divisor: float = 1.0
    gradient_factor: float = 1.0
    decay: float = 0.0

    @property
    def stored(self) -> str:
        """Its name in the checkpoint."""
        return self.name if self.divisor == 1 else f"{self.name}/{self.divisor:g}"

    def divided(self, array: np.ndarray) -> np.ndarray:
        """What the checkpoint holds."""
        return array if self.divisor == 1 else array / np.float32(self.divisor)

    def notes(self) -> list[str]:
        """What a user of the checkpoint must know."""
        found = []
        if self.divisor != 1:
            found.append(
                f"{self.name} is kept divided by its learning rate's multiplier, {self.divisor:g}, as {self.stored}"
            )
        if self.marks.constraint is not None:
            found.append(
                f"{self.name} is brought within {self.marks.constraint} where it is used, not yet when the optimizer "
                "has stepped"
            )
        return found


def plan_of(parameter: ir.Value, optimizer: AdamW | Sgd) -> Plan:
    """How `optimizer` does what the marks of `parameter` say."""
    name, mark = str(parameter.name), marks(parameter)
    if parameter.dtype != ir.DataType.FLOAT:
        raise SurgeryError(
            f"parameter {name!r} is of type {parameter.dtype}: onnxruntime's on-device optimizers take float32 only; "
            "freeze it or convert the model"
        )
    if isinstance(optimizer, Sgd):
        return Plan(name, mark, 1.0, mark.learning_rate, optimizer.weight_decay * mark.decay)
    return Plan(name, mark, mark.learning_rate)


def check_decay(plans: dict[str, Plan], optimizer: AdamW | Sgd) -> None:
    """AdamW takes the same share of every kept weight: multipliers must not ask for another."""
    if isinstance(optimizer, Sgd) or not optimizer.weight_decay:
        return
    wrong = [
        f"{p.name} (learning rate ×{p.marks.learning_rate:g}, decay ×{p.marks.decay:g})"
        for p in plans.values()
        if abs(p.marks.learning_rate * p.marks.decay - 1) > 1e-6
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise SurgeryError(
            "onnxruntime's on-device AdamW decays all parameters alike, and multipliers ask for something else for "
            f"{', '.join(wrong[:5])}{more}; use sgd, no weight decay, or multipliers of 1"
        )
