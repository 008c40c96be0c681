"""The examples that a classifier is most wrong about, as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from surgery.data import Dataset, InputSpec, input_spec
from surgery.viewing.figures import new_figure, plain, write_png

__all__ = ["most_wrong", "pictures", "plot_wrong"]


def most_wrong(probabilities: np.ndarray, targets: np.ndarray, count: int = 24) -> np.ndarray:
    """Returns the indices of the wrongly classified examples, the least probable true class first, at most `count`.

    Args:
        probabilities: `[N, classes]`.
        targets: `[N]` class numbers.
        count: How many.
    """
    true = probabilities[np.arange(len(targets)), targets]
    wrong = np.flatnonzero(probabilities.argmax(1) != targets)
    return wrong[np.argsort(true[wrong], kind="stable")][:count]


def pictures(data: Dataset, indices: np.ndarray, model: ir.Model) -> list[np.ndarray] | None:
    """Returns what the examples at `indices` show, uint8 `[H, W]` or `[H, W, 3]` each.

    Raw images are shown as they are; an input of numbers is turned back into pixels as the model's preprocessing says.
    None where neither is an image.
    """
    if len(model.graph.inputs) != 1:
        return None
    name = str(model.graph.inputs[0].name)
    rows = data.examples[name] if isinstance(data.examples, Mapping) else data.examples
    if len(rows.shape) < 3:
        return None
    if rows.dtype == np.uint8 and (len(rows.shape) == 3 or rows.shape[-1] in (1, 3)):
        return [np.asarray(rows[int(i)]).squeeze() for i in indices]
    spec = input_spec(model)
    if spec.channels not in (1, 3):
        return None
    prepared, _ = next(data.subset(indices).batches(len(indices)))
    return _pixels(prepared[name] if isinstance(prepared, dict) else prepared, spec)


def _pixels(batch: np.ndarray, spec: InputSpec) -> list[np.ndarray]:
    """Undoes the preprocessing; where that gives no pixels, each image is stretched from black to white."""
    how = spec.how
    images = batch.astype(np.float32)
    if how.layout == "NCHW":
        images = images.transpose(0, 2, 3, 1)
    images = (images * np.asarray(how.std, np.float32) + np.asarray(how.mean, np.float32)) / np.float32(how.scale)
    if how.color == "bgr":
        images = images[..., ::-1]
    if spec.assumed and (images.min() < -1 or images.max() > 256 or images.max() <= 1):
        low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        images = (images - low) * 255 / np.maximum(high - low, 1e-12)
    return [image.squeeze() for image in np.clip(np.round(images), 0, 255).astype(np.uint8)]


def plot_wrong(
    images: Sequence[np.ndarray],
    targets: np.ndarray,
    probabilities: np.ndarray,
    path: str | os.PathLike[str],
    labels: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draws images into a PNG file, each under its true class, the predicted one and that one's probability.

    Args:
        images: uint8 `[H, W]` or `[H, W, 3]` each.
        targets: `[N]`, their class numbers.
        probabilities: `[N, classes]`.
        path: The file.
        labels: The classes' names; their numbers by default.
        title: What stands above it.

    Raises:
        SurgeryError: matplotlib is missing or the file cannot be written.
    """
    columns = max(1, min(8, math.ceil(math.sqrt(1.5 * len(images)))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = new_figure(1.55 * columns, 1.9 * rows + (0.4 if title else 0))
    names = labels if labels is not None else [str(i) for i in range(probabilities.shape[1])]
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, target, scores in zip(figure.axes, images, targets, probabilities, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        best = int(scores.argmax())
        axes.set_title(plain(f"{names[target]}\n→ {names[best]} {scores[best]:.0%}"), fontsize=8)
    if title:
        figure.suptitle(plain(title))
    write_png(figure, path)
