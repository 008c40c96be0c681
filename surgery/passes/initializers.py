"""The first values of new parameters."""

from __future__ import annotations

import math
import zlib
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from surgery.errors import SurgeryError

__all__ = ["Initializer", "Units", "initialize"]

_MOST = 2**29  # numbers in a weight: 2 GB, which is also the most that a tensor in an ONNX file may have

Initializer = Literal["glorot", "glorot_uniform", "glorot_normal", "he", "he_uniform", "he_normal", "zeros"]
Units = Annotated[int, Field(gt=0, le=_MOST)]


def initialize(
    kind: Initializer, shape: tuple[int, ...], seed: int, name: str, fans: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the first values of a weight.

    glorot, glorot_uniform: uniform over ±√(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16).
    glorot_normal: normal with a variance of 2 / (fan_in + fan_out) (equation 12).
    he, he_normal: normal with a variance of 2 / fan_in (He et al. 2015, equation 10).
    he_uniform: uniform with that variance, over ±√(6 / fan_in).
    zeros: zeros.

    Args:
        kind: Which.
        shape: Its shape.
        seed: Of the random numbers.
        name: The parameter's name, so that parameters of one seed differ.
        fans: fan_in and fan_out; by default those of the shape `[units, inputs, *kernel]`: inputs and units, each
            times the kernel's size.

    Raises:
        SurgeryError: It would have more numbers than a tensor may.
    """
    if math.prod(shape) > _MOST:
        raise SurgeryError(
            f"{name!r} of shape {'×'.join(map(str, shape))} would have {math.prod(shape):,} numbers; a weight may have "
            f"{_MOST:,}: ask for fewer units"
        )
    if kind == "zeros":
        return np.zeros(shape)
    receptive = math.prod(shape[2:])
    fan_in, fan_out = fans or (shape[1] * receptive, shape[0] * receptive)
    variance = 2 / (fan_in + fan_out) if kind.startswith("glorot") else 2 / fan_in
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if kind in ("glorot", "glorot_uniform", "he_uniform"):
        limit = math.sqrt(3 * variance)
        return random.uniform(-limit, limit, shape)
    return random.normal(0, math.sqrt(variance), shape)
