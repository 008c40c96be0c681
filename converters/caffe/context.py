"""What a layer function is given, and the registry of layer functions.

A layer type is one function, registered by its type name; nothing else has to be edited to add one:

    @layer("ReLU6")
    def relu6(c: Context) -> ir.Value:
        return c.op.Clip(c.x, 0.0, 6.0)

It returns the layer's tops. Where a top's shape is not that of the first bottom, it says so with `Context.shaped`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converters.caffe.caffe_pb2 import FillerParameter, LayerParameter, ParamSpec
from converters.caffe.fields import Fields
from converters.context import BaseContext
from converters.options import Dim
from surgery.emit import Emitter
from surgery.errors import SurgeryError
from surgery.marks import set_marks

if TYPE_CHECKING:
    from converters.caffe.build import Builder

__all__ = ["Context", "Dim", "LayerFunction", "find_layer", "known_types", "layer"]

LayerFunction = Callable[["Context"], "ir.Value | Sequence[ir.Value] | None"]

_registry: dict[str, LayerFunction] = {}


def layer(*types: str) -> Callable[[LayerFunction], LayerFunction]:
    """Registers the decorated function for Caffe's layer `types`."""

    def register(function: LayerFunction) -> LayerFunction:
        _registry.update(dict.fromkeys(types, function))
        return function

    return register


def find_layer(type: str) -> LayerFunction | None:
    """Returns the function for a layer type, if there is one."""
    _load()
    return _registry.get(type)


def known_types() -> list[str]:
    """The layer types that can be converted."""
    _load()
    return sorted(_registry)


def _load() -> None:
    from converters.caffe import layers as _  # noqa: F401  (importing registers them)


class Context(BaseContext):
    """One layer at work.

    Attributes:
        layer: Its definition.
        fields: Its definition as plain data, with the fields that only a fork knows; filled where `custom` is given.
        bottoms: What it reads. Each has a shape; a dimension is an int, or a name where any size goes.
        op: Writes operators (`surgery.emit.Emitter`).
        builder: The whole net's state.
    """

    def __init__(self, builder: Builder, layer: LayerParameter, bottoms: list[ir.Value], fields: Fields) -> None:
        self.builder = builder
        self.layer = layer
        self.fields = fields
        self.bottoms = bottoms
        self.op: Emitter = builder.op

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def x(self) -> ir.Value:
        """The first bottom."""
        if not self.bottoms:
            raise self.error("needs a bottom")
        return self.bottoms[0]

    def unknown_dim(self) -> str:
        return self.builder.unknown_dim()

    def error(self, message: str) -> SurgeryError:
        """An error that names the file and this layer."""
        return SurgeryError(f"{self.builder.path}: layer {self.name!r} ({self.layer.type}): {message}")

    def need(self, bottoms: int, tops: int = 1) -> None:
        """Raises unless the layer has so many bottoms and tops."""
        if len(self.bottoms) != bottoms or len(self.layer.top) != tops:
            found = f"{len(self.bottoms)} bottoms and {len(self.layer.top)} tops"
            raise self.error(f"has {found}; it takes {bottoms} and {tops}")

    def is_top(self, value: ir.Value, name: str) -> bool:
        """Whether `value` was first the top `name`, not another name for another layer's."""
        return self.builder.first_top(value) == name

    def need_rank(self, least: int, most: int | None = None, value: ir.Value | None = None) -> None:
        """Raises unless `value` (by default the first bottom) has so many dimensions."""
        rank = self.rank(value)
        if rank < least or (most is not None and rank > most):
            wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
            raise self.error(f"needs a bottom of {wanted} dimensions, and has one of {rank}")

    def axis(self, axis: int, value: ir.Value | None = None, extra: int = 0) -> int:
        """`axis` counted from the front; negative ones count from the end, `extra` axes more than there are."""
        rank = self.rank(value) + extra
        if not -rank <= axis < rank:
            raise self.error(f"axis {axis} is out of range for a bottom with {rank - extra} dimensions")
        return axis % rank

    def size(self, axis: int, value: ir.Value | None = None) -> int:
        """The size of an axis that must be known."""
        self.need_rank(axis + 1, value=value)
        size = self.dims(value)[axis]
        if not isinstance(size, int):
            how = "with `batch`" if self.builder.batch_size(size) else "with `shape`, as 3x224x224"
            raise self.error(f"needs to know the size of axis {axis} of its bottom; give the input's {how}")
        return size

    def parameter(
        self,
        index: int,
        role: str,
        shape: Sequence[int],
        filler: FillerParameter | None = None,
        default: str = "constant",
        value: float = 0.0,
        blob_shape: Sequence[int] | None = None,
    ) -> ir.Value:
        """Returns the parameter that holds blob `index` of the layer: an initializer named ``<layer>.<role>``.

        Its values are the file's, else its filler's. Its multipliers become marks; blobs of one ``param`` name share
        one initializer.

        Args:
            index: Which blob.
            role: What it is: ``weight``, ``bias``, ….
            shape: Its shape here.
            filler: Its filler as the definition has it.
            default: The filler's type where the definition has none, with its `value`.
            value: See `default`.
            blob_shape: Its shape in Caffe, where it is another.
        """
        if filler is None or not filler.ListFields():
            filler = FillerParameter(type=default, value=value)
        return self.builder.parameters.get(
            self, index, role, tuple(shape), filler, tuple(shape if blob_shape is None else blob_shape)
        )

    def constant(self, role: str, data: np.ndarray) -> ir.Value:
        """Returns an initializer ``<layer>.<role>`` that training must not change."""
        value = self.builder.parameters.add(self, role, data)
        set_marks(value, trainable=False)
        return value

    def blob(self, index: int, role: str, shape: Sequence[int]) -> np.ndarray | None:
        """Returns blob `index` of the layer as the file has it, checked against `shape`; None without weights."""
        return self.builder.parameters.blob(self, index, role, tuple(shape))

    def spec(self, index: int) -> ParamSpec:
        """The ``param`` of blob `index`: its multipliers and its shared name."""
        return self.layer.param[index] if index < len(self.layer.param) else ParamSpec()

    def mark(self, parameter: ir.Value, index: int) -> None:
        """Writes the multipliers of blob `index` as marks; a learning rate of 0 is a frozen parameter."""
        spec = self.spec(index)
        if spec.HasField("lr_mult"):
            if spec.lr_mult == 0:
                set_marks(parameter, trainable=False)
            else:
                set_marks(parameter, learning_rate=_decimal(spec.lr_mult))
        if spec.HasField("decay_mult"):
            set_marks(parameter, decay=_decimal(spec.decay_mult))


def _decimal(number: float) -> float:
    """A float32 from a definition as the decimal that was written there."""
    return float(np.format_float_positional(np.float32(number), unique=True)) if math.isfinite(number) else number
