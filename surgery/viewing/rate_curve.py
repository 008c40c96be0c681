"""The curve of a learning-rate range test as a picture."""

from __future__ import annotations

import os

from surgery.training.find_lr import RateCurve
from surgery.viewing.figures import new_figure, plain, write_png

__all__ = ["plot"]


def plot(curve: RateCurve, path: str | os.PathLike[str], title: str = "") -> None:
    """Draws the loss over the learning rate into a PNG file, with what is suggested.

    Raises:
        SurgeryError: matplotlib is missing or the file cannot be written.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    marks = [
        (curve.suggestion, "a tenth of the lowest loss's, suggested", "tab:red"),
        (curve.steepest, "steepest descent", "gray"),
    ]
    for rate, words, color in marks:
        if rate is not None:
            axes.axvline(rate, color=color, linestyle="--", linewidth=1, label=f"{rate:.2g}: {words}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    low, lowest = min((loss, place) for place, loss in enumerate(curve.smoothed))
    height = max(curve.smoothed[: lowest + 1]) - low or abs(low) or 1.0
    axes.set_ylim(low - 0.2 * height, low + 1.4 * height)  # and not to where it went in the end
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    if title:
        axes.set_title(plain(title))
    write_png(figure, path)
