"""Caffe's fillers: the first values of parameters that no file gives (caffe.proto, FillerParameter)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np

from converters.caffe.caffe_pb2 import FillerParameter

__all__ = ["FILLERS", "fill", "least_rank"]

Shape = tuple[int, ...]


def fill(filler: FillerParameter, shape: Shape, seed: int, name: str) -> np.ndarray:
    """Returns first values for the parameter `name`: the same for the same seed, whatever else is in the net.

    Raises:
        KeyError: Caffe has no such filler.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return FILLERS[filler.type](filler, shape, rng).astype(np.float32, copy=False)


def least_rank(filler: FillerParameter) -> int:
    """How many dimensions a parameter must have for `filler`."""
    if filler.type in ("constant", "uniform") or (filler.type == "gaussian" and filler.sparse < 0):
        return 0
    return 2 if filler.type == "bilinear" else 1


def _constant(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    return np.full(shape, filler.value, np.float32)


def _uniform(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    return _between(filler.min, filler.max, shape, rng)


def _between(low: float, high: float, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def _normal(mean: float, deviation: float, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(deviation) + np.float32(mean)


def _gaussian(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """With ``sparse``, about so many inputs of each unit stay non-zero: each with probability sparse / units."""
    values = _normal(filler.mean, filler.std, shape, rng)
    if filler.sparse >= 0:
        values *= rng.random(shape, np.float32) < filler.sparse / shape[0]
    return values


def _positive_unitball(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Positive, and each unit's weights sum to 1."""
    values = rng.random(shape, np.float32)
    return values / values.sum(axis=tuple(range(1, len(shape))), keepdims=True)


def _fan(filler: FillerParameter, shape: Shape) -> float:
    size = math.prod(shape)
    fan_in = size / shape[0]
    fan_out = size / shape[1] if len(shape) > 1 else size
    return {
        FillerParameter.FAN_IN: fan_in,
        FillerParameter.FAN_OUT: fan_out,
        FillerParameter.AVERAGE: (fan_in + fan_out) / 2,
    }[filler.variance_norm]


def _xavier(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Glorot and Bengio 2010, by default with the fan-in alone: uniform with variance 1 / fan."""
    limit = math.sqrt(3 / _fan(filler, shape))
    return _between(-limit, limit, shape, rng)


def _msra(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """He et al. 2015: Gaussian with variance 2 / fan."""
    return _normal(0, math.sqrt(2 / _fan(filler, shape)), shape, rng)


def _bilinear(filler: FillerParameter, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Every channel is a tent: a Deconvolution with it interpolates bilinearly."""
    height, width = shape[-2:]
    factor = math.ceil(width / 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    rows = 1 - np.abs(np.arange(height) / factor - center)
    columns = 1 - np.abs(np.arange(width) / factor - center)
    return np.broadcast_to(np.outer(rows, columns), shape).copy()


FILLERS: dict[str, Callable[[FillerParameter, Shape, np.random.Generator], np.ndarray]] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
