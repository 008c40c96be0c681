"""Activations: as a layer's argument, as the Activation layer, and as layers of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor
from surgery.errors import nearest

__all__ = ["activate", "activation_name"]

Function = Callable[[Context, Tensor, Mapping[str, Any]], ir.Value]


def _elementwise(op_type: str, **attributes: float) -> Function:
    def function(c: Context, x: Tensor, _: Mapping[str, Any]) -> ir.Value:
        value = getattr(c.op, op_type)(x.value, **attributes)
        assert isinstance(value, ir.Value)
        return value

    return function


def _along_axis(op_type: str) -> Function:
    def function(c: Context, x: Tensor, config: Mapping[str, Any]) -> ir.Value:
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        value = getattr(c.op, op_type)(x.value, axis=x.axis(c.axis(axis, x)))
        assert isinstance(value, ir.Value)
        return value

    return function


def _relu(c: Context, x: Tensor, config: Mapping[str, Any]) -> ir.Value:
    """f(x) = max_value for x ≥ max_value, x for threshold ≤ x < max_value, else slope · (x − threshold)."""
    op = c.op
    slope = _number(c, config, ("negative_slope", "alpha"), 0.0)
    most = _number(c, config, ("max_value",), math.inf)
    threshold = _number(c, config, ("threshold", "theta"), 0.0)
    if threshold:
        below = op.Mul(op.Sub(x.value, threshold), slope)
        y = op.Where(op.GreaterOrEqual(x.value, threshold), x.value, below)
    elif slope:
        y = op.LeakyRelu(x.value, alpha=slope)
    elif most == math.inf:
        return op.Relu(x.value)
    else:
        return op.Clip(x.value, 0.0, most)
    return y if most == math.inf else op.Min(y, most)


def _leaky(default: float) -> Function:
    def function(c: Context, x: Tensor, config: Mapping[str, Any]) -> ir.Value:
        return c.op.LeakyRelu(x.value, alpha=_number(c, config, ("negative_slope", "alpha"), default))

    return function


def _hard_sigmoid(c: Context, x: Tensor, _: Mapping[str, Any]) -> ir.Value:
    """relu6(x + 3) / 6 since Keras 3, 0.2 x + 0.5 within [0, 1] before."""
    return c.op.HardSigmoid(x.value, alpha=1 / 6 if c.version >= 3 else 0.2, beta=0.5)


def _swish(c: Context, x: Tensor, _: Mapping[str, Any]) -> ir.Value:
    return c.op.Mul(x.value, c.op.Sigmoid(x.value))


def _gelu(c: Context, x: Tensor, config: Mapping[str, Any]) -> ir.Value:
    return c.op.Gelu(x.value, approximate="tanh" if config.get("approximate") else "none")


def _clip(least: float, most: float) -> Function:
    return lambda c, x, _: c.op.Clip(x.value, least, most)


def _shrink(soft: bool) -> Function:
    def function(c: Context, x: Tensor, config: Mapping[str, Any]) -> ir.Value:
        by = _number(c, config, ("threshold",), 0.5)
        return c.op.Shrink(x.value, lambd=by, bias=by if soft else 0.0)

    return function


def _identity(c: Context, x: Tensor, _: Mapping[str, Any]) -> ir.Value:
    return x.value


_FUNCTIONS: dict[str, Function] = {
    "linear": _identity,
    "relu": _relu,
    "relu6": _clip(0.0, 6.0),
    "leaky_relu": _leaky(0.2),
    "elu": lambda c, x, config: c.op.Elu(x.value, alpha=_number(c, config, ("alpha",), 1.0)),
    "selu": _elementwise("Selu"),
    "celu": lambda c, x, config: c.op.Celu(x.value, alpha=_number(c, config, ("alpha",), 1.0)),
    "gelu": _gelu,
    "sigmoid": _elementwise("Sigmoid"),
    "hard_sigmoid": _hard_sigmoid,
    "log_sigmoid": lambda c, x, _: c.op.Neg(c.op.Softplus(c.op.Neg(x.value))),
    "tanh": _elementwise("Tanh"),
    "hard_tanh": _clip(-1.0, 1.0),
    "tanh_shrink": lambda c, x, _: c.op.Sub(x.value, c.op.Tanh(x.value)),
    "hard_shrink": _shrink(False),
    "soft_shrink": _shrink(True),
    "softplus": _elementwise("Softplus"),
    "softsign": _elementwise("Softsign"),
    "softmax": _along_axis("Softmax"),
    "log_softmax": _along_axis("LogSoftmax"),
    "exponential": _elementwise("Exp"),
    "swish": _swish,
    "silu": _swish,
    "hard_silu": _elementwise("HardSwish"),
    "hard_swish": _elementwise("HardSwish"),
    "mish": _elementwise("Mish"),
}
_CLASSES = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "ELU": "elu", "Softmax": "softmax"}


def _number(c: Context, config: Mapping[str, Any], names: tuple[str, ...], default: float) -> float:
    """The first of `names` that there is; Keras 2 wrote some numbers as arrays."""
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if isinstance(value, dict):
        value = value.get("value", default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise c.error(f"{names[0]} is {value!r} and must be a number")
    return float(value)


def activation_name(data: Any) -> str:
    """The name of an activation as configured: a name, or an object that stands for a function or a layer."""
    if isinstance(data, dict):
        config = data.get("config")
        name = str(data.get("class_name", "")).rsplit(">", 1)[-1]
        if name == "function":
            return str(config)
        return _CLASSES.get(name, name)
    return str(data or "linear").rsplit(">", 1)[-1]


def activate(c: Context, x: Tensor, data: Any) -> Tensor:
    """Applies the activation `data`, as configured, to `x`."""
    name = activation_name(data)
    config = data.get("config") if isinstance(data, dict) else {}
    if name not in _FUNCTIONS:
        raise c.error(f"the activation {name!r} cannot be converted{nearest(name, _FUNCTIONS)}")
    value = _FUNCTIONS[name](c, x, config if isinstance(config, dict) else {})
    return x if value is x.value else c.like(x, value)


@layer("Activation")
def activation(c: Context) -> Tensor:
    """Any activation."""
    return activate(c, c.floats(c.x), c.get("activation", "linear"))


@layer("ReLU", "ThresholdedReLU", "ELU", "Softmax", "LeakyReLU")
def advanced(c: Context) -> Tensor:
    """Activations with arguments."""
    config = dict(c.config)
    if c.layer.type == "ThresholdedReLU":  # at the threshold itself it is 0, as nowhere else
        theta, x = c.number("theta", 1.0), c.floats(c.x)
        return c.like(x, c.op.Mul(x.value, c.op.Cast(c.op.Greater(x.value, theta), to=ir.DataType.FLOAT)))
    if c.layer.type == "Softmax":
        c.no_mask()
    if c.layer.type == "LeakyReLU":
        config.setdefault("negative_slope", config.get("alpha", 0.3))
    return activate(c, c.floats(c.x), {"class_name": c.layer.type, "config": config})


@layer("PReLU", variables="alpha")
def prelu(c: Context) -> Tensor:
    """One slope for each place, or for all places along the shared axes."""
    x = c.floats(c.x)
    shared = {c.axis(a) for a in _axes(c.get("shared_axes", []))}
    shape = [1 if axis in shared else c.size(axis) for axis in range(1, x.rank)]
    moved = x.moved and x.rank > 2
    perm = [len(shape) - 1, *range(len(shape) - 1)] if moved else None
    return c.like(x, c.op.PRelu(x.value, c.parameter("alpha", shape, perm), _name=c.name))


def _axes(data: Any) -> list[int]:
    return [data] if isinstance(data, int) else list(data)
