"""surgery verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from surgery.cli.app import Json, Quiet, app, print_json, say


@app.command()
def verify(
    old: Annotated[Path, typer.Argument(metavar="OLD.onnx", help="A model.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW.onnx", help="What should compute the same.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A .npz file or a folder of images, prepared as each model says; or a .npz with an array for each "
            "input, by its name. [default: random numbers]"
        ),
    ] = None,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(help="Which part of the data. [default: test if there is one, else val, else all]"),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="How many examples, at most.")] = 64,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[INPUT=]8x3x224x224",
            help="The shape of a random input, where the model leaves it open; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    rtol: Annotated[float, typer.Option(min=0, help="Relative difference that is allowed.")] = 1e-3,
    atol: Annotated[float, typer.Option(min=0, help="Absolute difference that is allowed on top of it.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 16,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run two models on the same examples and compare their outputs.

    Exits with 0 if they agree within the tolerance, 1 if not, 2 if they cannot be compared.

    Example: `surgery verify lenet.onnx folded.onnx --data digits.npz`
    """
    from surgery.io import load
    from surgery.verification import read_examples, verify_models

    models = load(old), load(new)
    inputs = read_examples(models, data, split, shape or [], examples, seed)
    found = verify_models(models, inputs, rtol=rtol, atol=atol, batch_size=batch_size)
    same = all(output.same for output in found)
    count = min(len(array) for array in inputs[0].values())
    if as_json:
        print_json(
            {
                "old": str(old),
                "new": str(new),
                "data": None if data is None else str(data),
                "examples": count,
                "rtol": rtol,
                "atol": atol,
                "same": same,
                "outputs": [output.as_data() for output in found],
            }
        )
    else:
        for output in found:
            say(str(output), quiet)
        where = f"{count} examples of {data}" if data is not None else f"{count} random examples (seed {seed})"
        say(f"{'the same' if same else 'different'} on {where}, tolerance {rtol:g} relative + {atol:g}", quiet)
    if not same:
        raise typer.Exit(1)
