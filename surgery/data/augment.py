"""Augmentation: every epoch sees each image cut, turned and coloured a little otherwise, and examples mixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, model_validator

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Augment", "ColorJitter", "Crop", "ResizedCrop", "paste"]

_Share = Annotated[float, Field(gt=0, le=1)]


class ResizedCrop(BaseModel):
    """A random part of the image, resized to the input's size (Szegedy et al. 2014, section 6).

    Attributes:
        scale: The least and the largest share of the image's area.
        ratio: The least and the largest width by height, drawn evenly by its logarithm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: tuple[_Share, _Share] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _in_order(self) -> ResizedCrop:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name}: the first number is the least, but {low:g} > {high:g}")
        return self

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws ``(left, top, width, height)``; the largest middle part within `ratio` where ten draws do not fit."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = max(min(width, round(height * ratio)), 1), max(min(height, round(width / ratio)), 1)
        return (width - w) // 2, (height - h) // 2, w, h


class Crop(BaseModel):
    """A part of the input's size at a random place of the image, with its proportions kept.

    Attributes:
        padding: Black pixels that are put around the image first.
        resize: The shorter side of the image before, in pixels; by default it just covers the input's size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    padding: NonNegativeInt = 0
    resize: Annotated[int, Field(gt=0)] | None = None


class ColorJitter(BaseModel):
    """Brightness, contrast and saturation, in random order, each by a factor of 1 − a to 1 + a (not below 0).

    Attributes:
        brightness: How far the factor on the pixels goes from 1.
        contrast: How far the factor on the distance from the image's mean gray goes from 1.
        saturation: How far the factor on the distance from each pixel's gray goes from 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0


def _defaults(value: Any) -> Any:
    """``true`` as a short form of what takes settings, ``false`` of its absence."""
    return ({} if value else None) if isinstance(value, bool) else value


def _half(value: Any) -> Any:
    """``true`` as a short form of a probability of one half."""
    return value * 0.5 if isinstance(value, bool) else value


def _all_colors(value: Any) -> Any:
    """A number as a short form of the three."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dict.fromkeys(ColorJitter.model_fields, value)
    return value


_Chance = Annotated[float, Field(ge=0, le=1), BeforeValidator(_half, json_schema_input_type=bool | float)]


class Augment(BaseModel):
    """Random changes to the training examples, in the order of the attributes; validation never sees them.

    All but `mixup` change raw images, before preprocessing.

    Attributes:
        resized_crop: A random part of the image, resized: ``true``, or with `scale` and `ratio`.
        crop: A part at a random place: ``{padding: 4}``, ``{resize: 256}``.
        horizontal_flip: The probability that left and right are swapped; ``true`` is 0.5.
        vertical_flip: The probability that top and bottom are swapped; ``true`` is 0.5.
        rotate: The largest angle in degrees, either way; what comes in at the corners is black.
        color_jitter: Brightness, contrast and saturation: a number for all three, or one for each.
        erase: The probability that a random rectangle (2 to 33 % of the area) becomes noise (Zhong et al. 2017).
        cutmix: α: a rectangle of another example of the batch is pasted in, its share of the area drawn from
            Beta(α, α); the targets are mixed in proportion (Yun et al. 2019).
        mixup: α: examples and targets are mixed with those of another one of the batch, in a proportion drawn from
            Beta(α, α) (Zhang et al. 2017). With `cutmix`, each batch has one of the two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resized_crop: Annotated[
        ResizedCrop | None, BeforeValidator(_defaults, json_schema_input_type=bool | ResizedCrop | None)
    ] = None
    crop: Crop | None = None
    horizontal_flip: _Chance = 0.0
    vertical_flip: _Chance = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    color_jitter: Annotated[
        ColorJitter | None, BeforeValidator(_all_colors, json_schema_input_type=float | ColorJitter | None)
    ] = None
    erase: _Chance = 0.0
    cutmix: PositiveFloat | None = None
    mixup: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_crop(self) -> Augment:
        if self.crop is not None and self.resized_crop is not None:
            raise ValueError("`crop` and `resized_crop` both cut a part out; take one of them")
        return self

    @property
    def cuts(self) -> bool:
        """Whether it takes the images larger than the input."""
        return self.crop is not None or self.resized_crop is not None

    @property
    def moves(self) -> bool:
        """Whether pixels get other places or are replaced, so that a map of targets would no longer fit."""
        turns = self.horizontal_flip or self.vertical_flip or self.rotate
        return bool(self.cuts or turns or self.erase or self.cutmix)

    @property
    def changes_images(self) -> bool:
        """Whether it changes single images."""
        turns = self.horizontal_flip or self.vertical_flip or self.rotate
        return bool(self.cuts or turns or self.color_jitter or self.erase)

    @property
    def mixes(self) -> bool:
        """Whether it mixes examples, and with them their targets."""
        return self.mixup is not None or self.cutmix is not None

    @property
    def nothing(self) -> bool:
        """Whether it changes nothing."""
        return not self.changes_images and not self.mixes

    def least(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that a whole image should at least have, to be cut to `size` without blur."""
        if self.crop is not None and self.crop.resize is not None:
            return self.crop.resize, self.crop.resize
        factor = 1 / math.sqrt(self.resized_crop.scale[0]) if self.resized_crop is not None else 1.0
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor)

    def image(self, pixels: np.ndarray | Image, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Returns an image changed at random.

        Args:
            pixels: uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, or a Pillow image.
            size: Height and width of what is cut out; without a crop the image keeps its own.
            rng: Draws what is random.
        """
        from PIL import Image

        if isinstance(pixels, np.ndarray) and pixels.shape[2:] == (1,):
            return self.image(pixels[..., 0], size, rng)[..., None]
        image = self._cut(Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels, size, rng)
        if rng.random() < self.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.vertical_flip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.rotate:
            image = image.rotate(rng.uniform(-self.rotate, self.rotate), Image.Resampling.BILINEAR)
        if self.color_jitter is not None:
            image = _jitter(image, self.color_jitter, rng)
        made = np.asarray(image)
        return _erase(made, rng) if rng.random() < self.erase else made

    def _cut(self, image: Image, size: tuple[int, int], rng: np.random.Generator) -> Image:
        from PIL import Image, ImageOps

        bilinear = Image.Resampling.BILINEAR
        height, width = size
        if self.resized_crop is not None:
            left, top, w, h = self.resized_crop.box(image.width, image.height, rng)
            return image.crop((left, top, left + w, top + h)).resize((width, height), bilinear)
        if self.crop is None:
            return image
        padding = self.crop.padding
        short = self.crop.resize
        factor = short / min(image.size) if short else max(width / image.width, height / image.height)
        # Never smaller than what is cut out of it.
        least = max(width - 2 * padding, 1), max(height - 2 * padding, 1)
        w, h = (max(round(side * factor), low) for side, low in zip(image.size, least, strict=True))
        if (w, h) != image.size:
            image = image.resize((w, h), bilinear)
        image = ImageOps.expand(image, padding) if padding else image
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        return image.crop((left, top, left + width, top + height))

    def mixing(self, rng: np.random.Generator) -> tuple[str | None, float]:
        """Draws whether a batch is mixed by ``mixup`` or ``cutmix``, and how much of each example stays."""
        ways = [way for way in ("mixup", "cutmix") if getattr(self, way) is not None]
        if not ways:
            return None, 1.0
        way = ways[int(rng.integers(len(ways)))]
        alpha = getattr(self, way)
        return way, float(rng.beta(alpha, alpha))


def _jitter(image: Image, jitter: ColorJitter, rng: np.random.Generator) -> Image:
    from PIL import ImageEnhance

    changes = [
        (ImageEnhance.Brightness, jitter.brightness),
        (ImageEnhance.Contrast, jitter.contrast),
        (ImageEnhance.Color, jitter.saturation),
    ]
    for index in rng.permutation(len(changes)):
        enhance, most = changes[index]
        factor = rng.uniform(max(0.0, 1 - most), 1 + most)
        if most:
            image = enhance(image).enhance(factor)
    return image


def _erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    box = ResizedCrop(scale=(0.02, 0.33), ratio=(0.3, 3.3)).box(image.shape[1], image.shape[0], rng)
    left, top, width, height = box
    image = image.copy()
    part = image[top : top + height, left : left + width]
    part[...] = rng.integers(0, 256, part.shape, np.uint8)
    return image


def paste(images: np.ndarray, others: np.ndarray, keep: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Pastes a rectangle of each of `others` into its place in `images`, ``[N, H, W, …]``, as CutMix does.

    Args:
        images: What is pasted into; copied.
        others: What is pasted.
        keep: The share of the area that is to stay: the rectangle's sides are √(1 − keep) of the image's.
        rng: Draws its middle; what lies outside the image is cut off.

    Returns:
        The images, and the share that did stay.
    """
    height, width = images.shape[1:3]
    side = math.sqrt(1 - keep)
    middle = int(rng.integers(height)), int(rng.integers(width))
    ends = [
        (max(at - round(side * whole) // 2, 0), min(at + (round(side * whole) + 1) // 2, whole))
        for at, whole in zip(middle, (height, width), strict=True)
    ]
    (top, bottom), (left, right) = ends
    images = images.copy()
    images[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)
