"""Where a classifier errs: its confusion matrix, and the examples that it is most wrong about."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from surgery import runtime
from surgery.data import Dataset
from surgery.training.losses import Objective
from surgery.training.measure import examine
from surgery.training.metrics import Predictions
from surgery.viewing.confusion import confusion_matrix, plot_confusion
from surgery.viewing.wrong import most_wrong, pictures, plot_wrong

__all__ = ["write_report"]


def write_report(
    model: ir.Model,
    data: Dataset | None,
    folder: str | os.PathLike[str],
    *,
    loss: Objective = "auto",
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
) -> dict[str, Path]:
    """Draws ``confusion.png`` and, of images, ``wrong.png`` of `model` on `data`.

    What an earlier report left of these is replaced, or removed where there is nothing to show.

    Args:
        model: A classifier.
        data: What to measure it on; None where there is nothing.
        folder: Where to.
        loss: As `surgery.evaluate` takes it.
        output: The output, where the model has several and `loss` names none; of several that are measured, each has
            files of its own, with its name in front.
        batch_size: Examples at a time.
        device: Where to run.

    Returns:
        The files written, by name; none of outputs that do not predict one of several classes.

    Raises:
        SurgeryError: matplotlib is missing or a file cannot be written.
    """
    if data is None:
        for name in ("confusion", "wrong"):
            (Path(folder) / f"{name}.png").unlink(missing_ok=True)
        return {}
    _, found = examine(model, data, loss=loss, output=output, batch_size=batch_size, device=device)
    files: dict[str, Path] = {}
    for name, predictions in found.items():
        prefix = "" if len(found) == 1 else f"{name.replace('/', '_')}-"
        paths = {f"{prefix}{key}": Path(folder) / f"{prefix}{key}.png" for key in ("confusion", "wrong")}
        drawn = _draw(model, data, predictions, *paths.values())
        files |= {key: path for key, path in paths.items() if path in drawn}
        for path in paths.values():
            if path not in drawn:
                path.unlink(missing_ok=True)
    return files


def _draw(model: ir.Model, data: Dataset, found: Predictions, confusion: Path, wrong: Path) -> list[Path]:
    if found.kind != "classes" or found.scores is None:
        return []
    right = int((found.y_pred == found.y_true).sum())
    matrix = confusion_matrix(found.y_true, found.y_pred, found.scores.shape[1])
    plot_confusion(matrix, confusion, found.names, f"{right:,} of {len(found.y_true):,} right")
    worst = most_wrong(found.scores, found.y_true)
    one_each = len(found.indices) == len(data)  # not so of maps, where each pixel counts
    images = pictures(data, found.indices[worst], model) if len(worst) and one_each else None
    if images is None:
        return [confusion]
    scores, true = found.scores[worst], found.y_true[worst]
    plot_wrong(images, true, scores, wrong, found.names, "most wrong: true → predicted")
    return [confusion, wrong]
