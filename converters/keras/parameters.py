"""The variables of a Keras network as initializers, with what Keras knows of them as marks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.keras.hdf5 import Array
from converters.keras.network import Layer
from converters.keras.weights import Weights
from surgery.emit import initializer
from surgery.marks import Constraint, set_marks

if TYPE_CHECKING:
    from converters.keras.context import Context

__all__ = ["Parameters"]

# A layer's constraints and regularizers are named by its variables, but for these.
_ARGUMENTS = {"recurrent_kernel": "recurrent", "depthwise_kernel": "depthwise", "pointwise_kernel": "pointwise"}

_SHORT = {"l1": "L1", "l2": "L2", "l1_l2": "L1L2"}  # with Keras's default of 0.01


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(d) for d in shape) or "scalar"


class Parameters:
    """Makes the initializers of one graph.

    Args:
        graph: The graph to register them in.
        weights: The variables as stored.
        weights_path: Where they are stored, for messages.
    """

    def __init__(self, graph: ir.Graph, weights: Weights, weights_path: object) -> None:
        self._graph = graph
        self._weights = weights
        self._path = weights_path
        self._made: dict[tuple[Layer, Any], ir.Value] = {}
        self._names: set[str] = set()

    def stored(self, layer: Layer, variable: str) -> Array | None:
        """A variable of `layer` as stored."""
        return self._weights.get(layer, {}).get(variable)

    def read(self, c: Context, variable: str, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the numbers of a variable.

        Raises:
            SurgeryError: There are none, or they have another shape.
        """
        array = self.stored(c.layer, variable)
        if array is None:
            raise c.error(f"{self._path} has no {variable!r} for it; the weights are of another network")
        if array.shape != shape:
            raise c.error(
                f"its {variable} is {_shown(array.shape)} in {self._path} and must be {_shown(shape)}; the weights are "
                "of another network, or the configuration was changed"
            )
        return array.read()

    def get(
        self,
        c: Context,
        variable: str,
        shape: tuple[int, ...],
        perm: Sequence[int] | None,
        reshape: Sequence[int] | None,
    ) -> ir.Value:
        """See `Context.parameter`."""

        def data() -> np.ndarray:
            array = self.read(c, variable, shape)
            array = array if perm is None else array.transpose(perm)
            return array if reshape is None else array.reshape(reshape)

        order = list(perm) if perm is not None else list(range(len(shape)))
        axes = {old: new for new, old in enumerate(order)}
        if reshape is not None:
            axes = _reshaped(axes, [shape[i] for i in order], reshape)
        key = (variable, tuple(order), tuple(reshape or ()))
        return self._make(c, key, variable, data, axes, (variable,), 1.0)

    def computed(
        self,
        c: Context,
        variable: str,
        data: Callable[[], np.ndarray],
        axes: dict[int, int],
        sources: Sequence[str],
        learning_rate: float,
    ) -> ir.Value:
        """See `Context.computed`."""
        return self._make(c, (variable,), variable, data, axes, sources, learning_rate)

    def _make(
        self,
        c: Context,
        key: Any,
        variable: str,
        data: Callable[[], np.ndarray],
        axes: dict[int, int],
        sources: Sequence[str],
        learning_rate: float,
    ) -> ir.Value:
        if (c.layer, key) not in self._made:
            value = self._add(f"{c.layer_name}/{variable.removeprefix('cell/')}", data())
            if learning_rate != 1.0:
                set_marks(value, learning_rate=learning_rate)
            self._mark(c, value, sources[0].rpartition("/")[2], axes)
            self._made[c.layer, key] = value
        return self._made[c.layer, key]

    def constant(self, c: Context, role: str, data: np.ndarray) -> ir.Value:
        """See `Context.constant`."""
        key = (c.layer, ("constant", role))
        if key not in self._made:
            self._made[key] = self._add(f"{c.layer_name}/{role}", data)
            set_marks(self._made[key], trainable=False)
        return self._made[key]

    def _add(self, name: str, data: np.ndarray) -> ir.Value:
        unique, count = name, 1
        while unique in self._names:
            unique, count = f"{name}_{count}", count + 1
        self._names.add(unique)
        return initializer(self._graph, unique, np.ascontiguousarray(data))

    def _mark(self, c: Context, value: ir.Value, variable: str, axes: dict[int, int]) -> None:
        if not c.layer.trainable:
            set_marks(value, trainable=False)
        role = _ARGUMENTS.get(variable, variable)
        if (data := c.get(f"{role}_constraint")) is not None:
            self._constrain(c, value, data, axes)
        if (data := c.get(f"{role}_regularizer")) is not None:
            self._regularize(c, value, data)

    def _constrain(self, c: Context, value: ir.Value, data: Any, axes: dict[int, int]) -> None:
        kind, config = _object(data)
        along = config.get("axis", 0)
        places = {a % max(1, len(axes)) for a in ([along] if isinstance(along, int) else along or ())}
        known = all(a in axes for a in places)
        found = tuple(sorted({axes[a] for a in places})) if known else ()
        if kind == "NonNeg":
            bound = Constraint("non_neg")
        elif kind == "MaxNorm" and known:
            bound = Constraint("max_norm", _number(c, "max_value", config.get("max_value", config.get("m", 2))), found)
        elif kind == "UnitNorm" and known:
            bound = Constraint("unit_norm", axes=found)
        elif kind == "MinMaxNorm" and known:
            given = (config.get(name, default) for name, default in (("max_value", 1), ("min_value", 0), ("rate", 1)))
            most, least, rate = (_number(c, "a MinMaxNorm's number", each) for each in given)
            bound = Constraint("min_max_norm", most, found, least, rate)
        else:
            c.note(f"the constraint {kind} of {value.name} has no equal and is left out")
            return
        set_marks(value, constraint=bound)

    def _regularize(self, c: Context, value: ir.Value, data: Any) -> None:
        """Keras adds l1 · ‖w‖₁ + l2 · ‖w‖² to the loss, the mark `l2` is of ½ · l2 · ‖w‖²."""
        kind, config = _object(data)
        if kind not in ("L1", "L2", "L1L2", "WeightRegularizer"):
            c.note(f"the regularizer {kind} of {value.name} has no equal and is left out")
            return
        l1, l2 = (_number(c, name, config.get(name)) for name in ("l1", "l2"))
        set_marks(value, l1=l1, l2=2 * l2)


def _object(data: Any) -> tuple[str, dict[str, Any]]:
    """The class and the arguments of a constraint or regularizer; Keras 1 has both in one."""
    if isinstance(data, str) and data in _SHORT:
        return _SHORT[data], dict.fromkeys(data.split("_"), 0.01)
    if not isinstance(data, dict):
        return str(data), {}
    config = data.get("config")
    kind = str(data.get("class_name", data.get("name", "?"))).rsplit(">", 1)[-1]
    return kind, config if isinstance(config, dict) else data


def _number(c: Context, name: str, value: Any) -> float:
    """A number from 0 as the decimal that was written there; 0 where there is none."""
    if isinstance(value, dict):  # Keras 2 wrote some numbers as arrays
        value = value.get("value")
    value = 0.0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise c.error(f"{name} is {value!r} and must be a number from 0")
    return float(np.format_float_positional(np.float32(value), unique=True))


def _reshaped(axes: dict[int, int], before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Where axes are once `before` is joined or split to `after`; those that are lost in it are left out."""
    result: dict[int, int] = {}
    for old, place in axes.items():
        ahead = int(np.prod(before[:place], dtype=np.int64))
        for new, size in enumerate(after):
            if int(np.prod(after[:new], dtype=np.int64)) == ahead and size == before[place]:
                result[old] = new
                break
    return result
