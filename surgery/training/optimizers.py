"""Optimizers: chains of small transformations from a gradient to an update, written into the step graph.

As in optax: SGD, Adam and the rest are a few links each. A link gets the gradient, may keep state of the parameter's
shape, and returns what takes the gradient's place; `update` subtracts the learning rate times the last link's result
and projects onto the parameter's constraint.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.marks import Constraint, Marks

__all__ = ["Adam", "Link", "Optimizer", "Sgd", "Updating", "chain", "update"]

StateOf = Callable[[str], ir.Value]


@dataclasses.dataclass
class Updating:
    """One parameter's update, as links see it.

    Attributes:
        op: The emitter.
        parameter: The parameter before the update.
        marks: Its marks.
        learning_rate: A scalar, the parameter's multiplier not applied.
        step: A float scalar, 1 at the first update.
        state: Returns the state of a name, zeros of the parameter's shape at first.
        new_state: The state after the update, by name; links write it.
    """

    op: Emitter
    parameter: ir.Value
    marks: Marks
    learning_rate: ir.Value
    step: ir.Value
    state: StateOf
    new_state: dict[str, ir.Value] = dataclasses.field(default_factory=dict)

    def scalar(self, value: ir.Value | float) -> ir.Value:
        """Gives a number the parameter's rank where that ends in 1s, as a 1×1 convolution's weight [M, C, 1, 1] does.

        Between that and a scalar of rank 0 the runtimes need a hundred times as long.
        """
        shape = self.parameter.shape
        ones = [1] * len(shape) if shape is not None and len(shape) > 1 and shape[-1] == 1 else []
        if isinstance(value, ir.Value):
            return self.op.Reshape(value, self.op.constant(ones)) if ones else value
        dtype = self.parameter.dtype or ir.DataType.FLOAT
        return self.op.constant(np.full(ones, value, dtype.numpy()))


Link = Callable[[Updating, ir.Value], ir.Value]


def weight_decay(rate: float) -> Link:
    """Adds `rate` times the parameter (and its decay multiplier): the gradient of ½·rate·‖w‖²."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        factor = rate * u.marks.decay
        return u.op.Add(gradient, u.op.Mul(u.parameter, u.scalar(factor))) if factor else gradient

    return link


def trace(momentum: float, nesterov: bool = False) -> Link:
    """v ← momentum·v + g; returns v, or g + momentum·v with `nesterov` (Sutskever et al. 2013, PyTorch's form)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op = u.op
        velocity = u.new_state["momentum"] = op.Add(op.Mul(u.state("momentum"), u.scalar(momentum)), gradient)
        return op.Add(gradient, op.Mul(velocity, u.scalar(momentum))) if nesterov else velocity

    return link


def _bias(u: Updating, beta: float) -> ir.Value:
    """1 − beta^step, in double: in float, 1 − 0.999 is off by a hundred-thousandth."""
    power = u.op.Pow(u.op.constant(np.array(beta)), u.op.Cast(u.step, to=int(ir.DataType.DOUBLE)))
    return u.op.Cast(u.op.Sub(u.op.constant(np.array(1.0)), power), to=int(ir.DataType.FLOAT))


def adam_scaling(beta1: float, beta2: float, epsilon: float) -> Link:
    """m̂ / (√v̂ + ε) with bias-corrected moments (Kingma and Ba 2015, algorithm 1)."""

    def link(u: Updating, gradient: ir.Value) -> ir.Value:
        op = u.op
        first, second = (op.Mul(u.state(slot), u.scalar(beta)) for slot, beta in (("m", beta1), ("v", beta2)))
        m = u.new_state["m"] = op.Add(first, op.Mul(gradient, u.scalar(1 - beta1)))
        v = u.new_state["v"] = op.Add(second, op.Mul(op.Mul(gradient, gradient), u.scalar(1 - beta2)))
        root = op.Add(op.Div(op.Sqrt(v), u.scalar(op.Sqrt(_bias(u, beta2)))), u.scalar(epsilon))
        return op.Div(op.Div(m, root), u.scalar(_bias(u, beta1)))

    return link


class _Optimizer(BaseModel):
    """An optimizer's settings, as recipes have them, and the chain they stand for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    default_rate: ClassVar[float]

    @abstractmethod
    def links(self) -> list[Link]:
        """The chain from the gradient to the update."""


class Sgd(_Optimizer):
    """Stochastic gradient descent, with momentum (Polyak 1964) or Nesterov's."""

    default_rate = 0.01
    name: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def links(self) -> list[Link]:
        return [trace(self.momentum, self.nesterov)] if self.momentum else []


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015)."""

    default_rate = 0.001
    name: Literal["adam"] = "adam"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: PositiveFloat = 1e-8

    def links(self) -> list[Link]:
        return [adam_scaling(self.beta1, self.beta2, self.epsilon)]


Optimizer = Annotated[Sgd | Adam, Field(discriminator="name")]


def chain(optimizer: Sgd | Adam, decay: float = 0.0) -> list[Link]:
    """Returns the links of `optimizer`, after those of `decay` where that is not zero."""
    return [*([weight_decay(decay)] if decay else []), *optimizer.links()]


def update(links: Sequence[Link], u: Updating, gradient: ir.Value) -> ir.Value:
    """Emits the parameter's new value; `u.new_state` then holds its new state."""
    for link in links:
        gradient = link(u, gradient)
    rate = u.learning_rate
    if u.marks.learning_rate != 1.0:
        rate = u.op.Mul(rate, u.marks.learning_rate)
    new = u.op.Sub(u.parameter, u.op.Mul(gradient, u.scalar(rate)))
    return project(u.op, new, u.marks.constraint) if u.marks.constraint else new


def project(op: Emitter, value: ir.Value, constraint: Constraint) -> ir.Value:
    """Emits the point of the constraint's set that is nearest to `value`.

    max_norm: w · min(1, c / ‖w‖) (Srivastava et al. 2014, section 5.1).
    """
    if constraint.type != "max_norm":
        raise SurgeryError(f"constraint {constraint.type!r} is unknown; max_norm is what there is")
    squares = op.ReduceSum(op.Mul(value, value), op.constant(list(constraint.axes)), keepdims=1)
    norm = op.Sqrt(op.Max(squares, op.constant(1e-30, ir.DataType.FLOAT)))
    limit = op.constant(constraint.value, ir.DataType.FLOAT)
    return op.Mul(value, op.Min(op.Div(limit, norm), op.constant(1.0, ir.DataType.FLOAT)))
