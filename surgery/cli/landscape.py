"""surgery landscape"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from surgery.cli.app import Json, ModelFile, Quiet, app, print_json, say
from surgery.cli.train import Data, DeviceOption, SkipBad


@app.command()
def landscape(
    model: ModelFile,
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture; the numbers go next to it, as .npz.")
    ] = Path("landscape.png"),
    points: Annotated[int, typer.Option(help="Along each direction; an odd number.")] = 21,
    span: Annotated[float, typer.Option(help="How far: 1 moves each unit's weights by their own norm.")] = 1.0,
    examples: Annotated[int | None, typer.Option(min=1, help="At most so many examples. [default: all]")] = None,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(help="Which part of the data. [default: test if there is one, else val, else all]"),
    ] = None,
    loss: Annotated[str, typer.Option(help="A loss by name; auto goes by the last activation.")] = "auto",
    output_name: Annotated[
        str | None, typer.Option("--output-name", help="Which output, where the model has several.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the directions, and of which examples.")] = 0,
    device: DeviceOption = "auto",
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw the loss around a trained model, along two random directions: is it a flat valley or a steep one?

    The directions are filter-normalized (Li et al. 2018, arXiv:1712.09913); only trainable weights move.

    Example: `surgery landscape trained/model.onnx digits.npz -o landscape.png`
    """
    from surgery.cli.data import say_skipped
    from surgery.cli.progress import DecodeProgress
    from surgery.data import open_part
    from surgery.errors import SurgeryError
    from surgery.io import load
    from surgery.viewing.landscape import landscape as measure
    from surgery.viewing.landscape import plot_landscape, save_landscape

    silent = quiet or as_json
    numbers = output.with_suffix(".npz")
    if numbers == output:
        raise SurgeryError(f"{output}: is where the numbers go; name the picture, as {output.with_suffix('.png')}")
    loaded = load(model)
    with DecodeProgress(silent) as progress:
        chosen = open_part(data, loaded, split, skip_bad=skip_bad, progress=progress)
    say_skipped(chosen.skipped, quiet)
    with DecodeProgress(silent, "measuring") as progress:
        found = measure(
            loaded,
            chosen,
            points=points,
            span=span,
            examples=examples,
            loss=loss,
            output=output_name,
            batch_size=batch_size,
            seed=seed,
            device=device,
            progress=progress,
        )
    plot_landscape(found, output, model.stem)
    save_landscape(found, numbers)
    if as_json:
        a, b, least = found.lowest
        print_json(
            {
                "picture": str(output),
                "numbers": str(numbers),
                "at": found.at.tolist(),
                "lowest": {"at": [a, b], "loss": least},
                **{name: array.tolist() for name, array in found.measures.items()},
                "examples": found.examples,
                "split": chosen.part,
                "skipped": chosen.skipped,
            }
        )
        return
    say(f"{points}×{points} points on {found.examples:,} examples of {data} ({chosen.part}): {found}", quiet)
    say(f"saved {output} and {numbers}", quiet)
