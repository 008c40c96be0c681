"""From raw images to a network's input, as the model's own metadata says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from surgery.data.rows import Rows
from surgery.errors import SurgeryError
from surgery.marks import Preprocessing, Resize, guess_layout, preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["InputSpec", "Preparer", "enough", "input_spec", "preparer", "require_pillow", "resize", "takes_images"]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a network's input takes.

    Attributes:
        shape: Its dimensions, None for each that may be any; the first is the batch's.
        how: Its preprocessing; the plain one (0–1, RGB) where the model says nothing.
        dtype: Of its numbers.
        assumed: Whether the model says nothing of its preprocessing.
    """

    shape: tuple[int | None, ...]
    how: Preprocessing
    dtype: np.dtype
    assumed: bool = False

    @property
    def channels(self) -> int | None:
        """Colour channels of an image input."""
        axis = 1 if self.how.layout == "NCHW" else 3
        return self.shape[axis] if len(self.shape) == 4 else None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of an image input, in pixels."""
        if len(self.shape) != 4:
            return None
        h, w = self.shape[2:] if self.how.layout == "NCHW" else self.shape[1:3]
        return (h, w) if h is not None and w is not None else self.how.size


def input_spec(model: ir.Model, input: str | None = None) -> InputSpec:
    """Returns what the model's input takes."""
    inputs = [i for i in model.graph.inputs if input is None or i.name == input]
    if len(inputs) != 1 or inputs[0].shape is None:
        raise SurgeryError(f"the model has {len(model.graph.inputs)} inputs; one with a known shape is needed")
    dims = tuple(d if isinstance(d, int) else None for d in inputs[0].shape)
    dtype = np.dtype(inputs[0].dtype.numpy()) if inputs[0].dtype is not None else np.dtype(np.float32)
    how = preprocessing(model, str(inputs[0].name))
    return InputSpec((None, *dims[1:]), how or _plain(dims, dtype), dtype, how is None)


def _plain(dims: tuple[int | None, ...], dtype: np.dtype) -> Preprocessing:
    """The preprocessing of a model that says nothing of it."""
    layout = guess_layout(dims)
    channels = dims[1 if layout == "NCHW" else 3] if len(dims) == 4 else None
    scale = 1.0 if np.issubdtype(dtype, np.integer) else 1 / 255
    return Preprocessing(color="gray" if channels == 1 else "rgb", layout=layout, scale=scale)


def require_pillow() -> None:
    """Checks that Pillow is there.

    Raises:
        SurgeryError: It is not.
    """
    try:
        from PIL import Image, ImageOps  # noqa: F401
    except ImportError as error:
        raise SurgeryError(
            f"images need Pillow ({error}); install it with: pip install 'onnx-surgery[train]'"
        ) from error


def resize(image: np.ndarray | Image, size: tuple[int, int], first: Resize = None) -> np.ndarray:
    """Resizes an image and cuts `size` out of its middle.

    Args:
        image: uint8 `[H, W]` or `[H, W, C]`, or a Pillow image.
        size: Height and width of what is returned.
        first: What it is resized to before the cut; see `surgery.marks.Preprocessing`.

    Raises:
        SurgeryError: Pillow is missing.
    """
    require_pillow()
    from PIL import Image, ImageOps

    bilinear = Image.Resampling.BILINEAR
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if first is None:
        return np.asarray(ImageOps.fit(picture, (size[1], size[0]), bilinear))
    width, height = picture.size
    if isinstance(first, int):  # the longer side is rounded down, as in torchvision
        short = min(height, width)
        first = first * height // short, first * width // short
    top, left = round((first[0] - size[0]) / 2), round((first[1] - size[1]) / 2)
    resized = picture.resize((first[1], first[0]), bilinear) if first != (height, width) else picture
    return np.asarray(resized.crop((left, top, left + size[1], top + size[0])))


def enough(size: tuple[int, int], first: Resize = None) -> tuple[int, int]:
    """Returns the height and width that an image needs so that `resize` makes it of `size` without loss."""
    least = size if first is None else (first, first) if isinstance(first, int) else first
    return 2 * least[0], 2 * least[1]


def takes_images(examples: Rows, spec: InputSpec) -> bool:
    """Whether `examples` are raw images, and the input takes images."""
    return examples.dtype == np.uint8 and len(examples.shape) in (3, 4) and len(spec.shape) == 4


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns examples of one input into what the input takes.

    Attributes:
        spec: What the input takes.
        shape: Of an example as the input takes it; None for raw images, which are resized, coloured and scaled.
    """

    spec: InputSpec
    shape: tuple[int, ...] | None

    @property
    def images(self) -> bool:
        """Whether the examples are raw images."""
        return self.shape is None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        if self.shape is None:
            return _images(batch, self.spec)
        batch = batch.reshape(len(batch), *self.shape)
        if batch.dtype == np.uint8 and self.spec.dtype == np.float32:
            return np.ascontiguousarray(batch, np.float32) / np.float32(255)
        return np.ascontiguousarray(batch, self.spec.dtype)


def preparer(examples: Rows, spec: InputSpec) -> Preparer:
    """Returns what turns a batch of `examples` into the network's input.

    uint8 arrays `[N, H, W]` or `[N, H, W, C]` (RGB) for an input with four axes are images: resized, coloured, scaled.
    Others are taken as they are (uint8 scaled to 0–1), flattened for a vector input, and reshaped where only dimensions
    of 1 are missing.

    Raises:
        SurgeryError: The examples do not fit the input; the message has both shapes.
    """
    if takes_images(examples, spec):
        _check_images(examples.shape[1:], spec)
        return Preparer(spec, None)
    want, have = spec.shape[1:], examples.shape[1:]
    fits = _fits(have, want)
    flat = want == (math.prod(have),)
    known = tuple(d for d in want if d is not None)
    same = len(known) == len(want) and [d for d in want if d != 1] == [d for d in have if d != 1]
    if not fits and not flat and not same:
        raise SurgeryError(f"examples of shape {list(have)} do not fit the input's {list(want)} ({examples.dtype})")
    return Preparer(spec, have if fits else known)


def _fits(have: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(want) == len(have) and all(w in (None, h) for w, h in zip(want, have, strict=True))


def _check_images(shape: tuple[int, ...], spec: InputSpec) -> None:
    """Raises an error where images of `shape` cannot be made into the input."""
    if len(shape) == 3 and shape[-1] not in (1, 3):
        raise SurgeryError(f"images of shape {list(shape)}: [H, W], [H, W, 1] or [H, W, 3] is needed")
    gray = len(shape) == 2 or shape[-1] == 1
    channels = spec.channels if spec.channels in (1, 3) else 1 if gray else 3
    for name, numbers in (("mean", spec.how.mean), ("std", spec.how.std)):
        if len(numbers) not in (1, channels):
            raise SurgeryError(
                f"the input's preprocessing has a {name} of {len(numbers)} numbers for {channels} channels; mend it "
                "with the pass set_preprocessing"
            )
    least, size = spec.how.least, spec.size
    if least is not None and size is not None and (size[0] > least[0] or size[1] > least[1]):
        raise SurgeryError(
            f"the input's preprocessing resizes images to {spec.how.resize}, which is less than the input takes, "
            f"{size[0]} × {size[1]}; mend it with the pass set_preprocessing"
        )
    height, width = size or shape[:2]
    made = [channels, height, width] if spec.how.layout == "NCHW" else [height, width, channels]
    if not _fits(made, spec.shape[1:]):
        raise SurgeryError(
            f"images of shape {list(shape)} become {made} ({spec.how.layout}), which does not fit the input's "
            f"{list(spec.shape[1:])}; the pass set_preprocessing sets layout, size and colour"
        )


def _images(batch: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 `[N, H, W]` or `[N, H, W, C]` → numbers in the input's layout."""
    how, size = spec.how, spec.size
    if batch.ndim == 4 and batch.shape[-1] == 1:
        batch = batch[..., 0]
    if size is not None and batch.shape[1:3] != size:
        batch = np.stack([resize(image, size, how.resize) for image in batch])
    if batch.ndim == 3:
        batch = batch[..., None]
    if spec.channels == 3 and batch.shape[-1] == 1:
        batch = np.repeat(batch, 3, axis=-1)
    elif spec.channels == 1 and batch.shape[-1] == 3:
        luma = batch.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
        batch = luma[..., None]
    if how.color == "bgr":
        batch = batch[..., ::-1]
    first = how.layout == "NCHW"
    if first:
        batch = batch.transpose(0, 3, 1, 2)
    pixels = np.ascontiguousarray(batch).astype(np.float32)  # moved as bytes, which is faster than as floats
    mean, std = (np.asarray(n, np.float32).reshape((-1, 1, 1) if first else -1) for n in (how.mean, how.std))
    pixels *= np.float32(how.scale)
    if mean.any():
        pixels -= mean
    if (std != 1).any():
        pixels /= std
    return pixels.astype(spec.dtype, copy=False)
