"""surgery convert: its options, and solvers as recipes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import surgery
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
    assert train.optimizer == Sgd(momentum=0.9, rate_in_momentum=True)
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


@pytest.mark.training
@pytest.mark.parametrize(
    "more",
    [
        'regularization_type: "L1"',
        "clip_gradients: 2 iter_size: 4",
        'type: "AdaGrad" momentum: 0 lr_policy: "sigmoid"',
        'type: "RMSProp" momentum: 0 rms_decay: 0.98',
        'type: "AdaDelta" momentum: 0.95 delta: 1e-6',
        'type: "Adam"',
        'type: "Nesterov" lr_policy: "poly" power: 0.5',
    ],
)
def test_whatever_a_solver_asks_for_trains(folder: Path, lenet_files: tuple[Path, Path], more: str) -> None:
    solver, model = folder / "solver.prototxt", folder / "l.onnx"
    text = SOLVER.replace("base_lr: 0.02", "base_lr: 0.001")
    for field in ("momentum: 0.9", 'lr_policy: "step"'):
        text = text.replace(field, "") if field.partition(":")[0] in more else text
    solver.write_text(f"{text} {more}")
    run("convert", lenet_files[0], "-o", model, "--solver", solver, "--examples", "48", "--batch-size", "8")
    train = load_recipe(folder / "l.train.yaml").train
    rng = np.random.default_rng(0)
    data = rng.random((48, 1, 28, 28), np.float32), rng.integers(0, 10, 48)
    result = surgery.train(load(model), data, train, epochs=2)
    assert result.ending == "finished"
    assert result.history[1]["loss"] < result.history[0]["loss"]


def test_examples_without_a_solver(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    assert "are for --solver" in fails("convert", lenet_files[0], "-o", folder / "l.onnx", "--examples", "5")
