"""How a parameter's update is written: what links see, and what is behind the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field

from surgery.emit import Emitter
from surgery.marks import Marks, marks
from surgery.training.optimizers.constraints import project

__all__ = ["Clock", "Link", "MovingAverage", "Updates", "Updating", "write_updates"]


class MovingAverage(BaseModel):
    """An exponential moving average of the weights, which begins with the first ones.

    Attributes:
        decay: The share of the old average in the new one.
        warmup: Let it begin smaller: min(decay, (1 + t) / (10 + t)) after update t (TensorFlow's form).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decay: Annotated[float, Field(gt=0, lt=1)]
    warmup: bool = False


class Updates:
    """The updates of all parameters: what they share, and what they carry from step to step.

    Args:
        op: Writes into the graph.
        gradients: The gradient of every trained parameter, as the loss gives it.
        momentum: Whether the momentum comes with each step, as one-cycle training wants it.

    Attributes:
        op: The emitter.
        gradients: The gradient of every trained parameter, as the loss gives it.
        learning_rate: A scalar.
        momentum: A scalar, None where it is the optimizer's own.
        initial: The first value of every state, by name.
        after: What is carried, after the update, by the name of what it takes the place of.
    """

    def __init__(self, op: Emitter, gradients: Sequence[ir.Value], momentum: bool) -> None:
        self.op = op
        self.gradients = list(gradients)
        self.initial: dict[str, np.ndarray] = {}
        self.after: dict[str, ir.Value] = {}
        self._shared: dict[object, ir.Value] = {}
        self.learning_rate = self.input("learning_rate", ir.Shape(()))
        self.momentum = self.input("momentum", ir.Shape(())) if momentum else None

    def input(self, name: str, shape: ir.Shape | None, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """Adds an input to the graph."""
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        self.op.graph.inputs.append(value)
        return value

    def state(self, name: str, first: np.ndarray) -> ir.Value:
        """Adds something that is carried from step to step; what it becomes goes into `after`."""
        self.initial[name] = first
        return self.input(name, ir.Shape(first.shape), ir.DataType.from_numpy(first.dtype))

    def once(self, key: object, make: Callable[[], ir.Value]) -> ir.Value:
        """Returns what `make` emits, which is emitted once for all that ask with an equal `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def as_double(self, value: ir.Value) -> ir.Value:
        """`value` in double."""
        return self.op.Cast(value, to=int(ir.DataType.DOUBLE))

    def as_float(self, value: ir.Value) -> ir.Value:
        """`value` in float."""
        return self.op.Cast(value, to=int(ir.DataType.FLOAT))


class Clock:
    """The updates of some parameters, counted, and what depends on their number.

    Args:
        updates: The updates of all parameters.
        name: The state that counts.
    """

    def __init__(self, updates: Updates, name: str) -> None:
        self.all, self.op, self.name = updates, updates.op, name

    def once(self, key: object, make: Callable[[], ir.Value]) -> ir.Value:
        """As `Updates.once`, for the parameters of this clock."""
        return self.all.once((self.name, key), make)

    @property
    def step(self) -> ir.Value:
        """The number of this update, from 1, as a float scalar."""

        def make() -> ir.Value:
            before = self.all.state(self.name, np.zeros((), np.float32))
            after = self.all.after[self.name] = self.op.Add(before, 1.0)
            return after

        return self.once("step", make)

    @property
    def time(self) -> ir.Value:
        """`step` in double, for powers of what is near 1: in float, 1 − 0.999 is off by a hundred-thousandth."""
        return self.once("time", lambda: self.all.as_double(self.step))

    def bias(self, beta: float | ir.Value) -> ir.Value:
        """1 − beta^step, in double."""

        def make() -> ir.Value:
            base = self.all.as_double(beta) if isinstance(beta, ir.Value) else self.op.constant(np.array(beta))
            return self.op.Sub(self.op.constant(np.array(1.0)), self.op.Pow(base, self.time))

        return self.once(("bias", beta), make)


class Updating:
    """One parameter's update, as links see it.

    Attributes:
        all: The updates of all parameters.
        op: The emitter.
        parameter: The parameter before the update.
        marks: Its marks.
        clock: Counts its updates.
        shrink: Times the learning rate, the share of itself that the update takes away from the parameter.
        rate_applied: Whether what is behind the last link has the learning rate already.
    """

    def __init__(
        self, updates: Updates, parameter: ir.Value, counter: str = "step", wait: ir.Value | None = None
    ) -> None:
        self.all = updates
        self._wait = wait
        self.clock = Clock(updates, counter)
        self.op = updates.op
        self.parameter = parameter
        self.marks: Marks = marks(parameter)
        self.shrink = 0.0
        self.rate_applied = False
        self._factor: tuple[float, ir.Value | None] = 1.0, None

    def state(self, slot: str, start: float = 0.0) -> ir.Value:
        """State of the parameter's shape, `start` everywhere at first."""
        assert self.parameter.shape is not None
        shape = self.parameter.shape.numpy()
        first = np.full(shape, start, np.float32) if start else np.zeros(shape, np.float32)  # takes no memory yet
        return self.all.state(f"{self.parameter.name}/{slot}", first)

    def keep(self, slot: str, value: ir.Value) -> ir.Value:
        """Says what the state becomes; returns it."""
        self.all.after[f"{self.parameter.name}/{slot}"] = value
        return value

    def decaying_sum(self, slot: str, decay: float, value: ir.Value) -> ir.Value:
        """s ← decay·s + value, which is the moving average without its factor 1 − decay: that comes in with `scale`."""
        return self.keep(slot, self.op.Add(self.op.Mul(self.state(slot), self.scalar(decay)), value))

    def scale(self, factor: float | ir.Value) -> None:
        """Multiplies what the last link returns by a scalar, which costs nothing: it goes into the learning rate."""
        number, value = self._factor
        if not isinstance(factor, ir.Value):
            self._factor = number * factor, value
        else:
            self._factor = number, factor if value is None else self.op.Mul(value, factor)

    def scalar(self, value: ir.Value | float) -> ir.Value:
        """Gives a number the parameter's rank where that ends in 1s, as a 1×1 convolution's weight [M, C, 1, 1] does.

        Between that and a scalar of rank 0 the runtimes need a hundred times as long.
        """
        shape = self.parameter.shape
        ones = [1] * len(shape) if shape is not None and len(shape) > 1 and shape[-1] == 1 else []
        if isinstance(value, ir.Value):
            if not ones:
                return value
            return self.all.once(("scalar", value, len(ones)), lambda: self.op.Reshape(value, self.op.constant(ones)))
        return self.op.constant(np.full(ones, value, np.float32))

    def rate(self) -> ir.Value:
        """The learning rate with the parameter's multiplier."""
        rate = self._times(self.all.learning_rate, self.marks.learning_rate)
        wait = self._wait
        return rate if wait is None else self.all.once((rate, wait), lambda: self.op.Add(rate, wait))

    def _times(self, scalar: ir.Value, factor: float | ir.Value) -> ir.Value:
        return scalar if factor == 1 else self.all.once((scalar, factor), lambda: self.op.Mul(scalar, factor))

    def _scaled_rate(self) -> ir.Value:
        """`rate` times all that went into `scale`."""
        number, value = self._factor
        rate = self.rate() if value is None else self._times(self.rate(), value)
        return self._times(rate, number)

    def update(self, direction: ir.Value) -> ir.Value:
        """Emits the parameter's new value, `direction` being what is behind the last link."""
        op, rate = self.op, self.rate()
        base = self.parameter
        if self.shrink:
            shrink = self.shrink
            rest = self.all.once(
                (rate, "left", shrink), lambda: op.Sub(op.constant(np.float32(1)), op.Mul(rate, shrink))
            )
            base = op.Mul(base, self.scalar(rest))
        new = op.Sub(base, direction if self.rate_applied else op.Mul(direction, self.scalar(self._scaled_rate())))
        return project(op, new, self.marks.constraint) if self.marks.constraint else new


Link = Callable[[Updating, ir.Value], ir.Value]


def write_updates(
    op: Emitter,
    parameters: Sequence[ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
    links: Sequence[Link],
    *,
    momentum: bool = False,
    average: MovingAverage | None = None,
    counters: Mapping[str, str] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    waits: Mapping[ir.Value, ir.Value] | None = None,
) -> Updates:
    """Emits the update of every parameter; the learning rate, and the momentum if asked for, become inputs.

    Args:
        op: Writes into the graph.
        parameters: What is trained.
        gradients: The gradient of each.
        links: The optimizer.
        momentum: Whether the momentum comes with each step.
        average: Keep a moving average of each parameter as its state ``average``.
        counters: The name of the state that counts a parameter's updates, by its name; by default ``step``.
        arrays: The parameters' first values by name, where there is an average, which begins with them.
        waits: A zero, by parameters, that is computed when the parameter may be written over.
    """
    updates = Updates(op, [gradients[p] for p in parameters], momentum)
    for parameter in parameters:
        name = str(parameter.name)
        counter, wait = (counters or {}).get(name, "step"), (waits or {}).get(parameter)
        u, value = Updating(updates, parameter, counter, wait), gradients[parameter]
        for link in links:
            value = link(u, value)
        new = updates.after[name] = u.update(value)
        if average is not None:
            first = (arrays or {})[name]
            old = op.Mul(updates.state(f"{name}/average", np.asarray(first)), u.scalar(_decay(u, average)))
            u.keep("average", op.Add(old, op.Mul(new, u.scalar(_rest(u, average)))))
    return updates


def _decay(u: Updating, average: MovingAverage) -> ir.Value | float:
    if not average.warmup:
        return average.decay
    op, step = u.op, u.clock.step

    def make() -> ir.Value:
        return op.Min(op.Div(op.Add(step, 1.0), op.Add(step, 10.0)), op.constant(np.float32(average.decay)))

    return u.clock.once("average's decay", make)


def _rest(u: Updating, average: MovingAverage) -> ir.Value | float:
    """1 − the decay."""
    decay = _decay(u, average)
    if not isinstance(decay, ir.Value):
        return 1 - decay
    return u.clock.once("average's rest", lambda: u.op.Sub(u.op.constant(np.float32(1)), decay))
