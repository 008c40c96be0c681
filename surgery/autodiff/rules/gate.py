"""The functions of the gates of LSTM, GRU and RNN, with their derivatives (ONNX, LSTM, `activations` and `clip`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from surgery.emit import Emitter

__all__ = ["ACTIVATIONS", "Gate", "gates"]

# What each function takes of `activation_alpha` and `activation_beta`, and its value where they do not say.
ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "affine": (1.0, 0.0),
    "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, None),
    "relu": (None, None),
    "scaledtanh": (1.0, 1.0),
    "sigmoid": (None, None),
    "softplus": (None, None),
    "softsign": (None, None),
    "tanh": (None, None),
    "thresholdedrelu": (1.0, None),
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """y = f(a), with `a` bounded to ±clip first.

    Attributes:
        name: The function, a key of `ACTIVATIONS`.
        alpha: Its first parameter.
        beta: Its second parameter.
        clip: The bound; none by 0.
        dtype: The type of what it is applied to.
    """

    name: str
    alpha: float
    beta: float
    clip: float
    dtype: ir.DataType

    def value(self, op: Emitter, a: ir.Value) -> ir.Value:
        """f(a)."""
        if self.clip:
            a = op.Clip(a, -self.clip, self.clip)
        match self.name:
            case "affine":
                return op.Add(op.Mul(a, self.alpha), self.beta)
            case "elu":
                return op.Elu(a, alpha=self.alpha)
            case "hardsigmoid":
                return op.HardSigmoid(a, alpha=self.alpha, beta=self.beta)
            case "leakyrelu":
                return op.LeakyRelu(a, alpha=self.alpha)
            case "relu":
                return op.Relu(a)
            case "scaledtanh":
                return op.Mul(op.Tanh(op.Mul(a, self.beta)), self.alpha)
            case "softplus":
                return op.Softplus(a)
            case "softsign":
                return op.Softsign(a)
            case "thresholdedrelu":
                return op.ThresholdedRelu(a, alpha=self.alpha)
            case "tanh":
                return op.Tanh(a)
        return op.Sigmoid(a)

    @property
    def by_value(self) -> bool:
        """Whether the slope follows from y alone."""
        return not self.clip and self.name in ("relu", "sigmoid", "tanh")

    def slope(self, op: Emitter, a: ir.Value | None, y: ir.Value) -> ir.Value:
        """f'(a), where y = f(a); `a` may be left out where `by_value` says so."""
        if self.name in ("sigmoid", "tanh", "relu"):
            slope = self._slope_by_value(op, y)
        else:
            assert a is not None
            slope = self._slope(op, op.Clip(a, -self.clip, self.clip) if self.clip else a, y)
        if self.clip:
            assert a is not None
            slope = op.Mul(slope, self._where(op, op.Not(op.Greater(op.Abs(a), self.clip))))
        slope.dtype = self.dtype
        return slope

    def _slope_by_value(self, op: Emitter, y: ir.Value) -> ir.Value:
        match self.name:
            case "sigmoid":
                return op.Mul(y, op.Sub(1.0, y))
            case "tanh":
                return op.Sub(1.0, op.Mul(y, y))
        return self._where(op, op.Greater(y, 0.0))

    def _slope(self, op: Emitter, a: ir.Value, y: ir.Value) -> ir.Value:
        match self.name:
            case "affine":
                return op.Add(op.Mul(a, 0.0), self.alpha)
            case "elu":  # α (eᵃ − 1) below zero, where y' = y + α
                above = self._where(op, op.Greater(a, 0.0))
                return op.Add(above, op.Mul(op.Sub(1.0, above), op.Add(y, self.alpha)))
            case "hardsigmoid":  # clip(α a + β, 0, 1)
                return op.Mul(self._where(op, op.And(op.Greater(y, 0.0), op.Less(y, 1.0))), self.alpha)
            case "leakyrelu":
                return op.Add(op.Mul(self._where(op, op.Greater(a, 0.0)), 1.0 - self.alpha), self.alpha)
            case "scaledtanh":  # α tanh(β a)
                inner = op.Tanh(op.Mul(a, self.beta))
                return op.Mul(op.Sub(1.0, op.Mul(inner, inner)), self.alpha * self.beta)
            case "softplus":
                return op.Sigmoid(a)
            case "softsign":  # a / (1 + |a|), where y' = (1 − |y|)²
                rest = op.Sub(1.0, op.Abs(y))
                return op.Mul(rest, rest)
        return self._where(op, op.Greater(a, self.alpha))  # thresholdedrelu

    def _where(self, op: Emitter, condition: ir.Value) -> ir.Value:
        return op.Cast(condition, to=int(self.dtype))


def gates(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float, dtype: ir.DataType
) -> list[Gate]:
    """The gates by these names, in lower case; each takes what it needs of the parameters, in order.

    Raises:
        KeyError: There is no such function.
    """
    left = list(alphas), list(betas)

    def parameter(default: float | None, given: list[float]) -> float:
        return 0.0 if default is None else given.pop(0) if given else default

    found = []
    for name in names:
        alpha, beta = (parameter(default, some) for default, some in zip(ACTIVATIONS[name], left, strict=True))
        found.append(Gate(name, alpha, beta, clip, dtype))
    return found
