"""surgery demo"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.app import app, say

PACKAGE = Path(__file__).resolve().parents[1]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for what it makes.")] = Path("out/demo"),
    examples: Annotated[int, typer.Option(min=10, max=1500, help="Labelled examples to train on.")] = 200,
) -> None:
    """Run the main job on what ships with Surgery: a network trained on MNIST is taken over to other digits.

    It is converted, operated on and fine-tuned with a few labelled examples, and compared with the same network
    trained from random weights.

    Example: `surgery demo -o out/demo`
    """
    from surgery.errors import SurgeryError

    places = [folder / "models" / "lenet_mnist" for folder in (PACKAGE.parent, PACKAGE)]  # in a checkout, in a wheel
    source = next((place for place in places if (place / "card.yaml").is_file()), None)
    if source is None:
        raise SurgeryError("the demo's network, models/lenet_mnist, is not part of this installation")
    here = Path.cwd()

    def short(path: Path) -> str:
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    network, data = output / "lenet.onnx", output / "digits.npz"
    say("1. Convert a network that was trained on MNIST, from Caffe's format.")
    _run("surgery", "convert", short(source), "-o", str(network))
    _run("surgery", "inspect", str(network))
    say("\n2. Take few labelled examples of another data set: the digits of scikit-learn.")
    _run("python", "-m", "surgery.demo.digits", str(data), "--train", str(examples))
    titles = {
        "finetuned": "3. Operate: a new output layer, the first layers frozen, dropout, max-norm. Then fine-tune.",
        "scratch": "4. For comparison: the same network from random weights, the same examples, the same budget.",
    }
    for name, title in titles.items():
        recipe = PACKAGE / "demo" / f"{name}.yaml"
        operated, trained = output / f"{name}.onnx", output / name
        say(f"\n{title}")
        _run("cat", short(recipe))
        _run("surgery", "apply", short(recipe), str(network), "-o", str(operated))
        if name == "finetuned":
            _run("surgery", "inspect", str(operated))
        _run("surgery", "train", str(operated), str(data), "--recipe", short(recipe), "-o", str(trained), "--restart")
    say("\n5. Measure both on the digits that neither has seen.")
    accuracy = {}
    for name in titles:
        text = _run("surgery", "evaluate", str(output / name / "model.onnx"), str(data), "--json")
        accuracy[name] = json.loads(text)["accuracy"]
    say(f"\naccuracy fine-tuned           {accuracy['finetuned']:.2%}")
    say(f"accuracy from random weights  {accuracy['scratch']:.2%}")
    say(f"\nThe network, its history and curves are in {output / 'finetuned'}. To see it in Netron:")
    say(f"$ surgery view {output / 'finetuned' / 'model.onnx'}")


def _run(*command: str) -> str:
    """Shows a command, runs it, shows what it prints as it comes, and returns that."""
    say(f"\n$ {shlex.join(command)}")
    program = {"surgery": [sys.executable, "-m", "surgery"], "python": [sys.executable]}
    words = [*program.get(command[0], [command[0]]), *command[1:]]
    lines = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise typer.Exit(process.returncode)
    return "".join(lines)
