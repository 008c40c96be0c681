"""surgery diff"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import Json, Quiet, app, print_json, say


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD.onnx", help="A model.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW.onnx", help="What became of it.", show_default=False)],
    html: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="Write a web page too.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show what is different between two models, by layer: added, removed, re-wired, reshaped, weights, marks.

    Exits as diff does: with 0 if they are the same, 1 if not, 2 if a file cannot be read.

    Example: `surgery diff lenet.onnx trained/model.onnx --html changes.html`
    """
    from surgery.io import load, replacing
    from surgery.viewing.diff import diff as compare
    from surgery.viewing.diff import text
    from surgery.viewing.diff_page import page

    found = compare(load(old), load(new))
    if html is not None:
        with replacing(html) as temporary:
            temporary.write_text(page(found, str(old), str(new)), encoding="utf-8")
    if as_json:
        print_json({"old": str(old), "new": str(new), **found})
    else:
        say(text(found), quiet)
    if not found["same"]:
        raise typer.Exit(1)
