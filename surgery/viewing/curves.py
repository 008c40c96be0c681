"""The curves of a training as a picture."""

from __future__ import annotations

import os

from surgery.errors import SurgeryError
from surgery.training.history import History
from surgery.viewing.figures import new_figure, plain, write_png

__all__ = ["plot"]


def plot(history: History, path: str | os.PathLike[str], title: str = "") -> None:
    """Draws loss, metric and learning rate over the epochs into a PNG file.

    Raises:
        SurgeryError: The history is empty, matplotlib is missing or the file cannot be written.
    """
    if not history:
        raise SurgeryError(f"{path}: there is no finished epoch to draw")
    panels = [key for key in history[0] if key not in ("epoch", "seconds") and not key.startswith("val_")]
    figure = new_figure(3.6 * len(panels), 3.2)
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    for axes, name in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in history[0]:
                axes.plot(epochs, [r[key] for r in history], marker="o", markersize=3, label=label)
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if f"val_{name}" in history[0]:
            axes.legend()
    if title:
        figure.suptitle(plain(title))
    write_png(figure, path)
