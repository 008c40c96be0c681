"""Draw the parameters of layers anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import NonNegativeInt

from surgery.errors import SurgeryError
from surgery.layers import Layer
from surgery.passes.base import Change, Pass, pass_dataclass
from surgery.passes.editing import constant_of
from surgery.passes.initializers import Initializer, initialize
from surgery.passes.units import incoming_weights
from surgery.selectors import Selector, select

__all__ = ["Reinitialize"]

# What other parameters than weights start at; 0.25 is PReLU's (He et al. 2015, section 2.1).
_STARTS = {"scale": 1.0, "var": 1.0, "slope": 0.25}


@pass_dataclass
class Reinitialize(Pass):
    """Gives layers random weights, as before any training; biases become 0, normalizations what they start as.

    Idempotent: the same seed gives the same numbers. Marks stay.

    Attributes:
        layers: Which layers; those of them that have no parameters are left as they are.
        initializer: Of weights: glorot (uniform; Glorot and Bengio 2010), he (normal; He et al. 2015), zeros, or
            glorot_uniform, glorot_normal, he_uniform, he_normal.
        seed: Of the random numbers.
    """

    shorthand: ClassVar[str | None] = "layers"

    layers: Selector
    initializer: Initializer = "glorot"
    seed: NonNegativeInt = 0

    def edit(self, model: ir.Model) -> Iterator[Change]:
        owners = [layer for layer in select(model, self.layers) if layer.parameters]
        if not owners:
            raise SurgeryError(f"reinitialize: none of the selected layers has parameters ({self.layers!r})")
        for layer in owners:
            changed = [parameter for parameter, array in self._new(layer).items() if _set(parameter, array)]
            if changed:
                yield Change(layer.name, "anew: " + ", ".join(str(p.name) for p in changed))

    def _new(self, layer: Layer) -> dict[ir.Value, np.ndarray]:
        result = {}
        axes = dict(incoming_weights(layer)) if any("weight" in role for role in layer.parameters) else {}
        for role, parameter in layer.parameters.items():
            assert parameter.shape is not None
            shape = parameter.shape.numpy()
            if parameter not in axes:
                result[parameter] = np.full(shape, _STARTS.get(role.rstrip("_"), 0.0))
                continue
            fan_in = math.prod(shape[axis] for axis in axes[parameter])
            receptive = math.prod(shape[2:]) if layer.op_type in ("Conv", "ConvTranspose") else 1
            fan_out = math.prod(shape) // fan_in * receptive
            name = str(parameter.name)
            result[parameter] = initialize(self.initializer, shape, self.seed, name, (fan_in, fan_out))
        return result


def _set(parameter: ir.Value, array: np.ndarray) -> bool:
    """Sets the contents of an initializer; whether that changed anything."""
    dtype = parameter.dtype or ir.DataType.FLOAT
    data, old = array.astype(dtype.numpy()), constant_of(parameter)
    if old is not None and np.array_equal(data, old):
        return False
    parameter.const_value = ir.Tensor(data, dtype=dtype, name=parameter.name)
    return True
