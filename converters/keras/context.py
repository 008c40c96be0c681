"""What a layer function is given, and the registry of layer functions.

A layer is one function, registered by its class's name with the names of its variables; nothing else has to be edited
to add one:

    @layer("ReLU6")
    def relu6(c: Context) -> Tensor:
        return c.like(c.x, c.op.Clip(c.x.value, 0.0, 6.0))

It returns the layer's outputs. Axes and shapes are Keras's everywhere (see `converters.keras.tensor`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.keras.network import Call, Layer
from converters.keras.tensor import Tensor, to_first
from converters.options import Dim
from surgery.emit import Emitter
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from converters.keras.build import Builder

__all__ = [
    "Context",
    "LayerFunction",
    "find_layer",
    "is_known",
    "known_types",
    "layer",
    "operation",
    "tensors",
    "variables",
]

LayerFunction = Callable[["Context"], "Tensor | Sequence[Tensor] | None"]

_MOST_NUMBERS = 2**40  # of one value
_MOST_FILLED = 2**24  # of an array that no file holds

_layers: dict[str, LayerFunction] = {}
_operations: dict[str, LayerFunction] = {}
_variables: dict[str, tuple[str, ...]] = {}


def layer(*types: str, variables: str = "") -> Callable[[LayerFunction], LayerFunction]:
    """Registers the decorated function for Keras's layer `types`.

    Args:
        types: Names of classes.
        variables: The names of their variables in Keras's order, with spaces between: ``kernel bias?use_bias`` where
            the argument ``use_bias``, true where it is not given, says whether there is a bias; ``mean?!mean`` where
            there is none if the argument ``mean`` is given; ``cell/kernel`` where a part of the layer has it.
    """

    def register(function: LayerFunction) -> LayerFunction:
        _layers.update(dict.fromkeys(types, function))
        _variables.update(dict.fromkeys(types, tuple(variables.split())))
        return function

    return register


def operation(*names: str) -> Callable[[LayerFunction], LayerFunction]:
    """Registers the decorated function for functions of ``keras.ops``, by class, and of TensorFlow, by name."""

    def register(function: LayerFunction) -> LayerFunction:
        _operations.update(dict.fromkeys(names, function))
        return function

    return register


def find_layer(layer: Layer) -> LayerFunction | None:
    """Returns the function for a layer, if there is one."""
    _load()
    return _operations.get(layer.type) if layer.operation else _layers.get(layer.type)


def is_known(layer: Layer) -> bool:
    """Whether there is a function for a layer's class."""
    return find_layer(layer) is not None


def known_types() -> list[str]:
    """The classes of layers that can be converted."""
    _load()
    return sorted(_layers)


def variables(layer: Layer) -> list[str]:
    """The names of a layer's variables, in Keras's order."""
    _load()
    names = []
    for entry in _variables.get(layer.type, ()):
        name, _, argument = entry.partition("?")
        absent = argument.startswith("!") and layer.config.get(argument[1:]) is not None
        if not absent and layer.config.get(argument, True):
            names.append(name)
    return names


def _load() -> None:
    from converters.keras import layers as _  # noqa: F401  (importing registers them)


def tensors(data: Any) -> Iterator[Tensor]:
    """All tensors in arguments, in order."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, list | tuple):
        for item in data:
            yield from tensors(item)
    elif isinstance(data, dict):
        for item in data.values():
            yield from tensors(item)


class Context:
    """One use of a layer.

    Attributes:
        builder: The whole conversion's state.
        layer: The layer.
        layer_name: Its name, behind those of the models it is in; its variables' names start with it.
        suffix: What tells this use from the layer's other ones.
        name: Both; its operators' names start with it.
        args: What it is given, tensors and numbers.
        kwargs: The same by name.
        inputs: The tensors it is given, in order.
        op: Writes operators (`surgery.emit.Emitter`).
    """

    def __init__(self, builder: Builder, layer: Layer, name: str, call: Call, suffix: str = "") -> None:
        self.builder = builder
        self.layer = layer
        self.layer_name = name
        self.suffix = suffix
        self.name = name + suffix
        self.args = call.args
        self.kwargs = call.kwargs
        self.inputs = [*tensors(call.args), *tensors(call.kwargs)]
        self.op: Emitter = builder.op

    @property
    def config(self) -> dict[str, Any]:
        """The layer's arguments."""
        return self.layer.config

    @property
    def x(self) -> Tensor:
        """The first input."""
        if not self.inputs:
            raise self.error("has no input")
        return self.inputs[0]

    @property
    def version(self) -> int:
        """Keras's major version."""
        return self.builder.version

    def error(self, message: str) -> SurgeryError:
        """An error that names the file and this layer."""
        return SurgeryError(f"{self.builder.path}: layer {self.name!r} ({self.layer.type}): {message}")

    def note(self, message: str) -> None:
        """Says what the converted model does not have."""
        self.builder.note(f"layer {self.name!r} ({self.layer.type}): {message}")

    # Arguments

    def get(self, name: str, default: Any = None) -> Any:
        """The layer's argument `name`; `default` where it is not given or None."""
        value = self.config.get(name)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, dict):  # Keras 2 wrote some numbers as arrays
            value = value.get("value", value.get("config", {}).get("value"))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{name} is {value!r} and must be a number")
        return float(value)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < least:
            raise self.error(f"{name} is {value!r} and must be a whole number, {least} or more")
        return int(value)

    def integers(self, name: str, count: int, default: Any = None, least: int = 1) -> list[int]:
        """An argument that is one whole number for each of `count` axes, or one for all."""
        value = self.get(name, default)
        values = [value] * count if isinstance(value, int) else value
        right = isinstance(values, list | tuple) and len(values) == count
        if not right or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in values):
            raise self.error(f"{name} is {value!r} and must be {count} whole numbers, {least} or more")
        return list(values)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = str(self.get(name, default)).lower()
        if value not in choices:
            raise self.error(f"{name} is {value!r}; only {', '.join(choices)} can be converted")
        return value

    @property
    def channels_first(self) -> bool:
        """Whether Keras itself has the channels first in this layer."""
        return self.choice("data_format", ("channels_first", "channels_last"), "channels_last") == "channels_first"

    # Values

    def images(self, tensor: Tensor | None = None, rank: int | None = None) -> ir.Value:
        """The value of `tensor` (by default the first input) as [N, C, …], whatever the layer's ``data_format``."""
        tensor = tensor if tensor is not None else self.x
        if rank is not None and tensor.rank != rank:
            raise self.error(f"needs an input of {rank} dimensions, and has one of {tensor.rank}")
        return self.builder.layouts.get(tensor, not self.channels_first)

    def image_dims(self, tensor: Tensor | None = None) -> list[Dim]:
        """The dimensions of what `images` returns."""
        dims = list((tensor if tensor is not None else self.x).dims)
        return dims if self.channels_first else to_first(dims)

    def image(self, value: ir.Value, dims: Sequence[Dim | None]) -> Tensor:
        """What the layer gives where `value` is [N, C, …] with the dimensions `dims`."""
        dims = list(dims)
        if not self.channels_first:
            dims = [dims[0], *dims[2:], dims[1]]
        return self.tensor(value, dims, moved=not self.channels_first)

    def plain(self, tensor: Tensor | None = None) -> ir.Value:
        """The value of `tensor` (by default the first input) in Keras's own layout."""
        return self.builder.layouts.get(tensor if tensor is not None else self.x, False)

    def tensor(self, value: ir.Value, dims: Sequence[Dim | None], *, moved: bool = False) -> Tensor:
        """What the layer gives: `value`, with its shape in Keras's order; None is a dimension of unknown size."""
        known = tuple(self.builder.unknown_dim() if d is None else d for d in dims)
        sizes = [d for d in known if isinstance(d, int)]
        shown = "×".join(str(d) for d in known)
        if any(size <= 0 for size in sizes):
            raise self.error(f"its output would have the shape {shown}: the input is too small")
        if math.prod(sizes) > _MOST_NUMBERS:
            raise self.error(f"its output would have the shape {shown}, more than any machine holds")
        moved = moved and len(known) > 2
        value.shape = ir.Shape(to_first(known) if moved else known)
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        return Tensor(value, known, moved, any(t.masked for t in self.inputs))

    def like(self, tensor: Tensor, value: ir.Value) -> Tensor:
        """What the layer gives where `value` has the shape and layout of `tensor`."""
        return self.tensor(value, tensor.dims, moved=tensor.moved)

    def floats(self, tensor: Tensor) -> Tensor:
        """`tensor` as float32: layers calculate with that whatever they are given."""
        if tensor.value.dtype in (None, ir.DataType.FLOAT):
            return tensor
        return self.like(tensor, self.op.Cast(tensor.value, to=ir.DataType.FLOAT))

    def axis(self, axis: Any, tensor: Tensor | None = None) -> int:
        """`axis` of Keras counted from the front."""
        rank = (tensor if tensor is not None else self.x).rank
        if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
            raise self.error(f"axis {axis!r} is out of range for an input with {rank} dimensions")
        return axis % rank

    def size(self, axis: int, tensor: Tensor | None = None) -> int:
        """The size of an axis of Keras that must be known."""
        tensor = tensor if tensor is not None else self.x
        size = tensor.dims[self.axis(axis, tensor)]
        if not isinstance(size, int):
            raise self.error(
                f"needs to know the size of axis {axis} of its input; give the network's with `shape`, as 224x224x3"
            )
        return size

    def mask_error(self) -> SurgeryError:
        """An error for a layer that would heed a mask."""
        return self.error(
            "would leave out the steps that a mask (of Masking, Embedding with mask_zero, or an argument) hides, which "
            "cannot be converted"
        )

    def no_mask(self) -> None:
        """Raises where an input has a mask, which this layer would heed."""
        if any(t.masked for t in self.inputs):
            raise self.mask_error()

    def reshape(self, value: ir.Value, dims: Sequence[Dim | None], kept: dict[int, int] | None = None) -> ir.Value:
        """Emits a Reshape.

        Args:
            value: What to reshape.
            dims: The new dimensions, in the graph's order.
            kept: For new dimensions that are old ones of unknown size: new axis → old axis.
        """
        kept = kept or {}
        target = [d if isinstance(d, int) else 0 if kept.get(i) == i else -1 for i, d in enumerate(dims)]
        if target.count(-1) <= 1:
            return self.op.Reshape(value, self.op.constant(target))
        free = [i for i, d in enumerate(dims) if not isinstance(d, int) and i not in kept]
        if len(free) > 1:
            raise self.error("has more than one dimension of unknown size; give the network's with `shape`")
        parts = [
            self.op.constant([d])
            if isinstance(d, int)
            else self.op.Shape(value, start=kept[i], end=kept[i] + 1)
            if i in kept
            else self.op.constant([-1])
            for i, d in enumerate(dims)
        ]
        return self.op.Reshape(value, self.op.Concat(*parts, axis=0))

    # Variables

    def has(self, variable: str) -> bool:
        """Whether the layer has the variable."""
        return variable in variables(self.layer)

    def stored_shape(self, variable: str) -> tuple[int, ...] | None:
        """The shape that a variable has in the file, if it is there."""
        array = self.builder.parameters.stored(self.layer, variable)
        return None if array is None else array.shape

    def parameter(
        self,
        variable: str,
        shape: Sequence[int],
        perm: Sequence[int] | None = None,
        reshape: Sequence[int] | None = None,
    ) -> ir.Value:
        """Returns the parameter that holds a variable of the layer: an initializer named ``<layer>/<variable>``.

        Args:
            variable: Its name.
            shape: Its shape in Keras.
            perm: The order of its axes here, where that is another.
            reshape: Its shape after that, where axes are joined or split.
        """
        return self.builder.parameters.get(self, variable, tuple(shape), perm, reshape)

    def computed(
        self,
        variable: str,
        data: Callable[[], np.ndarray],
        axes: dict[int, int],
        *sources: str,
        learning_rate: float = 1.0,
    ) -> ir.Value:
        """Returns the parameter that `data` computes from the layer's variables.

        Args:
            variable: Its name, ``<layer>/<variable>``.
            data: Returns its numbers.
            axes: Which axis of the variable became which of it, for constraints.
            sources: The variables; the first one's constraint and regularizer are the parameter's.
            learning_rate: What its learning rate is to be multiplied by.
        """
        return self.builder.parameters.computed(self, variable, data, axes, sources, learning_rate)

    def stored(self, variable: str, shape: Sequence[int]) -> np.ndarray:
        """The numbers of a variable, checked against `shape`."""
        return self.builder.parameters.read(self, variable, tuple(shape))

    def array(self, role: str, data: Any, tensor: Tensor) -> ir.Value:
        """Returns numbers that broadcast against `tensor` in Keras's axes, laid out as its value is.

        Training must not change them. A single number is a constant like any other.
        """
        array, rank = np.asarray(data, np.float32), tensor.rank
        if array.ndim > rank:
            raise self.error(f"its {role} has {array.ndim} dimensions, and its input {rank}")
        if array.size == 1:
            return self.op.constant(array.reshape(()))
        if tensor.moved:
            array = array.reshape((1,) * (rank - array.ndim) + array.shape)
            array = array.transpose(to_first(range(rank)))
        return self.constant(role, array)

    def filled(self, role: str, shape: Sequence[int], value: float) -> ir.Value:
        """Returns an initializer ``<layer>/<role>`` of one number, which training must not change."""
        if math.prod(shape) > _MOST_FILLED:
            raise self.error(f"its {role} would have {math.prod(shape):,} numbers")
        return self.constant(role, np.full(shape, value, np.float32))

    def constant(self, role: str, data: np.ndarray) -> ir.Value:
        """Returns an initializer ``<layer>/<role>`` that training must not change."""
        return self.builder.parameters.constant(self, role, data)
