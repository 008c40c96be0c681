"""surgery artifacts"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from surgery.cli.app import Json, ModelFile, Quiet, app, print_json, say


@app.command()
def artifacts(
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder. [default: the model's name, -artifacts]")
    ] = None,
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option(help="What the device trains with.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="AdamW's decay, or L2 regularization for sgd.")] = 0.0,
    beta1: Annotated[float | None, typer.Option(help="Of adamw. [default: 0.9]")] = None,
    beta2: Annotated[float | None, typer.Option(help="Of adamw. [default: 0.999]")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Of adamw. [default: 1e-08]")] = None,
    loss: Annotated[str, typer.Option(help="A loss by name; auto goes by the last activation.")] = "auto",
    output_name: Annotated[
        str | None, typer.Option("--output-name", help="Which output, where the model has several.")
    ] = None,
    frozen: Annotated[
        Literal["models", "checkpoint"],
        typer.Option(help="Where frozen weights lie: in both models (fast), or in the checkpoint (once)."),
    ] = "models",
    fused: Annotated[
        bool, typer.Option(help="Use the training build's kernels, or standard operators for all gradients.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of dropout.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write what onnxruntime's on-device training API trains from: three models and a checkpoint.

    Example: `surgery artifacts operated.onnx -o device --optimizer adamw`
    """
    from surgery.artifacts import OPTIMIZERS
    from surgery.artifacts import artifacts as write
    from surgery.errors import SurgeryError
    from surgery.io import load

    settings: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
    settings = {key: value for key, value in settings.items() if value is not None}
    if settings and optimizer != "adamw":
        raise SurgeryError(f"{optimizer} has no {' and no '.join(settings)}; leave it out or take --optimizer adamw")
    result = write(
        load(model),
        output or model.with_name(f"{model.stem}-artifacts"),
        optimizer=OPTIMIZERS[optimizer](weight_decay=weight_decay, **settings),
        loss=loss,
        output=output_name,
        frozen=frozen,
        fused=fused,
        seed=seed,
    )
    files = [result.training_model, result.eval_model, result.optimizer_model, result.checkpoint]
    if as_json:
        print_json(
            {
                "model": str(model),
                "files": [str(file) for file in files],
                "inputs": result.inputs,
                "outputs": result.outputs,
                "trained": result.trained,
                "notes": result.notes,
            }
        )
        return
    for note in result.notes:
        say(f"note: {note}", quiet)
    say(f"{len(result.trained)} parameters to train, by {optimizer}; call with ({', '.join(result.inputs)})", quiet)
    for file in files:
        say(f"saved {file}", quiet)
