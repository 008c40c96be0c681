"""surgery apply"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import Json, ModelFile, Overrides, Quiet, app, print_json, say


@app.command()
def apply(
    recipe: Annotated[
        Path, typer.Argument(metavar="PASS.yaml", help="A recipe: passes, in order.", show_default=False)
    ],
    model: ModelFile,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="[default: MODEL-PASS.onnx next to the model; may be the model itself]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would change; write nothing.")] = False,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Operate on a model: apply the passes of a recipe and save the result.

    Example: `surgery apply pass.yaml lenet.onnx -o operated.onnx --set replace_head.units=14`
    """
    from surgery.io import load, save
    from surgery.recipe import apply_recipe, load_recipe
    from surgery.viewing.summary import in_words

    plan = load_recipe(recipe, overrides or [])
    loaded = load(model)
    before = in_words(loaded)
    report = apply_recipe(plan, loaded)
    after = in_words(loaded)
    target = output or model.with_name(f"{model.stem}-{recipe.stem}.onnx")
    if not dry_run:
        save(loaded, target)
    if as_json:
        print_json(
            {
                "model": str(model),
                "output": None if dry_run else str(target),
                "passes": [
                    {"pass": name, "changes": [{"where": c.where, "what": c.what} for c in changes]}
                    for name, changes in report
                ],
            }
        )
        return
    for name, changes in report:
        say(name if changes else f"{name}: nothing to change", quiet)
        for change in changes:
            say(f"  {change}", quiet)
    say(f"before: {before}\nafter:  {after}", quiet)
    say("dry run: nothing was written" if dry_run else f"saved {target}", quiet)
