"""Say how images become a network's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field, FiniteFloat, PositiveInt

from surgery.errors import SurgeryError
from surgery.layers import find_image
from surgery.marks import Preprocessing, guess_layout, preprocessing, set_preprocessing
from surgery.passes.base import Change, Pass, pass_dataclass

__all__ = ["SetPreprocessing"]

# As these projects' pretrained networks were trained. Torchvision: the models' page, "Using the pre-trained models";
# Caffe: the mean of ILSVRC 2012 in its `ilsvrc_2012_mean.npy`; TensorFlow: Keras' `imagenet_utils`, mode "tf".
_PRESETS = {
    "torchvision": Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "caffe": Preprocessing(color="bgr", mean=(104.00699, 116.66877, 122.67892)),
    "tf": Preprocessing(scale=1 / 127.5, mean=(1.0,)),
    "unit": Preprocessing(scale=1 / 255),
}
_SHORTER_SIDE = {224: 256, 299: 342}  # to which torchvision's evaluation resizes, by the input's size
_Numbers = Annotated[tuple[FiniteFloat, ...], Field(strict=False, min_length=1)]  # of a recipe, a list


@pass_dataclass
class SetPreprocessing(Pass):
    """Says how raw images become an input: ``(pixels · scale − mean) / std``, channels in the order of `color`.

    Training, evaluation and prediction on images do so, and the file keeps it. The whole entry is set: a key that is
    not given is that of `preset`, else RGB (gray where there is one channel), the layout that the input's shape shows,
    any size, scale 1, mean 0, std 1. Idempotent.

    Attributes:
        preset: ``torchvision``, ``caffe`` (BGR minus the mean), ``tf`` (−1 to 1) or ``unit`` (0 to 1).
        color: Channel order of the input: ``rgb``, ``bgr`` or ``gray``.
        layout: Axis order of the input: ``NCHW`` or ``NHWC``.
        size: Height and width in pixels, for an input of any size.
        scale: Factor on pixel values of 0 to 255, applied first.
        mean: Subtracted after scaling; one number, or one for each channel.
        std: Divided by, last; one number, or one for each channel.
        resize: What images are resized to before the input's size is cut out of their middle: the shorter side in
            pixels, or height and width whatever the proportions; by default just enough to cover the size, and with
            ``torchvision`` 256 for 224 pixels and 342 for 299, as its networks are evaluated.
        input: The input; needed where several have four axes.
    """

    shorthand: ClassVar[str | None] = "preset"

    preset: Literal["torchvision", "caffe", "tf", "unit"] | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None
    scale: FiniteFloat | None = None
    mean: _Numbers | None = None
    std: Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(strict=False, min_length=1)] | None = None
    resize: PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None
    input: str | None = None

    def edit(self, model: ir.Model) -> Iterator[Change]:
        value = find_image(model, self.input)
        assert value.shape is not None
        fields = [field.name for field in dataclasses.fields(Preprocessing)]
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        layout = self.layout or guess_layout(value.shape)
        channels = value.shape[1 if layout == "NCHW" else 3]
        base = _PRESETS[self.preset] if self.preset else Preprocessing(color="gray" if channels == 1 else "rgb")
        how = dataclasses.replace(base, **{"layout": layout, **given})
        if self.preset == "torchvision" and self.resize is None:
            height, width = how.size or (value.shape[2:] if layout == "NCHW" else value.shape[1:3])
            how = dataclasses.replace(
                how, resize=next((s for n, s in _SHORTER_SIDE.items() if height == width == n), None)
            )
        _check(value, how, channels)
        before = preprocessing(model, str(value.name))
        if set_preprocessing(model, str(value.name), how):
            yield Change(str(value.name), f"{how}" if before is None else f"{before} → {how}")


def _check(value: ir.Value, how: Preprocessing, channels: object) -> None:
    """Raises an error where `how` cannot give what `value` takes."""
    assert value.shape is not None
    made = 1 if how.color == "gray" else 3
    if isinstance(channels, int) and channels != made:
        raise SurgeryError(
            f"input {value.name!r} {value.shape} has {channels} channels as {how.layout}, but {how.color} images {made}"
        )
    for name, numbers in (("mean", how.mean), ("std", how.std)):
        if len(numbers) not in (1, made):
            raise SurgeryError(f"{name} has {len(numbers)} numbers, but {how.color} images have {made} channels")
    sizes = value.shape[2:] if how.layout == "NCHW" else value.shape[1:3]
    cut = how.size or tuple(sizes)
    if how.least is not None and any(isinstance(d, int) and d > s for d, s in zip(cut, how.least, strict=True)):
        raise SurgeryError(f"resize {how.resize} leaves images smaller than the input, {cut[0]} × {cut[1]}")
    if how.size is not None and any(isinstance(d, int) and d != s for d, s in zip(sizes, how.size, strict=True)):
        raise SurgeryError(
            f"size {how.size[0]} × {how.size[1]} does not fit input {value.name!r} {value.shape}; set_input_size "
            "changes the input"
        )
