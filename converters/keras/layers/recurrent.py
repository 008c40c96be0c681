"""Recurrent layers as ONNX's LSTM, GRU and RNN, one direction or both.

Keras keeps sequences as [N, T, C] and its gates in the order i, f, c, o (LSTM) or z, r, h (GRU); ONNX has [T, N, C] and
i, o, f, c, or z, r, h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.layers.activation import activation_name
from converters.keras.network import Call, Layer
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__: list[str] = []

_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}  # Keras's gates in ONNX's order
_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}
_STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
_Function = tuple[str, list[float], list[float]]  # an operator's name for a function, its alpha and its beta
_ACTIVATIONS: dict[str, _Function] = {
    "linear": ("Affine", [1.0], []),
    "relu": ("Relu", [], []),
    "tanh": ("Tanh", [], []),
    "sigmoid": ("Sigmoid", [], []),
    "softsign": ("Softsign", [], []),
    "softplus": ("Softplus", [], []),
    "elu": ("Elu", [1.0], []),
}
_VARIABLES = "cell/kernel cell/recurrent_kernel cell/bias?use_bias"


class _Direction:
    """One layer's weights and activations for one direction."""

    def __init__(self, c: Context, owner: Layer, depth: int) -> None:
        self.c = Context(c.builder, owner, c.layer_name, Call(c.args, c.kwargs), c.suffix)
        self.owner = owner
        self.depth = depth
        self.units = self.c.integer("units")
        self.order = _ORDER[owner.type]

    def rows(self, variable: str, columns: int) -> np.ndarray:
        """A kernel [columns, gates] as [gates, columns], in ONNX's order."""
        array = self.c.stored(variable, [columns, len(self.order) * self.units])
        return self._ordered(array).T

    def _ordered(self, array: np.ndarray) -> np.ndarray:
        gates = np.split(array, len(self.order), axis=-1)
        return np.concatenate([gates[i] for i in self.order], axis=-1)

    @property
    def two_biases(self) -> bool:
        """Whether the recurrent part has a bias of its own."""
        return self.owner.type == "GRU" and bool(self.c.get("reset_after", False))

    def bias(self) -> np.ndarray:
        """[2 · gates]: those of the input, then those of the state."""
        gates = len(self.order) * self.units
        array = self.c.stored("cell/bias", [2, gates] if self.two_biases else [gates]).reshape(-1, gates)
        ordered = self._ordered(array)
        return np.concatenate([ordered[0], ordered[1] if self.two_biases else np.zeros(gates, np.float32)])

    def activations(self) -> list[_Function]:
        """For f, g and h of the operator."""
        inner = self._activation("activation", "tanh")
        if self.owner.type == "SimpleRNN":
            return [inner]
        gate = self._activation("recurrent_activation", "sigmoid" if self.c.version >= 3 else "hard_sigmoid")
        return [gate, inner, inner] if self.owner.type == "LSTM" else [gate, inner]

    def _activation(self, name: str, default: str) -> _Function:
        activation = activation_name(self.c.get(name, default))
        if activation == "hard_sigmoid":
            return "HardSigmoid", [1 / 6 if self.c.version >= 3 else 0.2], [0.5]
        if activation not in _ACTIVATIONS:
            raise self.c.error(f"{name} {activation!r} cannot be converted in a recurrent layer")
        return _ACTIVATIONS[activation]


def _run(c: Context, owners: Sequence[Layer]) -> tuple[ir.Value, list[ir.Value]]:
    """Emits the operator; returns its outputs [T, directions, N, units] and its last states."""
    first, op = owners[0], c.op
    x = c.floats(c.inputs[0])
    if x.rank != 3:
        raise c.error(f"needs an input of 3 dimensions, and has one of {x.rank}")
    if c.get("time_major", False):
        raise c.error("is time_major, which cannot be converted")
    c.no_mask()
    sides = [_Direction(c, owner, c.size(2, x)) for owner in owners]
    if any(s.units != sides[0].units or s.owner.type != first.type for s in sides):
        raise c.error("its two directions have different layers, which cannot be converted")
    for name in ("dropout", "recurrent_dropout"):
        if sides[0].c.number(name, 0.0):
            c.note(f"its {name}, which only training has, is left out")
    if sides[0].c.get("stateful", False):
        c.note("is stateful; converted, each batch starts anew")
    sources = ("cell/kernel", "cell/recurrent_kernel", "cell/bias")
    weight, recurrent = (
        sides[0].c.computed(
            variable,
            lambda v=variable, n=n: np.stack([s.rows(v, s.depth if n == 0 else s.units) for s in sides]),  # type: ignore[misc]
            {0: 2, 1: 1},
            variable,
        )
        for n, variable in enumerate(sources[:2])
    )
    bias = None
    if sides[0].c.has("cell/bias"):
        # ONNX adds two biases where Keras has one: half the rate for each is Keras's rate for the sum.
        rate = 1.0 if sides[0].two_biases else 0.5
        bias = sides[0].c.computed(
            sources[2], lambda: np.stack([s.bias() for s in sides]), {}, sources[2], learning_rate=rate
        )
    count = _STATES[first.type]
    states = _initial(c, len(sides), count)
    functions = [a for s in sides for a in s.activations()]
    forward = "reverse" if sides[0].c.get("go_backwards", False) else "forward"
    attributes: dict[str, Any] = {
        "hidden_size": sides[0].units,
        "direction": forward if len(sides) == 1 else "bidirectional",
        "activations": [name for name, _, _ in functions],
        "activation_alpha": [a for _, alphas, _ in functions for a in alphas] or None,
        "activation_beta": [b for _, _, betas in functions for b in betas] or None,
    }
    if first.type == "GRU":
        attributes["linear_before_reset"] = int(sides[0].two_biases or bool(sides[0].c.get("reset_after", False)))
    steps = op.Transpose(c.plain(x), perm=[1, 0, 2])
    y, *last = getattr(op, _OPERATORS[first.type])(
        steps, weight, recurrent, bias, None, *states, _outputs=1 + count, _name=c.name, **attributes
    )
    for value in last:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return y, last


def _initial(c: Context, directions: int, count: int) -> list[ir.Value]:
    """The first states [directions, N, units] that the layer is given."""
    given = [c.plain(t) for t in c.inputs[1:]]
    if not given:
        return []
    if len(given) != directions * count:
        raise c.error(f"is given {len(given)} first states and takes {directions * count}")
    parts = [[c.op.Unsqueeze(v, c.op.constant([0])) for v in given[state::count]] for state in range(count)]
    return [p[0] if directions == 1 else c.op.Concat(*p, axis=0) for p in parts]


@layer("LSTM", "GRU", "SimpleRNN", variables=_VARIABLES)
def recurrent(c: Context) -> list[Tensor]:
    """A sequence in one direction."""
    op = c.op
    y, last = _run(c, [c.layer])
    x, units = c.inputs[0], c.integer("units")
    state_dims: list[Dim] = [x.dims[0], units]
    states = [c.tensor(op.Squeeze(v, op.constant([0])), state_dims).unmasked() for v in last]
    if not c.get("return_sequences", False):
        return [states[0], *(states if c.get("return_state", False) else [])]
    outputs = op.Transpose(op.Squeeze(y, op.constant([1])), perm=[1, 0, 2])
    if c.get("go_backwards", False):  # Keras gives the steps in the order in which it took them
        outputs = op.Slice(outputs, op.constant([-1]), op.constant([-(2**31)]), op.constant([1]), op.constant([-1]))
    return [c.tensor(outputs, [*x.dims[:2], units]), *(states if c.get("return_state", False) else [])]


@layer("Bidirectional")
def bidirectional(c: Context) -> list[Tensor]:
    """A sequence in both directions; their outputs are joined."""
    owners, op = c.layer.wrapped, c.op
    if any(owner.type not in _ORDER for owner in owners):
        raise c.error(f"wraps a {owners[0].type}, which cannot be converted")
    if owners[0].config.get("go_backwards", False):
        raise c.error("its forward layer goes backwards, which cannot be converted")
    y, last = _run(c, owners)
    x, units, config = c.inputs[0], int(owners[0].config["units"]), owners[0].config
    sequences = bool(config.get("return_sequences", False))
    # [T, 2, N, units] as [N, T, 2, units], or the last states [2, N, units] as [N, 2, units].
    both = op.Transpose(y, perm=[2, 0, 1, 3]) if sequences else op.Transpose(last[0], perm=[1, 0, 2])
    outputs = _joined(c, both, list(x.dims[: 2 if sequences else 1]), units)
    if not config.get("return_state", False):
        return outputs
    halves = [op.Split(v, axis=0, num_outputs=2, _outputs=2) for v in last]
    states = [half[side] for side in range(2) for half in halves]
    return outputs + [c.tensor(op.Squeeze(v, op.constant([0])), [x.dims[0], units]) for v in states]


def _joined(c: Context, both: ir.Value, dims: list[Dim], units: int) -> list[Tensor]:
    op, mode = c.op, c.config.get("merge_mode", "concat")
    axis = op.constant([len(dims)])
    if mode == "concat":
        return [c.tensor(op.Reshape(both, op.constant([0] * len(dims) + [2 * units])), [*dims, 2 * units])]
    if mode in ("sum", "ave"):
        reduced = getattr(op, "ReduceSum" if mode == "sum" else "ReduceMean")(both, axis, keepdims=0)
        return [c.tensor(reduced, [*dims, units])]
    if mode not in ("mul", None):
        raise c.error(f"merge_mode is {mode!r}; concat, sum, mul, ave or None can be converted")
    halves = [op.Squeeze(h, axis) for h in op.Split(both, axis=len(dims), num_outputs=2, _outputs=2)]
    values = [op.Mul(*halves)] if mode == "mul" else halves
    return [c.tensor(v, [*dims, units]) for v in values]
