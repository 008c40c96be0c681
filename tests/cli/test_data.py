"""What `train` and `evaluate` tell about the data that they read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surgery.io import save
from surgery.marks import preprocessing
from surgery.passes import SetPreprocessing
from tests.cli.test_cli import fails, run
from tests.graphs import parse

pytestmark = pytest.mark.training


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = parse(
        "(float[N,3,8,8] x) => (float[N,4] y)",
        "f = Flatten(x) l = Gemm<transB = 1>(f, w, b) y = Softmax(l)",
        {"w": [4, 192], "b": [4]},
    )
    save(network, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("ants", "bees"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (8, 8)).save(tmp_path / "images" / part / name / f"{index}.png")
    return tmp_path / "images"


def spoil(images: Path, count: int) -> list[str]:
    names = [images / "train" / "ants" / f"bad{index}.jpg" for index in range(count)]
    for name in names:
        name.write_bytes(b"no picture")
    return [str(name) for name in names]


def test_skipped_images_are_counted_and_named(model: Path, images: Path, tmp_path: Path) -> None:
    bad = spoil(images, 5)
    words = ["train", model, images, "--epochs", "1", "--skip-bad", "-o", tmp_path / "out"]
    done = run(*words)
    assert f"skipped 5 images that do not decode: {', '.join(bad[:3])} and 2 more" in done.stderr
    done = run(*words, "--json")
    assert json.loads(done.stdout)["skipped"] == bad
    assert run(*words, "-q").stderr == ""
    words = ["evaluate", model, images, "--skip-bad", "--json"]
    assert json.loads(run(*words).stdout)["skipped"] == []
    done = run(*words, "--split", "train")
    assert json.loads(done.stdout)["skipped"] == bad
    assert "skipped 5 images" in done.stderr


def test_what_is_known_before_the_first_step(model: Path, images: Path, tmp_path: Path) -> None:
    words = ["train", model, images, "--epochs", "1", "-o", tmp_path / "out"]
    lines = run(*words).stdout.splitlines()
    assert lines[0].startswith("preprocessing: RGB, NCHW, pixels / 255 (assumed; ")
    assert lines[1].startswith("classes: the data have examples of 2, output 'y' has 4 units; ")
    assert lines[2].startswith("training 772 parameters on 4 examples, watching 4")
    (tmp_path / "r.yaml").write_text("train: {validation: 0.5}\n")
    text = run(*words, "-r", tmp_path / "r.yaml").stdout
    assert "validation: 0.5 is not used, as the data bring 4 examples to watch" in text
    text = run(*words, "-r", tmp_path / "r.yaml", "--validation", "0.25").stdout
    assert "is not used" not in text
    assert "on 3 examples, watching 1" in text


def test_nothing_is_told_where_nothing_is_assumed(model: Path, images: Path, tmp_path: Path) -> None:
    from surgery.io import load

    known = load(model)
    SetPreprocessing(preset="unit")(known)
    save(known, tmp_path / "known.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8), y=np.arange(8) % 4)
    lines = run("train", tmp_path / "known.onnx", tmp_path / "d.npz", "--epochs", "1", "-o", tmp_path / "out").stdout
    assert lines.startswith("training 772 parameters on 8 examples: ")
    assert preprocessing(load(tmp_path / "out" / "model.onnx"), "x") == preprocessing(known, "x")


def test_evaluate_says_which_part_it_measured(model: Path, images: Path) -> None:
    assert "(val)" in run("evaluate", model, images).stdout
    assert json.loads(run("evaluate", model, images / "train", "--json").stdout)["split"] == "all"
    assert "no part 'test'; it has train, val" in fails("evaluate", model, images, "--split", "test")
    assert "no part 'train'; it has all" in fails("evaluate", model, images / "train", "--split", "train")


def test_images_that_do_not_fit_the_memory_give_the_same_results(model: Path, images: Path, tmp_path: Path) -> None:
    words = ["train", model, images, "--epochs", "2", "--json", "-o", tmp_path / "out", "--restart"]
    kept, read = (json.loads(run(*words, *more).stdout)["history"] for more in ([], ["--memory", "0"]))
    assert [r["val_loss"] for r in kept] == [r["val_loss"] for r in read]
    scores = [json.loads(run("evaluate", model, images, "--json", "--memory", m).stdout)["loss"] for m in ("0", "1")]
    assert scores[0] == scores[1]
