"""surgery train"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import typer

from surgery.cli.app import Json, ModelFile, Overrides, Quiet, app, print_json, say

Data = Annotated[
    Path,
    typer.Argument(
        help="A folder with a folder of images for each class, a .csv or .jsonl file that names images, a .npz file, a "
        "folder of .npy files, or one that Hugging Face's datasets saved.",
        show_default=False,
    ),
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave images out that do not decode.")]
Memory = Annotated[
    float, typer.Option(min=0, help="How many GB of decoded images to keep; others are decoded each time.")
]


@app.command()
def train(
    model: ModelFile,
    data: Data,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="A recipe whose `train:` part says how.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder. [default: the model's name, -trained]")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the recipe's passes first.")] = False,
    epochs: Annotated[int | None, typer.Option(help="How often all examples are seen.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="At the start.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adam, adamw, adamax, nadam, rmsprop, adagrad, adadelta or lion.")
    ] = None,
    output_name: Annotated[
        str | None, typer.Option("--output-name", help="Which output, where the model has several.")
    ] = None,
    validation: Annotated[float | None, typer.Option(help="The share of the examples to split off to watch.")] = None,
    early_stopping: Annotated[
        int | None, typer.Option(help="Stop when the validation loss has not improved for so many epochs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the order and dropout.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder, if there is one.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where the output folder has an unfinished training.")
    ] = False,
    checkpoints: Annotated[bool, typer.Option(help="Leave a checkpoint in the output folder after each epoch.")] = True,
    checkpoint_steps: Annotated[int | None, typer.Option(help="And one after so many steps.")] = None,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="And one after so many minutes.")] = None,
    device: DeviceOption = "auto",
    csv: Annotated[bool, typer.Option("--csv", help="Write the history as history.csv, too.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into the folder, too.")
    ] = False,
    skip_bad: SkipBad = False,
    memory: Memory = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model and leave model.onnx, history.jsonl and curves.png in a folder.

    Of classes that are watched on validation data, confusion.png and wrong.png show which are mistaken for which, and
    the most mistaken images.

    Example: `surgery train operated.onnx digits.npz --recipe pass.yaml --epochs 20 -o trained`
    """
    from surgery.cli.data import data_notes, say_skipped
    from surgery.cli.progress import DecodeProgress, EpochLines
    from surgery.data import open_data
    from surgery.errors import SurgeryError
    from surgery.io import load, save
    from surgery.recipe import Recipe, apply_recipe, load_recipe
    from surgery.training.callbacks import Callback, Csv, JsonLines
    from surgery.training.checkpoint import Checkpoints
    from surgery.training.settings import changed
    from surgery.training.trainer import train as run
    from surgery.viewing.curves import plot
    from surgery.viewing.report import write_report

    silent = quiet or as_json
    if recipe is None and (apply or overrides):
        raise SurgeryError("--apply and --set need a --recipe")
    if not checkpoints and (resume or checkpoint_steps or checkpoint_minutes):
        raise SurgeryError("--no-checkpoints leaves nothing to go on from; leave it out, or what needs checkpoints")
    plan = load_recipe(recipe, overrides or []) if recipe is not None else Recipe(passes=[])
    flags = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "output": output_name,
        "validation": validation,
        "early_stopping": early_stopping,
        "seed": seed,
    }
    settings = changed(plan.train, {key: value for key, value in flags.items() if value is not None})
    loaded = load(model)
    if apply:
        apply_recipe(plan, loaded)
    folder = output or model.with_name(f"{model.stem}-trained")
    store = Checkpoints(
        folder / "checkpoints", steps=checkpoint_steps, minutes=checkpoint_minutes, restart=restart and not resume
    )
    with DecodeProgress(silent) as progress:
        examples, held = open_data(data, loaded, skip_bad=skip_bad, progress=progress, memory=round(memory * 10**9))
    skipped = examples.skipped + (held.skipped if held is not None else ())
    say_skipped(skipped, quiet)
    for note in data_notes(examples, held, loaded, settings, validation):
        say(note, silent)
    callbacks: list[Callback] = [EpochLines(silent), JsonLines(folder / "history.jsonl")]
    if csv:
        callbacks.append(Csv(folder / "history.csv"))
    if tensorboard:
        from surgery.viewing.tensorboard import TensorBoard

        callbacks.append(TensorBoard(folder / "tensorboard", loaded))
    result = run(
        loaded,
        examples,
        settings,
        validation=held if validation is None else None,
        device=device,
        callbacks=callbacks,
        checkpoints=store if checkpoints else None,
        resume=resume,
    )
    kept = result.kept_epoch > 0
    pictures = kept and not _missing("matplotlib")
    files: dict[str, Path] = {}
    if kept:
        files = {"model": folder / "model.onnx", "history_file": folder / "history.jsonl"}
        save(result.model, files["model"])
    if pictures:
        files["curves"] = folder / "curves.png"
        plot(result.history, files["curves"], model.stem)
        how = {"loss": settings.objective, "output": settings.output, "batch_size": settings.batch_size}
        files |= write_report(result.model, result.validation, folder, device=device, **how)
    if as_json:
        print_json(
            {
                **{key: str(path) for key, path in files.items()},
                "ending": result.ending,
                "message": result.message,
                "verdict": dataclasses.asdict(result.verdict),
                "kept_epoch": result.kept_epoch,
                "history": result.history,
                "skipped": skipped,
            }
        )
    elif kept:
        say(f"kept the weights of epoch {result.kept_epoch}: {', '.join(map(str, files.values()))}", quiet)
    if kept and result.ending != "diverged":
        say(str(result.verdict), silent)
    if kept and not pictures:
        typer.echo("surgery: no curves.png: plots need matplotlib (pip install 'onnx-surgery[train]')", err=True)
    if result.ending == "stopped":
        say(result.message, silent)
    elif result.ending != "finished":
        nothing = "" if kept else f"; nothing was saved, {folder} is as it was"
        on = "; --resume goes on" if result.ending == "interrupted" and checkpoints and store.files() else ""
        typer.echo(f"surgery: {result.message}{nothing}{on}", err=True)
        raise typer.Exit(1 if result.ending == "diverged" else 130)  # 130: as shells tell of Ctrl-C


def _missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None
