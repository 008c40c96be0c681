"""surgery convert"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import Json, Quiet, app, print_json, say


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="The network: Caffe's .prototxt or .caffemodel, .onnx, or a folder with one network.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: the source's name, .onnx, in this folder]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The file with the weights, where it does not lie next to the source.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with the class names, one a line.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the framework's converter.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert a network of another framework to ONNX, keeping what training needs.

    Example: `surgery convert models/lenet_mnist/lenet_mnist.prototxt -o lenet.onnx`
    """
    import yaml

    import converters
    from surgery.errors import SurgeryError

    options = {}
    for item in option or []:
        key, sign, value = item.partition("=")
        if not sign:
            raise SurgeryError(f"--option {item}: write KEY=VALUE")
        options[key] = yaml.safe_load(value)
    target = output or Path(f"{source.resolve().name.removesuffix(source.suffix)}.onnx")
    if target.resolve() == source.resolve():
        raise SurgeryError(f"{target}: would replace the source; name another file with -o")
    model = converters.convert(source, weights=weights, labels=labels, output=target, **options)
    if as_json:
        from surgery.viewing.summary import summary

        print_json({"source": str(source), "output": str(target), **summary(model)})
        return
    from surgery.viewing.summary import in_words

    say(f"{source} → {target}: {in_words(model)}", quiet)
