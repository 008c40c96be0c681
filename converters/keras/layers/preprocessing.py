"""What networks do to their images first, and what only training does to them."""

from __future__ import annotations

import numpy as np

from converters.keras.context import Context, layer
from converters.keras.tensor import Tensor

__all__: list[str] = []

_RANDOM = (
    "RandomFlip RandomRotation RandomZoom RandomTranslation RandomContrast RandomBrightness RandomHue RandomSaturation "
    "RandomHeight RandomWidth RandomShear RandomErasing RandomColorJitter RandomGrayscale RandomSharpness "
    "RandomPosterization RandomPerspective RandomGaussianBlur RandomColorDegeneration RandomInvert "
    "RandomElasticTransform"
)


@layer("Rescaling")
def rescaling(c: Context) -> Tensor:
    """x · scale + offset"""
    x = c.floats(c.x)
    scale, offset = (
        np.asarray(_array(c, name, default), np.float32) for name, default in (("scale", 1.0), ("offset", 0.0))
    )
    if np.any(scale != 1):
        x = c.like(x, c.op.Mul(x.value, c.array("scale", scale, x)))
    if np.any(offset != 0):
        x = c.like(x, c.op.Add(x.value, c.array("offset", offset, x)))
    return x


def _array(c: Context, name: str, default: float) -> np.ndarray:
    value = c.get(name, default)
    if isinstance(value, dict):  # Keras 2 and 3 wrote arrays so
        config = value.get("config")
        value = value.get("value", config.get("value") if isinstance(config, dict) else None)
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise c.error(f"{name} is {value!r} and must be numbers") from error


@layer(*_RANDOM.split())
def augmentation(c: Context) -> Tensor:
    """Nothing at inference."""
    c.note("its augmentation, which only training has, is left out")
    return c.x


@layer("CenterCrop")
def center_crop(c: Context) -> Tensor:
    """The middle of an image that is at least that large."""
    x, dims = c.images(), c.image_dims()
    targets = [c.integer("height"), c.integer("width")]
    starts = []
    for size, target in zip(dims[2:], targets, strict=True):
        if not isinstance(size, int) or size < target:
            raise c.error(f"crops {size} pixels to {target}, which needs images of known and larger size")
        starts.append((size - target) // 2)
    ends = [s + t for s, t in zip(starts, targets, strict=True)]
    op = c.op
    y = op.Slice(x, op.constant(starts), op.constant(ends), op.constant([2, 3]))
    return c.image(y, [*dims[:2], *targets])
