"""The confusion matrix as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from surgery.viewing.figures import new_figure, plain, write_png

__all__ = ["confusion_matrix", "plot_confusion"]

_LEGIBLE = 30  # so many classes' names and numbers can be read


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns how often examples of each class (rows) were predicted as each (columns), `[classes, classes]`."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def plot_confusion(
    matrix: np.ndarray, path: str | os.PathLike[str], labels: Sequence[str] | None = None, title: str = ""
) -> None:
    """Draws a confusion matrix into a PNG file; colours are shares of each row, numbers are counts.

    Args:
        matrix: From `confusion_matrix`.
        path: The file.
        labels: The classes' names; their numbers by default.
        title: What stands above it.

    Raises:
        SurgeryError: matplotlib is missing or the file cannot be written.
    """
    classes = len(matrix)
    names = [str(i) for i in range(classes)] if labels is None else [plain(_short(name)) for name in labels]
    side = max(4, 2.4 + 0.42 * min(classes, _LEGIBLE))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= _LEGIBLE:
        axes.set_xticks(range(classes), names, rotation=0 if max(map(len, names)) <= 2 else 90)
        axes.set_yticks(range(classes), names)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=7)
    if title:
        axes.set_title(plain(title))
    write_png(figure, path)


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
