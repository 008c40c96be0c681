"""surgery view"""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli.app import ModelFile, app, say


@app.command()
def view(
    model: ModelFile,
    port: Annotated[int | None, typer.Option(help="The port to serve at. [default: a free one]")] = None,
    host: Annotated[str, typer.Option(help="The address to serve at.")] = "localhost",
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Show a model's graph in Netron, in the browser, until Ctrl-C.

    Example: `surgery view lenet.onnx`
    """
    import netron

    from surgery.errors import SurgeryError
    from surgery.io import load

    load(model)  # a clear error where it is no model
    try:
        _, chosen = netron.start(str(model), address=(host, port or 0), browse=browser)
    except OSError as error:
        raise SurgeryError(
            f"Netron cannot serve at {host}:{port} ({error.strerror or error}); take another port"
        ) from error
    say(f"{model} is shown at http://{host}:{chosen} — Ctrl-C ends")
    netron.wait()
