"""Pictures: matplotlib's figures without its global state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from surgery.io import replacing

__all__ = ["new_figure", "plain", "write_png"]


def new_figure(width: float, height: float) -> Any:
    """Returns an empty `matplotlib.figure.Figure` of that size in inches, whose parts are laid out without overlap.

    Raises:
        SurgeryError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SurgeryError(
            f"plots need matplotlib ({error}); install it with: pip install 'onnx-surgery[train]'"
        ) from error
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def plain(text: str) -> str:
    """Text that may be anything, as names of classes: between dollar signs matplotlib would read a formula."""
    return text.replace("$", r"\$")


def write_png(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure into a PNG file.

    Raises:
        SurgeryError: The file cannot be written.
    """
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
