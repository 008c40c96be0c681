"""surgery evaluate"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from surgery.cli.app import Json, ModelFile, Quiet, app, print_json, say
from surgery.cli.train import Data, DeviceOption, SkipBad


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
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 64,
    device: DeviceOption = "auto",
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a model on some data: their test part, or the one that --split says.

    Example: `surgery evaluate trained/model.onnx digits.npz`
    """
    from surgery.cli.data import say_skipped
    from surgery.cli.progress import DecodeProgress
    from surgery.data import open_part
    from surgery.io import load
    from surgery.training.trainer import evaluate as measure

    loaded = load(model)
    with DecodeProgress(quiet or as_json) as progress:
        examples = open_part(data, loaded, split, skip_bad=skip_bad, progress=progress)
    say_skipped(examples.skipped, quiet)
    scores = measure(loaded, examples, loss=loss, output=output_name, batch_size=batch_size, device=device)
    if as_json:
        print_json(
            {
                "model": str(model),
                "data": str(data),
                "split": examples.part,
                **scores.measures,
                "examples": scores.examples,
                "skipped": examples.skipped,
            }
        )
        return
    value = f"{scores.value:.2%}" if scores.metric == "accuracy" else f"{scores.value:.4g}"
    name = scores.metric.replace("_", " ")
    where = f"{scores.examples:,} examples of {data} ({examples.part})"
    say(f"{model} on {where}: {name} {value}, loss {scores.loss:.4g}", quiet)
