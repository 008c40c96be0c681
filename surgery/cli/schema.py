"""surgery schema"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import app, print_json


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")] = None,
) -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them.

    Example: `surgery schema -o recipe.schema.json`, and as a recipe's first line
    `# yaml-language-server: $schema=recipe.schema.json`
    """
    import json

    from surgery.io import replacing
    from surgery.recipe import json_schema

    if output is None:
        print_json(json_schema())
        return
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
