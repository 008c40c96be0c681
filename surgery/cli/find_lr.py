"""surgery find-lr"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import Json, ModelFile, Overrides, Quiet, app, print_json, say
from surgery.cli.train import Data, DeviceOption, SkipBad


@app.command(name="find-lr")
def find_lr(
    model: ModelFile,
    data: Data,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="A recipe whose `train:` part says how.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A PNG file. [default: the model's name, -lr.png, in this folder]"),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the recipe's passes first.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="As in a recipe: sgd, adamw, lion …")] = None,
    lowest: Annotated[
        float | None, typer.Option(help="The first rate. [default: a ten-thousandth of the optimizer's usual one]")
    ] = None,
    highest: Annotated[float | None, typer.Option(help="The last. [default: a thousand times the usual one]")] = None,
    steps: Annotated[int, typer.Option(help="How many rates in between.")] = 100,
    overrides: Overrides = None,
    device: DeviceOption = "auto",
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look for a learning rate: train with growing ones until the loss grows, and draw it. The model stays as it is.

    Example: `surgery find-lr operated.onnx digits.npz --recipe pass.yaml -o lr.png`
    """
    from surgery.cli.data import say_skipped
    from surgery.cli.progress import DecodeProgress
    from surgery.data import open_data
    from surgery.errors import SurgeryError
    from surgery.io import load
    from surgery.recipe import Recipe, apply_recipe, load_recipe
    from surgery.training.find_lr import find_learning_rate
    from surgery.training.settings import changed
    from surgery.viewing.rate_curve import plot

    silent = quiet or as_json
    if recipe is None and (apply or overrides):
        raise SurgeryError("--apply and --set need a --recipe")
    picture = output or Path(f"{model.stem}-lr.png")
    plan = load_recipe(recipe, overrides or []) if recipe is not None else Recipe(passes=[])
    flags = {"batch_size": batch_size, "optimizer": optimizer}
    settings = changed(plan.train, {key: value for key, value in flags.items() if value is not None})
    loaded = load(model)
    if apply:
        apply_recipe(plan, loaded)
    with DecodeProgress(silent) as progress:
        examples, held = open_data(data, loaded, skip_bad=skip_bad, progress=progress)
    say_skipped(examples.skipped, quiet)
    if held is not None:
        settings = changed(settings, {"validation": 0.0})  # as in training, nothing has to be split off
    with DecodeProgress(silent, "trying rates") as progress:
        curve = find_learning_rate(
            loaded,
            examples,
            settings,
            lowest=lowest,
            highest=highest,
            steps=steps,
            device=device,
            progress=progress,
        )
    plot(curve, picture, f"{model.stem}, {settings.optimizer.name}")
    if as_json:
        print_json({"model": str(model), "picture": str(picture), **dataclasses.asdict(curve)})
        return
    tried = f"{len(curve.rates)} rates from {curve.rates[0]:.2g} to {curve.rates[-1]:.2g}"
    if curve.suggestion is None:
        say(f"{tried}: the loss falls at none of them; {picture} shows it", quiet)
    else:
        say(f"{tried}: try --lr {curve.suggestion:.1g}, a tenth of the rate with the lowest loss", quiet)
        say(f"(it falls fastest at {curve.steepest:.1g}, which noise may have a part in); {picture} shows it", quiet)
    if curve.ending == "finished":
        say("the loss did not grow yet: a larger --highest would show where it does", quiet)
