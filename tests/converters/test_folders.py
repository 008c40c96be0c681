"""Folders as sources: one network in it, or a card that says which."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from converters import convert
from surgery.errors import SurgeryError
from surgery.io import save
from surgery.marks import labels


@pytest.fixture
def folder(tmp_path: Path, lenet_files: tuple[Path, Path]) -> Path:
    """A folder with LeNet's definition and weights."""
    for file in lenet_files:
        shutil.copy(file, tmp_path)
    return tmp_path


def test_one_network_is_converted(folder: Path) -> None:
    (folder / "notes.txt").write_text("whatever")
    (folder / "lenet_solver.prototxt").write_text("base_lr: 1")
    assert len(convert(folder).graph.inputs) == 1


def test_a_network_of_another_kind_makes_it_two(folder: Path) -> None:
    save(convert(folder), folder / "other.onnx")
    with pytest.raises(SurgeryError, match=r"one network.*lenet_mnist\.prototxt, other\.onnx: name the file"):
        convert(folder)


def test_an_onnx_file_alone_is_one(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    model = convert(folder)
    for file in lenet_files:
        (folder / file.name).unlink()
    save(model, folder / "other.onnx")
    assert len(convert(folder).graph) == len(model.graph)


def test_a_card_says_which(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    weights = folder / lenet_files[1].name
    weights.rename(folder / "trained.caffemodel")
    (folder / "another.caffemodel").write_bytes(b"of another network")
    save(convert(lenet_files[0]), folder / "other.onnx")
    text = "name: LeNet\nfiles: {definition: lenet_mnist.prototxt, weights: trained.caffemodel}\nlabels: " + str(
        [f"digit {i}" for i in range(10)]
    )
    (folder / "card.yaml").write_text(text)
    found, expected = convert(folder), convert(lenet_files[0])
    assert labels(found, str(found.graph.outputs[0].name)) == [f"digit {i}" for i in range(10)]
    weight = [m.graph.initializers["conv1.weight"].const_value for m in (found, expected)]
    assert weight[0] is not None
    assert weight[1] is not None
    assert weight[0].tobytes() == weight[1].tobytes()
    (folder / "card.yaml").write_text("name: LeNet\n")  # which names no files
    with pytest.raises(SurgeryError, match="a folder is a source where it has one network"):
        convert(folder)


def test_weights_of_which_none_is_the_definitions_are_not_guessed(folder: Path) -> None:
    weights = folder / "lenet_mnist.caffemodel"
    shutil.copy(weights, folder / "lenet_iter_1000.caffemodel")
    weights.rename(folder / "lenet_iter_2000.caffemodel")
    with pytest.raises(
        SurgeryError, match=r"lenet_iter_1000\.caffemodel, lenet_iter_2000\.caffemodel, lenet_mnist\.prototxt"
    ):
        convert(folder)


def test_nothing_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(SurgeryError, match="no converter recognizes a file in this folder; known are"):
        convert(tmp_path)
