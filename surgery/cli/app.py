"""The command-line application and what its verbs share. Verbs import what is heavy when they run."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from surgery import __version__

__all__ = ["Json", "ModelFile", "Overrides", "Quiet", "app", "print_json", "say"]

app = typer.Typer(
    name="surgery",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX model.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be repeated.", show_default=False),
]


def say(text: Any = "", quiet: bool = False) -> None:
    """Prints text or a rich renderable to standard output, unless `quiet`."""
    if quiet:
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    Console(highlight=False, markup=False, width=width, soft_wrap=isinstance(text, str)).print(text)


def print_json(data: Any) -> None:
    """Prints `data` as JSON to standard output; what is no finite number, JSON does not have: it becomes null."""
    print(json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _version(wanted: bool) -> None:
    if wanted:
        print(f"surgery {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Convert a pretrained network to ONNX, operate on its graph, fine-tune it, look at it.

    Example:

    ```
    surgery convert models/lenet_mnist -o lenet.onnx
    surgery apply pass.yaml lenet.onnx -o operated.onnx
    surgery train operated.onnx data.npz --recipe pass.yaml -o trained
    surgery view trained/model.onnx
    ```
    """


_VERBS = (
    "convert",
    "inspect",
    "apply",
    "diff",
    "verify",
    "find_lr",
    "train",
    "evaluate",
    "landscape",
    "artifacts",
    "view",
    "schema",
    "zoo",
    "demo",
)
for _verb in _VERBS:
    importlib.import_module(f"surgery.cli.{_verb}")  # in this order in the help
