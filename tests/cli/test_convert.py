"""surgery convert: its options, and solvers as recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgery.io import load
from surgery.recipe import load_recipe
from surgery.training.optimizers import Sgd
from surgery.training.schedules import Step
from tests.cli.test_cli import fails, run

NET = """input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
         layer { name: "c" type: "Convolution" bottom: "data" top: "c"
                 convolution_param { num_output: 4 kernel_size: 3 } }
         layer { name: "own" type: "Homemade" bottom: "c" top: "own" }"""
SOLVER = """net: "train.prototxt" base_lr: 0.02 lr_policy: "step" stepsize: 1000 gamma: 0.5 max_iter: 4000
            momentum: 0.9 weight_decay: 0.0005 random_seed: 7"""
TRAIN = """layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN }
           data_param { source: "x" batch_size: 50 } }"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with net.prototxt, which has a layer of an unknown type, and a module that converts it."""
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    (tmp_path / "layers_of_ours.py").write_text("def convert(c):\n    return c.op.Relu(c.bottoms[0])\n")
    return tmp_path


def test_a_layer_of_ones_own_and_another_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, model = folder / "net.prototxt", folder / "net.onnx"
    assert "supply it with --custom module:function" in fails("convert", net, "-o", model)
    monkeypatch.chdir(folder)
    run("convert", net, "-o", model, "--custom", "layers_of_ours:convert", "--shape", "3x?x20")
    found = load(model)
    assert [node.op_type for node in found.graph] == ["Conv", "Relu"]
    assert str(found.graph.inputs[0].shape) == "[N,3,height,20]"
    run("convert", net, "-o", model, "--custom", "layers_of_ours:convert", "--shape", "data=3x9x9")
    assert str(load(model).graph.inputs[0].shape) == "[N,3,9,9]"


def test_options_that_the_converter_does_not_have(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    run("convert", lenet_files[0], "-o", folder / "lenet.onnx")
    for option in ("--shape=3x4x4", "--custom=a:b"):
        message = fails("convert", folder / "lenet.onnx", option, "-o", folder / "again.onnx")
        assert f"converting from ONNX has no option '{option[2:].partition('=')[0]}'" in message
    assert "'[' is not a value in YAML" in fails("convert", lenet_files[0], "--option", "seed=[")


def test_a_solver_becomes_a_recipe(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    (folder / "train.prototxt").write_text(TRAIN)
    words = ["convert", lenet_files[0], "-o", folder / "out" / "lenet.onnx", "--solver", folder / "solver.prototxt"]
    path = folder / "out" / "lenet.train.yaml"
    assert "--examples" in fails(*words)
    assert not path.parent.exists()
    text = run(*words, "--examples", "10000").stdout  # 200 iterations of 50 are an epoch
    assert f"{folder / 'solver.prototxt'} → {path}" in text.replace("\n", "")
    train = load_recipe(path).train
    assert train.optimizer == Sgd(momentum=0.9)
    assert train.schedule == Step(every=5, gamma=0.5)
    assert (train.epochs, train.batch_size, train.learning_rate, train.weight_decay, train.seed) == (
        20,
        50,
        0.02,
        0.0005,
        7,
    )
    data = json.loads(run(*words, "--examples", "10000", "--batch-size", "100", "--json").stdout)
    assert data["recipe"] == str(path)
    assert load_recipe(path).train.epochs == 40
    assert load_recipe(path).train.batch_size == 100


def test_a_solver_whose_net_is_not_there_needs_the_batchs_size(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    words = ["convert", lenet_files[0], "-o", folder / "l.onnx", "--solver", folder / "solver.prototxt"]
    assert "say --batch-size" in fails(*words, "--examples", "10000")
    run(*words, "--examples", "10000", "--batch-size", "50")
    assert load_recipe(folder / "l.train.yaml").train.epochs == 20


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('regularization_type: "L1"', r"regularization (regularization_type: L1), which training does not have"),
        ("clip_gradients: 2 iter_size: 4", "clip_norm (clip_gradients), accumulate (iter_size), which training does"),
        ('type: "AdaGrad" momentum: 0', "as a recipe, train.optimizer: 'adagrad' is not one of 'sgd', 'adam'"),
        ('lr_policy: "sigmoid" ', "as a recipe, train.schedule: 'sigmoid' is not one of "),
    ],
)
def test_what_training_does_not_have_is_named(
    folder: Path, lenet_files: tuple[Path, Path], more: str, message: str
) -> None:
    solver = folder / "solver.prototxt"
    text = SOLVER
    for field in ("momentum: 0.9", 'lr_policy: "step"'):
        text = text.replace(field, "") if field.partition(":")[0] in more else text
    solver.write_text(f"{text} {more}")
    words = ["--solver", solver, "--examples", "10000", "--batch-size", "50"]
    assert f"{solver}: " in (found := fails("convert", lenet_files[0], "-o", folder / "l.onnx", *words))
    assert message in found
    assert not (folder / "l.onnx").exists()


def test_examples_without_a_solver(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    assert "are for --solver" in fails("convert", lenet_files[0], "-o", folder / "l.onnx", "--examples", "5")
