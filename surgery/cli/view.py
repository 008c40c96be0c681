"""surgery view"""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli.app import ModelFile, app, say


@app.command()
def view(
    model: ModelFile,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port to serve at. [default: a free one]")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve at.")] = "localhost",
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Show a model's graph in Netron, in the browser, until Ctrl-C; an operator's metadata has its marks.

    Example: `surgery view lenet.onnx`
    """
    import logging

    import netron

    from surgery.errors import SurgeryError
    from surgery.io import load
    from surgery.viewing.netron import serve

    logging.basicConfig(level=logging.WARNING)  # Netron would tell of its address itself
    try:
        address = serve(load(model), str(model), host, port, browser)
    except OSError as error:
        raise SurgeryError(
            f"Netron cannot serve at {host}:{port or 'a free port'} ({error.strerror or error}); name another"
        ) from error
    say(f"{model} is shown at http://{address} (Ctrl-C ends)")
    netron.wait()
