"""surgery inspect"""

from __future__ import annotations

from surgery.cli.app import Json, ModelFile, app, print_json, say


@app.command()
def inspect(model: ModelFile, as_json: Json = False) -> None:
    """Show a model's layers: their number, operator, output shape, parameters and marks.

    Example: `surgery inspect lenet.onnx`
    """
    from surgery.io import load
    from surgery.viewing.summary import summary, table

    loaded = load(model)
    if as_json:
        print_json({"model": str(model), **summary(loaded)})
    else:
        say(table(loaded, str(model)))
