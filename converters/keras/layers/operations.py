"""Functions that a network calls between its layers: ``keras.ops`` by class, TensorFlow's (Keras 2) by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.keras.context import Context, operation, tensors
from converters.keras.layers.activation import activate
from converters.keras.layers.merge import broadcast, concatenated
from converters.keras.layers.shape import reshaped
from converters.keras.tensor import Tensor
from converters.options import Dim

__all__: list[str] = []

_BINARY = {
    "Add": "Add math.add __operators__.add add",
    "Sub": "Subtract math.subtract __operators__.subtract subtract",
    "Mul": "Multiply math.multiply __operators__.multiply multiply",
    "Div": "Divide TrueDivide math.truediv math.divide __operators__.truediv truediv",
    "Max": "Maximum math.maximum maximum",
    "Min": "Minimum math.minimum minimum",
    "Pow": "Power math.pow pow",
}
_UNARY = {
    "Neg": "Negative math.negative __operators__.negative",
    "Abs": "Absolute Abs math.abs abs",
    "Sqrt": "Sqrt math.sqrt",
    "Exp": "Exp math.exp",
    "Log": "Log math.log",
}
_ACTIVATIONS = {
    "relu": "Relu nn.relu",
    "relu6": "Relu6 nn.relu6",
    "sigmoid": "Sigmoid nn.sigmoid math.sigmoid",
    "tanh": "Tanh nn.tanh math.tanh",
    "silu": "Silu nn.silu nn.swish",
    "softplus": "Softplus nn.softplus math.softplus",
    "elu": "Elu nn.elu",
    "selu": "Selu nn.selu",
    "hard_silu": "HardSilu",
    "hard_sigmoid": "HardSigmoid",
}
_REDUCTIONS = {
    "ReduceMean": "Mean math.reduce_mean",
    "ReduceSum": "Sum math.reduce_sum",
    "ReduceMax": "Max math.reduce_max",
    "ReduceMin": "Min math.reduce_min",
}


def _words(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, key) for key, names in table.items() for name in names.split()]


def _argument(c: Context, place: int, name: str, default: Any = None) -> Any:
    """An argument of a function: of the call by place or name, or kept in its configuration."""
    if len(c.args) > place:
        return c.args[place]
    return c.kwargs.get(name, c.config.get(name, default))


def _binary(op_type: str) -> Callable[[Context], Tensor]:
    def function(c: Context) -> Tensor:
        operands = list(c.args) + [c.kwargs[name] for name in ("x", "y", "x1", "x2") if name in c.kwargs]
        if len(operands) != 2:
            raise c.error(f"has {len(operands)} operands and takes 2")
        given = [c.floats(o) for o in operands if isinstance(o, Tensor)]
        if len(given) == 2:
            return broadcast(c, op_type, given)
        (x,) = given
        values = [x.value if isinstance(o, Tensor) else _number(c, o, x, i) for i, o in enumerate(operands)]
        return c.like(x, getattr(c.op, op_type)(*values))

    return function


def _number(c: Context, data: Any, x: Tensor, place: int) -> ir.Value:
    try:
        return c.array(f"operand{place}", np.asarray(data, np.float32), x)
    except (TypeError, ValueError) as error:
        raise c.error(f"its operand {str(data)[:40]!r} cannot be converted") from error


def _unary(op_type: str) -> Callable[[Context], Tensor]:
    return lambda c: c.like(c.floats(c.x), getattr(c.op, op_type)(c.floats(c.x).value))


def _activation(name: str) -> Callable[[Context], Tensor]:
    return lambda c: activate(c, c.floats(c.x), name)


for _name, _key in _words(_BINARY):
    operation(_name)(_binary(_key))
for _name, _key in _words(_UNARY):
    operation(_name)(_unary(_key))
for _name, _key in _words(_ACTIVATIONS):
    operation(_name)(_activation(_key))


@operation("Softmax", "LogSoftmax", "LeakyRelu", "Gelu", "nn.softmax", "nn.leaky_relu", "nn.gelu")
def activation_with_arguments(c: Context) -> Tensor:
    """Activations with an argument."""
    name = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "LeakyRelu": "leaky_relu", "Gelu": "gelu"}.get(
        c.layer.type, c.layer.type.removeprefix("nn.")
    )
    config = {
        "axis": _argument(c, 1, "axis", -1),
        "negative_slope": c.config.get("negative_slope", c.kwargs.get("alpha", 0.2)),
        "approximate": c.config.get("approximate", c.kwargs.get("approximate", c.version >= 3)),
    }
    return activate(c, c.floats(c.x), {"class_name": name, "config": config})


@operation("Square", "math.square", "square")
def square(c: Context) -> Tensor:
    """x²"""
    x = c.floats(c.x)
    return c.like(x, c.op.Mul(x.value, x.value))


@operation("Clip", "clip_by_value")
def clip(c: Context) -> Tensor:
    """x between two bounds"""
    tensorflow = c.layer.type != "Clip"
    least = _argument(c, 1, "clip_value_min" if tensorflow else "x_min")
    most = _argument(c, 2, "clip_value_max" if tensorflow else "x_max")
    x = c.floats(c.x)
    return c.like(x, c.op.Clip(x.value, float(least), float(most)))


@operation("NotEqual")
def not_equal(c: Context) -> Tensor:
    """Where a value is not a number, as masks are worked out."""
    x, other = c.x, _argument(c, 1, "x2")
    if isinstance(other, bool) or not isinstance(other, int | float):
        raise c.error(f"compares with {str(other)[:40]}, which cannot be converted")
    number = c.op.constant(np.asarray(other, (x.value.dtype or ir.DataType.FLOAT).numpy()))
    return c.like(x, c.op.Not(c.op.Equal(x.value, number)))


@operation("Any")
def any_of(c: Context) -> Tensor:
    """Whether anything along an axis is true."""
    x, axis = c.x, _argument(c, 1, "axis")
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    place, keep = c.axis(axis), bool(_argument(c, 2, "keepdims", False))
    number = c.op.Cast(c.plain(x), to=ir.DataType.FLOAT)
    most = c.op.ReduceMax(number, c.op.constant([place]), keepdims=int(keep))
    dims = [1 if i == place else d for i, d in enumerate(x.dims) if keep or i != place]
    return c.tensor(c.op.Cast(most, to=ir.DataType.BOOL), dims)


def _reduction(op_type: str) -> Callable[[Context], Tensor]:
    def function(c: Context) -> Tensor:
        x = c.floats(c.x)
        axes = _argument(c, 1, "axis")
        axes = list(range(x.rank)) if axes is None else [axes] if isinstance(axes, int) else axes
        places = sorted(c.axis(a, x) for a in axes)
        keep = bool(_argument(c, 2, "keepdims", False))
        moved = x.moved and keep
        where = sorted(x.axis(a) for a in places) if moved else places
        y = getattr(c.op, op_type)(x.value if moved else c.plain(x), c.op.constant(where), keepdims=int(keep))
        dims = [1 if i in places else d for i, d in enumerate(x.dims) if keep or i not in places]
        return c.tensor(y, dims, moved=moved)

    return function


for _name, _key in _words(_REDUCTIONS):
    operation(_name)(_reduction(_key))


@operation("Concatenate", "concat")
def concatenate(c: Context) -> Tensor:
    """Values one behind the other."""
    return concatenated(c, c.inputs, _argument(c, 1, "axis", -1))


@operation("Reshape", "reshape")
def reshape(c: Context) -> Tensor:
    """Other sizes in the same order; the first must be the batch's."""
    target = _argument(c, 1, "newshape" if c.layer.type == "Reshape" else "shape")
    x = c.x
    if not isinstance(target, list) or not target or any(True for _ in tensors(target)):
        raise c.error(f"reshapes to {str(target)[:60]}, which cannot be converted")
    known = all(isinstance(d, int) and d >= 0 for d in (*target[1:], *x.dims[1:]))
    same = not known or np.prod(target[1:], dtype=np.int64) == np.prod(x.dims[1:], dtype=np.int64)  # type: ignore[arg-type]
    if target[0] not in (-1, None, x.dims[0]) or not same:
        raise c.error(f"reshapes {list(x.dims)} to {target}, which is not one example for each of the batch")
    return reshaped(c, x, target[1:], x.dims[0])


@operation("Transpose", "transpose")
def transpose(c: Context) -> Tensor:
    """Other order of the axes."""
    axes = _argument(c, 1, "axes" if c.layer.type == "Transpose" else "perm")
    order = list(range(c.x.rank))[::-1] if axes is None else axes
    if not isinstance(order, list) or sorted(order) != list(range(c.x.rank)):
        raise c.error(f"transposes to {order!r}, which is not an order of {c.x.rank} axes")
    return c.tensor(c.op.Transpose(c.plain(), perm=order), [c.x.dims[i] for i in order])


@operation("ExpandDims", "expand_dims")
def expand_dims(c: Context) -> Tensor:
    """One more axis of size 1."""
    axis = _argument(c, 1, "axis")
    if not isinstance(axis, int) or not -c.x.rank - 1 <= axis <= c.x.rank:
        raise c.error(f"axis {axis!r} is out of range")
    axis %= c.x.rank + 1
    dims: list[Dim] = list(c.x.dims)
    dims.insert(axis, 1)
    return c.tensor(c.op.Unsqueeze(c.plain(), c.op.constant([axis])), dims)


@operation("Squeeze", "squeeze")
def squeeze(c: Context) -> Tensor:
    """Without axes of size 1."""
    axes = _argument(c, 1, "axis")
    axes = [i for i, d in enumerate(c.x.dims) if d == 1] if axes is None else [axes] if isinstance(axes, int) else axes
    places = [c.axis(a) for a in axes]
    if any(c.x.dims[i] != 1 for i in places):
        raise c.error(f"takes away axes {places} of {list(c.x.dims)}, which are not all of size 1")
    return c.tensor(
        c.op.Squeeze(c.plain(), c.op.constant(places)), [d for i, d in enumerate(c.x.dims) if i not in places]
    )


@operation("GetItem", "__operators__.getitem")
def get_item(c: Context) -> Tensor:
    """Slices of whole axes; a single number takes its axis away."""
    parts = _argument(c, 1, "slice_spec" if c.layer.type != "GetItem" else "key")
    parts = parts if isinstance(parts, list) else [parts]
    x, op = c.x, c.op
    if len(parts) > x.rank or any(p is None or isinstance(p, str) for p in parts):
        raise c.error("slices in a way that cannot be converted")
    starts, ends, axes, steps, gone = [], [], [], [], []
    dims: list[Dim | None] = list(x.dims)
    for axis, part in enumerate(parts):
        start, stop, step = _slice(c, part)
        if (start, stop, step) == (None, None, None):
            continue
        if isinstance(part, int):
            gone.append(axis)
        size = dims[axis]
        dims[axis] = len(range(*slice(start, stop, step).indices(size))) if isinstance(size, int) else None
        back = (step or 1) < 0
        starts.append(start if start is not None else -1 if back else 0)
        ends.append(stop if stop is not None else -(2**31) if back else 2**31 - 1)
        axes.append(axis)
        steps.append(step or 1)
    value = c.plain(x)
    if axes:
        value = op.Slice(value, *(op.constant(each) for each in (starts, ends, axes, steps)))
    if gone:
        value = op.Squeeze(value, op.constant(gone))
    return c.tensor(value, [d for axis, d in enumerate(dims) if axis not in gone])


def _slice(c: Context, part: Any) -> tuple[int | None, int | None, int | None]:
    if isinstance(part, int) and not isinstance(part, bool):
        return part, part + 1 if part != -1 else None, 1
    config = part.get("config", part) if isinstance(part, dict) else None
    values: list[Any] = [config.get(n) for n in ("start", "stop", "step")] if isinstance(config, dict) else ["?"]
    if any(v is not None and (isinstance(v, bool) or not isinstance(v, int)) for v in values):
        raise c.error(f"slices by {str(part)[:40]}, which cannot be converted")
    return values[0], values[1], values[2]
