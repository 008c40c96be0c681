"""surgery evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from surgery.cli.app import Json, ModelFile, Quiet, app, print_json, say
from surgery.cli.train import Data, DeviceOption, Memory, SkipBad


@app.command()
def evaluate(
    model: ModelFile,
    data: Data,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(help="Which part of the data. [default: test if there is one, else val, else all]"),
    ] = None,
    loss: Annotated[str, typer.Option(help="A loss by name; auto goes by the last activation.")] = "auto",
    output_name: Annotated[
        str | None, typer.Option("--output-name", help="Which output, where the model has several.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", "-m", help="What to measure beside: f1,auc,top_5,recall_per_class …")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", "-p", help="A CSV file for what is predicted of each example.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 64,
    device: DeviceOption = "auto",
    skip_bad: SkipBad = False,
    memory: Memory = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a model on some data: their test part, or the one that --split says.

    Example: `surgery evaluate trained/model.onnx digits.npz --metrics f1,auc`
    """
    from surgery.cli.data import say_assumed, say_skipped
    from surgery.cli.predictions import write_predictions
    from surgery.cli.progress import DecodeProgress
    from surgery.data import open_part
    from surgery.io import load, replacing
    from surgery.training.measure import evaluate as measure
    from surgery.training.measure import examine
    from surgery.training.metrics import check_metrics

    names = [name.strip() for name in metrics.split(",")] if metrics else []
    check_metrics(names)
    loaded = load(model)
    with DecodeProgress(quiet or as_json) as progress:
        examples = open_part(data, loaded, split, skip_bad=skip_bad, progress=progress, memory=round(memory * 10**9))
    say_skipped(examples.skipped, quiet)
    say_assumed(examples, loaded, quiet)
    how: Any = {"loss": loss, "output": output_name, "batch_size": batch_size, "device": device, "metrics": names}
    if predictions is None:
        scores = measure(loaded, examples, **how)
    else:
        with replacing(predictions) as temporary:  # begun first: what cannot be written is told at once
            scores, found = examine(loaded, examples, **how)
            write_predictions(temporary, found, examples)
    if as_json:
        print_json(
            {
                "model": str(model),
                "data": str(data),
                "split": examples.part,
                **scores.measures,
                "examples": scores.examples,
                "skipped": examples.skipped,
                **({"predictions": str(predictions)} if predictions is not None else {}),
            }
        )
        return
    where = f"{scores.examples:,} examples of {data} ({examples.part})"
    say(f"{model} on {where}: {_shown(scores.metric, scores.value)}, loss {scores.loss:.4g}", quiet)
    for name, value in scores.measures.items():
        if name not in ("loss", scores.metric):
            say(f"  {_shown(name, value)}", quiet)
    if predictions is not None:
        say(f"predictions: {predictions}", quiet)


def _shown(name: str, value: float) -> str:
    """A measure in words."""
    return f"{name.replace('_', ' ')} {f'{value:.2%}' if name.endswith('accuracy') else f'{value:.4g}'}"
