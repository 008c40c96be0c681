"""surgery convert"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.cli.app import Json, Quiet, app, print_json, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.compare import Verification


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="The network: Caffe's .prototxt or .caffemodel; Keras' .keras, .h5, .hdf5 or .json; TensorFlow's .pb, "
            ".meta or SavedModel folder; PyTorch's .pt2, TorchScript .pt or package.module:factory, which is your code "
            "and is run; Torch7's .t7; .onnx; or a folder with one network or a card.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: the source's name, .onnx, in this folder]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The file with the weights, where it does not lie next to the source.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="The class names: a text file, one a line, or JSON.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="CxHxW",
            help="The input's shape without the batch, such as 3x224x224, 3x?x? for any size, or data=3x32x32,info=3.",
        ),
    ] = None,
    custom: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Python that converts layers of types that are not known."),
    ] = None,
    via: Annotated[
        str | None, typer.Option(metavar="tf2onnx", help="Keras: convert with TensorFlow and tf2onnx instead.")
    ] = None,
    solver: Annotated[
        Path | None,
        typer.Option(help="Caffe's solver.prototxt, written next to the model as a recipe, MODEL.train.yaml."),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="How many examples an epoch has, for --solver: solvers count iterations.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Examples in a batch, for --solver. [default: what its net says, if that is found]"),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with what the source's own framework computes; where they differ, write nothing and exit 1.",
        ),
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another option of the framework's converter.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Convert a network of another framework to ONNX, keeping what training needs.

    Example: `surgery convert models/lenet_mnist/lenet_mnist.prototxt -o lenet.onnx --verify`

    PyTorch: `surgery convert torchvision.models:resnet18 --weights resnet18.pth --shape 3x224x224`

    With how it was trained: `surgery convert net.prototxt --solver solver.prototxt --examples 60000`, and then
    `surgery train net.onnx data.npz --recipe net.train.yaml`
    """
    import yaml

    import converters
    from surgery.errors import SurgeryError
    from surgery.io import save

    options: dict[str, Any] = {}
    for item in option or []:
        key, sign, value = item.partition("=")
        if not sign:
            raise SurgeryError(f"--option {item}: write KEY=VALUE")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SurgeryError(f"--option {item}: {value!r} is not a value in YAML") from error
    options |= {key: value for key, value in (("shape", shape), ("custom", custom), ("via", via)) if value is not None}
    if solver is None and (examples or batch_size):
        raise SurgeryError("--examples and --batch-size are for --solver, which is not given")
    train = _train(solver, examples, batch_size) if solver is not None else None
    target = output or Path(f"{_stem(source)}.onnx")
    if target.resolve() == source.resolve():
        raise SurgeryError(f"{target}: would replace the source; name another file with -o")
    model = converters.convert(source, weights=weights, labels=labels, **options)
    compared = converters.verify(source, model, weights=weights, **options) if verify else None
    if compared is not None and not compared.equal:
        if as_json:
            print_json({"source": str(source), "output": None, **_verified(compared)})
        else:
            print(f"surgery: {source}: {compared}; nothing was written", file=sys.stderr)
        raise typer.Exit(1)
    save(model, target)
    recipe = target.with_name(f"{target.stem}.train.yaml") if train is not None else None
    if recipe is not None and train is not None:
        _write(recipe, train, f"The training that {solver} describes: `surgery train {target} DATA --recipe {recipe}`")
    if as_json:
        from surgery.viewing.summary import summary

        written: dict[str, Any] = {"recipe": str(recipe)} if recipe is not None else {}
        if compared is not None:
            written |= _verified(compared)
        print_json({"source": str(source), "output": str(target), **written, **summary(model)})
        return
    from surgery.viewing.summary import in_words

    say(f"{source} → {target}: {in_words(model)}", quiet)
    if compared is not None:
        say(str(compared), quiet)
    if recipe is not None:
        say(f"{solver} → {recipe}", quiet)


def _stem(source: Path) -> str:
    """The name of what `source` makes: that of a file or folder, or the factory's in PyTorch's ``module:factory``."""
    if ":" in str(source) and not source.exists():
        return str(source).rpartition(":")[2]
    return source.resolve().name.removesuffix(source.suffix)


def _verified(compared: Verification) -> dict[str, Any]:
    """What `--json` says of a comparison."""
    numbers = {"absolute": compared.absolute, "relative": compared.relative, "equal": compared.equal}
    return {"verified": {**dataclasses.asdict(compared), **numbers}}


def _train(solver: Path, examples: int | None, batch_size: int | None) -> Mapping[str, Any]:
    """The `train:` part of a recipe that a solver describes."""
    from converters.caffe.solver import read_solver
    from surgery.errors import SurgeryError
    from surgery.recipe import Recipe

    train = read_solver(solver, examples=examples, batch_size=batch_size)
    if examples is None and ("steps" in train or train["schedule"]["name"] != "constant"):
        raise SurgeryError(f"{solver}: counts iterations, and a recipe epochs: say --examples, how many one has")
    try:
        Recipe.model_validate({"train": train})
    except SurgeryError as error:
        raise SurgeryError(f"{solver}: as a recipe, {error}") from error
    return train


def _write(path: Path, train: Mapping[str, Any], comment: str) -> None:
    import yaml

    from surgery.io import replacing

    with replacing(path) as temporary:
        text = yaml.safe_dump({"train": dict(train)}, sort_keys=False, allow_unicode=True)
        temporary.write_text(f"# {comment}\n{text}", encoding="utf-8")
