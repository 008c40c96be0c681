"""The optimizers, as recipes have them, and the chains that they stand for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from surgery.training.optimizers import links
from surgery.training.optimizers.updating import Link

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "OptimizerName",
    "Regularization",
    "RmsProp",
    "Sgd",
    "chain",
]

Share = Annotated[float, Field(ge=0, lt=1)]
Regularization = Literal["l1", "l2", "decoupled"]


class _Optimizer(BaseModel):
    """An optimizer's settings, and the chain that they stand for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    default_rate: ClassVar[float]
    default_decay: ClassVar[float] = 0.0
    regularization: ClassVar[Regularization] = "l2"

    @abstractmethod
    def links(self) -> list[Link]:
        """The chain from the gradient to the update."""

    @property
    def has_momentum(self) -> bool:
        """Whether its momentum can come with each step."""
        return False


class Sgd(_Optimizer):
    """Stochastic gradient descent, with momentum (Polyak 1964) or Nesterov's.

    Attributes:
        momentum: How much of the last step goes into the next.
        nesterov: Look ahead (Sutskever et al. 2013).
        dampening: How much of the gradient does not go into the momentum (PyTorch's).
        rate_in_momentum: Apply the learning rate to gradients before they go into the momentum, as Caffe and Keras do,
            not behind it, as PyTorch does; the same where the rate is.
    """

    default_rate = 0.01
    name: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    nesterov: bool = False
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    rate_in_momentum: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.nesterov and self.dampening:
            raise ValueError("nesterov goes with a dampening of 0 only")
        return self

    def links(self) -> list[Link]:
        if not self.momentum:
            return []
        return [links.trace(self.momentum, self.nesterov, self.dampening, self.rate_in_momentum)]

    @property
    def has_momentum(self) -> bool:
        return self.momentum > 0


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015).

    Attributes:
        beta1: Of the moving average of the gradients.
        beta2: Of the moving average of their squares.
        epsilon: Added to the square root.
        amsgrad: Divide by the largest average so far (Reddi et al. 2018).
        epsilon_hat: Add epsilon to the square root before the bias is corrected, as Caffe and Keras do.
    """

    default_rate = 0.001
    name: Literal["adam"] = "adam"
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: PositiveFloat = 1e-8
    amsgrad: bool = False
    epsilon_hat: bool = False

    def links(self) -> list[Link]:
        return [links.adam_scaling(self.beta1, self.beta2, self.epsilon, self.amsgrad, self.epsilon_hat)]

    @property
    def has_momentum(self) -> bool:
        return True


class AdamW(Adam):
    """Adam with decoupled weight decay, 0.01 unless `weight_decay` says otherwise (Loshchilov and Hutter 2019).

    Attributes:
        beta1: Of the moving average of the gradients.
        beta2: Of the moving average of their squares.
        epsilon: Added to the square root.
        amsgrad: Divide by the largest average so far (Reddi et al. 2018).
        epsilon_hat: Add epsilon to the square root before the bias is corrected, as Caffe and Keras do.
    """

    default_decay = 0.01
    regularization = "decoupled"
    name: Literal["adamw"] = "adamw"  # type: ignore[assignment]


class Adamax(_Optimizer):
    """Adam by the largest gradient (Kingma and Ba 2015, section 7.1).

    Attributes:
        beta1: Of the moving average of the gradients.
        beta2: How fast the largest gradient is forgotten.
        epsilon: Added to the gradients' size.
    """

    default_rate = 0.002
    name: Literal["adamax"] = "adamax"
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: PositiveFloat = 1e-8

    def links(self) -> list[Link]:
        return [links.adamax_scaling(self.beta1, self.beta2, self.epsilon)]


class NAdam(_Optimizer):
    """Adam with Nesterov's momentum (Dozat 2016), in PyTorch's form.

    Attributes:
        beta1: Of the moving average of the gradients.
        beta2: Of the moving average of their squares.
        epsilon: Added to the square root.
        momentum_decay: How fast the momentum rises.
    """

    default_rate = 0.002
    name: Literal["nadam"] = "nadam"
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: PositiveFloat = 1e-8
    momentum_decay: NonNegativeFloat = 0.004

    def links(self) -> list[Link]:
        return [links.nadam_scaling(self.beta1, self.beta2, self.epsilon, self.momentum_decay)]


class RmsProp(_Optimizer):
    """RMSProp (Tieleman and Hinton 2012).

    Attributes:
        rho: Of the moving average of the gradients' squares; PyTorch's ``alpha``, Caffe's ``rms_decay``.
        epsilon: Added to the square root.
        momentum: How much of the last step goes into the next.
        centered: Divide by the standard deviation (Graves 2013).
    """

    default_rate = 0.01
    name: Literal["rmsprop"] = "rmsprop"
    rho: Share = 0.99
    epsilon: PositiveFloat = 1e-8
    momentum: Share = 0.0
    centered: bool = False

    def links(self) -> list[Link]:
        scaling = links.rms_scaling(self.rho, self.epsilon, self.centered)
        return [scaling, links.trace(self.momentum)] if self.momentum else [scaling]

    @property
    def has_momentum(self) -> bool:
        return self.momentum > 0


class Adagrad(_Optimizer):
    """Adagrad (Duchi et al. 2011).

    Attributes:
        epsilon: Added to the square root.
        initial_accumulator: What the sum of squares begins with.
    """

    default_rate = 0.01
    name: Literal["adagrad"] = "adagrad"
    epsilon: PositiveFloat = 1e-10
    initial_accumulator: NonNegativeFloat = 0.0

    def links(self) -> list[Link]:
        return [links.adagrad_scaling(self.epsilon, self.initial_accumulator)]


class Adadelta(_Optimizer):
    """Adadelta (Zeiler 2012).

    Attributes:
        rho: Of the moving averages of squares.
        epsilon: Added to both of them.
    """

    default_rate = 1.0
    name: Literal["adadelta"] = "adadelta"
    rho: Share = 0.9
    epsilon: PositiveFloat = 1e-6

    def links(self) -> list[Link]:
        return [links.adadelta_scaling(self.rho, self.epsilon)]


class Lion(_Optimizer):
    """Lion, which goes by the sign (Chen et al. 2023); its decay is decoupled.

    Attributes:
        beta1: Of the average whose sign is the step.
        beta2: Of the average that is kept.
    """

    default_rate = 1e-4
    regularization = "decoupled"
    name: Literal["lion"] = "lion"
    beta1: Share = 0.9
    beta2: Share = 0.99

    def links(self) -> list[Link]:
        return [links.lion_sign(self.beta1, self.beta2)]


OptimizerName = Literal["sgd", "adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "lion"]
AnyOptimizer = Sgd | Adam | AdamW | Adamax | NAdam | RmsProp | Adagrad | Adadelta | Lion
Optimizer = Annotated[AnyOptimizer, Field(discriminator="name")]


def chain(
    optimizer: AnyOptimizer,
    decay: float = 0.0,
    *,
    regularization: Regularization | None = None,
    clip_value: float | None = None,
    clip_each_norm: float | None = None,
    clip_norm: float | None = None,
) -> list[Link]:
    """Returns the links of `optimizer`, behind those that clip the gradients and regularize.

    Args:
        optimizer: The optimizer.
        decay: How much to regularize.
        regularization: How; by default as the optimizer does.
        clip_value: The largest size of a gradient's numbers.
        clip_each_norm: The largest norm of each parameter's gradient.
        clip_norm: The largest norm of all gradients together.
    """
    kind = regularization or optimizer.regularization
    clips = ((links.clip_value, clip_value), (links.clip_each_norm, clip_each_norm), (links.clip_norm, clip_norm))
    found = [clip(limit) for clip, limit in clips if limit is not None]
    found.append(links.regularization(decay if kind == "l1" else 0.0, decay if kind == "l2" else 0.0))
    if decay and kind == "decoupled":
        found.append(links.decoupled_decay(decay))
    return [*found, *optimizer.links()]
