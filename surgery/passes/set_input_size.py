"""Set the size of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import onnx_ir as ir
from pydantic import Field, NonNegativeInt

from surgery.errors import SurgeryError
from surgery.io import infer_shapes
from surgery.layers import Layer, find_image, layers
from surgery.marks import Preprocessing, guess_layout, preprocessing, set_preprocessing
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.dense import layer_stem, read_units, write_units
from surgery.passes.initializers import Initializer, initialize
from surgery.passes.resizing import set_shape

__all__ = ["SetInputSize"]

Pixels = Annotated[int, Field(gt=0, le=2**20)]


@pass_dataclass
class SetInputSize(Pass):
    """Sets the height and width of the images that a network takes, and all shapes behind.

    A fully connected layer behind a map fits one size only; it gets new weights if `new_weights` says so, otherwise
    that is an error. Idempotent.

    Attributes:
        size: Height and width in pixels; one number for both.
        input: The input; needed where several have four axes.
        new_weights: Whether fully connected layers that no longer fit get new weights, for as many units as before.
        initializer: Of the new weights, as in `replace_head`.
        seed: Of the new weights.
    """

    shorthand: ClassVar[str | None] = "size"

    size: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    input: str | None = None
    new_weights: bool = False
    initializer: Initializer = "glorot"
    seed: NonNegativeInt = 0

    def edit(self, model: ir.Model) -> Iterator[Change]:
        value = find_image(model, self.input)
        assert value.shape is not None
        how = preprocessing(model, str(value.name))
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        axis = 1 if (how.layout if how is not None else guess_layout(value.shape)) == "NHWC" else 2
        dims = [*value.shape[:axis], height, width, *value.shape[axis + 2 :]]
        if how is not None and set_preprocessing(
            model, str(value.name), _of_size(how, (height, width), value.shape[axis : axis + 2])
        ):
            yield Change(str(value.name), f"images are made {height} × {width}")
        if list(value.shape) == dims:
            return
        yield Change(str(value.name), f"{value.shape} → {ir.Shape(dims)}")
        set_shape(model, {value: ir.Shape(dims)})
        infer_shapes(model, strict=False)
        for layer in layers(model):
            if any(isinstance(d, int) and d < 1 for d in layer.output.shape or ()):
                raise SurgeryError(
                    f"images are too small: {layer.op_type} {layer.name!r} would give {layer.output.shape}"
                )
            if layer.op_type in ("Gemm", "MatMul") and (weight := layer.parameters.get("weight")) is not None:
                given = _width(layer.node.inputs[0])
                if given is not None and len(weight.shape or ()) == 2:
                    yield from self._fit(model, layer, given)

    def _fit(self, model: ir.Model, layer: Layer, given: int) -> Iterator[Change]:
        """Gives a layer new weights where it takes another number of inputs than it is given."""
        rows, bias = read_units(layer)
        if given == rows.shape[1]:
            return
        if not self.new_weights:
            raise SurgeryError(
                f"{layer.op_type} {layer.name!r} takes {rows.shape[1]} inputs and would be given {given}; say "
                "`new_weights: true`, or apply to_fully_convolutional first"
            )
        name = layer_stem(layer)
        new = initialize(self.initializer, (len(rows), given), self.seed, f"{name}.weight")
        write_units(layer, new, bias, name, keep_marks=True)
        infer_shapes(model, strict=False)
        yield Change(layer.name, f"new weights for {given} inputs instead of {rows.shape[1]}")


def _of_size(how: Preprocessing, size: tuple[int, int], before: Sequence[Any]) -> Preprocessing:
    """The same preprocessing for another size: what images are resized to first changes in proportion."""
    old, resize = how.size or before, None
    if how.least is not None and all(isinstance(d, int) for d in old):
        height, width = (max(round(n * new / d), new) for n, new, d in zip(how.least, size, old, strict=True))
        resize = max(height, width) if isinstance(how.resize, int) else (height, width)
    return dataclasses.replace(how, size=size, resize=resize)


def _width(value: ir.Value | None) -> int | None:
    """How long the rows of `value` are, where that is known."""
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
