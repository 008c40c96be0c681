"""What the verbs that read data tell about it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import typer

from surgery.data import Dataset
from surgery.layers import find_output
from surgery.marks import Preprocessing, labels
from surgery.training.settings import TrainSettings

__all__ = ["data_notes", "say_assumed", "say_skipped"]


def say_skipped(files: tuple[str, ...], quiet: bool) -> None:
    """Names the files that were left out, the first few of them, on standard error, unless `quiet`."""
    if not files or quiet:
        return
    some = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    count = f"{len(files)} images that do" if len(files) > 1 else "1 image that does"
    typer.echo(f"surgery: skipped {count} not decode: {some}", err=True)


def say_assumed(data: Dataset, model: ir.Model, quiet: bool) -> None:
    """Says on standard error, unless `quiet`, what of data to measure `model` on is assumed: their preprocessing, and
    which of its classes theirs are where the names differ."""
    notes = _preprocessing_notes(data)
    output = next((str(o.name) for o in model.graph.outputs if labels(model, str(o.name))), "")
    known, names = labels(model, output), data.labels
    strange = [name for name in names if name not in known] if known and names else []
    if strange and names and list(names) not in [labels(model, str(o.name)) for o in model.graph.outputs]:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        notes.append(
            f"classes: output {output!r} has no label {strange[0]!r}; the data's ({some}) are taken in their own order"
        )
    for note in notes if not quiet else ():
        typer.echo(f"surgery: {note}", err=True)


def _preprocessing_notes(data: Dataset) -> list[str]:
    return [
        f"preprocessing: {describe(how)} (assumed; the pass set_preprocessing says otherwise)"
        for how in data.assumed.values()
    ]


def data_notes(
    data: Dataset, held: Dataset | None, model: ir.Model, settings: TrainSettings, validation: float | None
) -> list[str]:
    """What to know before `model` is trained on `data`, a line each.

    Args:
        data: What is trained on.
        held: The validation part that the data bring.
        model: The model.
        settings: How to train.
        validation: The share to split off that the command line says, which goes before `held`.
    """
    notes = _preprocessing_notes(data)
    if held is not None and validation is None and settings.validation:
        notes.append(
            f"validation: {settings.validation:g} is not used, as the data bring {len(held):,} examples to watch; "
            "--validation splits some off instead"
        )
    if settings.metrics and not settings.validation and (held is None or validation is not None):
        notes.append(
            f"metrics: {', '.join(settings.metrics)} left out, as they are of examples to watch and there are none; "
            "--validation 0.2 splits some off"
        )
    targets = data.targets
    if not isinstance(targets, dict) and np.issubdtype(targets.dtype, np.integer) and targets.ndim == 1:
        output = find_output(model, settings.output)
        units = output.shape[1] if output.shape is not None and len(output.shape) == 2 else None
        classes = len(np.unique(targets))
        if isinstance(units, int) and 1 < units > classes:
            notes.append(
                f"classes: the data have examples of {classes}, output {output.name!r} has {units} units; "
                f"replace_head: {{units: {classes}}} gives it as many"
            )
    return notes


def describe(how: Preprocessing) -> str:
    """Preprocessing of assumed form in words: colour, layout and scale."""
    color = how.color if how.color == "gray" else how.color.upper()
    scale = "pixels as they are" if how.scale == 1 else f"pixels / {1 / how.scale:g}"
    return f"{color}, {how.layout}, {scale}"
