"""Where a classifier errs: its confusion matrix, and the examples that it is most wrong about."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Dataset
from surgery.layers import find_output
from surgery.marks import labels
from surgery.viewing.confusion import confusion_matrix, plot_confusion
from surgery.viewing.wrong import most_wrong, pictures, plot_wrong

__all__ = ["probabilities", "write_report"]


def write_report(
    model: ir.Model,
    data: Dataset,
    folder: str | os.PathLike[str],
    *,
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
) -> dict[str, Path]:
    """Draws ``confusion.png`` and, of images, ``wrong.png`` of `model` on `data`.

    Args:
        model: A classifier.
        data: What to measure it on.
        folder: Where to.
        output: The output with the classes, where the model has several.
        batch_size: Examples at a time.
        device: Where to run.

    Returns:
        The files written, by name; none where the targets are not class numbers, one for each example. Where nothing
        is wrong, there is no ``wrong``.

    Raises:
        SurgeryError: matplotlib is missing or a file cannot be written.
    """
    end, folder = find_output(model, output), Path(folder)
    targets = data.targets[str(end.name)] if isinstance(data.targets, dict) else data.targets
    if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 1:
        return {}
    scores = probabilities(model, data, output=output, batch_size=batch_size, device=device)
    if scores.ndim != 2 or scores.shape[1] < 2:
        return {}
    names = labels(model, str(end.name)) or data.labels
    right = int((scores.argmax(1) == targets).sum())
    files = {"confusion": folder / "confusion.png"}
    matrix = confusion_matrix(targets, scores.argmax(1), scores.shape[1])
    plot_confusion(matrix, files["confusion"], names, f"{right:,} of {len(targets):,} right")
    wrong = most_wrong(scores, targets)
    images = pictures(data, wrong, model) if len(wrong) else None
    if images is not None:
        files["wrong"] = folder / "wrong.png"
        plot_wrong(images, targets[wrong], scores[wrong], files["wrong"], names, "most wrong: true → predicted")
    return files


def probabilities(
    model: ir.Model,
    data: Dataset,
    *,
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
) -> np.ndarray:
    """Returns what an output of `model` says of each example, as probabilities `[N, classes, …]`.

    Logits go through a softmax over axis 1, and logarithms of probabilities through the exponential.
    """
    end = str(find_output(model, output).name)
    session = runtime.session(model, runtime.providers(device))
    name = str(model.graph.inputs[0].name)
    feeds = (x if isinstance(x, dict) else {name: x} for x, _ in data.batches(batch_size))
    found = np.concatenate([session.run([end], feed)[0] for feed in feeds]).astype(np.float32)
    while found.ndim > 2 and found.shape[-1] == 1:
        found = found[..., 0]
    if found.min() >= 0 and np.allclose(found.sum(1), 1, atol=1e-3):
        return found
    found = np.exp(found - found.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)
