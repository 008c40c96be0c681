"""`surgery verify`: how far two models are apart on data and on random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from surgery.io import save
from surgery.marks import Preprocessing, set_preprocessing
from surgery.recipe import apply
from tests.cli.test_cli import fails, run
from tests.graphs import cnn, mlp, parse


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(mlp(), "a.onnx")


def shifted(by: float) -> ir.Model:
    """A network that adds a number."""
    model = parse("(float[N,8] x) => (float[N,8] y)", "a = Relu(x) y = Add(a, w)", {"w": [8]})
    model.graph.initializers["w"].const_value = ir.tensor(np.full(8, by, np.float32), name="w")
    return model


def test_the_same_network_in_another_form() -> None:
    save(cnn(), "c.onnx")
    folded = cnn()
    apply(folded, [{"fold_batchnorm": None}, {"rename": {"x": "image", "y": "scores"}}])
    save(folded, "folded.onnx")
    out = run("verify", "c.onnx", "folded.onnx").stdout
    assert "the same class for 64 of 64" in out
    assert "the same on 64 random examples (seed 0)" in out


def test_differences_are_measured() -> None:
    save(shifted(1), "one.onnx")
    save(shifted(1.25), "two.onnx")
    np.savez("x.npz", x=np.ones((5, 8), np.float32))
    data = json.loads(run("verify", "one.onnx", "two.onnx", "--data", "x.npz", "--json", code=1).stdout)
    (output,) = data["outputs"]
    assert output["absolute"] == pytest.approx(0.25)
    assert output["relative"] == pytest.approx(0.125)
    assert (output["values"], output["outside"], output["examples"]) == (40, 40, 5)
    assert not data["same"]
    run("verify", "one.onnx", "two.onnx", "--data", "x.npz", "--rtol", "0.13")
    run("verify", "one.onnx", "two.onnx", "--data", "x.npz", "--rtol", "0", "--atol", "0.25001")
    run("verify", "one.onnx", "two.onnx", "--data", "x.npz", "--rtol", "0.06", "--atol", "0.1", code=1)


def test_numbers_that_are_none_differ_from_numbers() -> None:
    save(shifted(float("nan")), "nan.onnx")
    save(shifted(1), "one.onnx")
    run("verify", "nan.onnx", "nan.onnx")
    assert "inf apart, inf relative" in run("verify", "one.onnx", "nan.onnx", code=1).stdout
    assert "inf apart" in run("verify", "nan.onnx", "one.onnx", code=1).stdout


def test_each_model_prepares_the_same_images_itself() -> None:
    """A network that takes 0–255 and one that takes 0–1 with a weight 255 times as large agree."""
    weight = np.random.default_rng(0).normal(size=(3, 1, 2, 2)).astype(np.float32)
    for name, scale in (("raw.onnx", 1.0), ("unit.onnx", 1 / 255)):
        model = parse(
            "(float[N,1,4,4] x) => (float[N,3] y)",
            "c = Conv(x, w) g = GlobalAveragePool(c) y = Flatten(g)",
            {"w": [3, 1, 2, 2]},
        )
        model.graph.initializers["w"].const_value = ir.tensor(weight / np.float32(scale), name="w")
        set_preprocessing(model, "x", Preprocessing(color="gray", scale=scale))
        save(model, name)
    rng = np.random.default_rng(1)
    np.savez("images.npz", x_test=rng.integers(0, 256, (20, 4, 4), dtype=np.uint8), y_test=np.zeros(20, np.int64))
    assert (
        "the same on 20 examples of images.npz" in run("verify", "raw.onnx", "unit.onnx", "--data", "images.npz").stdout
    )
    run("verify", "raw.onnx", "unit.onnx", code=1)


def test_models_with_several_inputs_and_whole_numbers() -> None:
    model = parse(
        "(int64[B,T] words, float[B,4] x) => (float[B,4] y)",
        "e = Gather(w, words) s = ReduceSum<keepdims=0>(e, axis) y = Add(s, x)",
        {"w": [9, 4]},
    )
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([1]), name="axis"))
    model.graph.register_initializer(axis)
    next(n for n in model.graph if n.op_type == "ReduceSum").replace_input_with(1, axis)
    model.graph.sort()
    save(model, "words.onnx")
    run("verify", "words.onnx", "words.onnx", "--examples", "3", "--batch-size", "2")
    run("verify", "words.onnx", "words.onnx", "--shape", "words=3x5", "--shape", "x=3x4")
    assert "write INPUT=" in fails("verify", "words.onnx", "words.onnx", "--shape", "words=3xT")
    assert "no input 'z'" in fails("verify", "words.onnx", "words.onnx", "--shape", "z=3x5")


def test_a_fixed_batch_is_kept() -> None:
    fixed = mlp()
    apply(fixed, [{"set_batch": 4}])
    save(fixed, "fixed.onnx")
    assert "the same on 4 random" in run("verify", "fixed.onnx", "a.onnx").stdout
    np.savez("x.npz", x=np.ones((8, 8), np.float32))
    assert "the same on 8 examples" in run("verify", "a.onnx", "fixed.onnx", "--data", "x.npz").stdout


def test_examples_that_are_no_whole_batches_are_left_out() -> None:
    save(parse("(float[3,8] x) => (float[3,8] y)", "a = Relu(x) y = Add(a, w)", {"w": [8]}), "three.onnx")
    save(parse("(float[N,8] x) => (float[N,8] y)", "a = Relu(x) y = Add(a, w)", {"w": [8]}), "any.onnx")
    np.savez("x.npz", x=np.ones((8, 8), np.float32))
    np.savez("xy.npz", x_test=np.ones((8, 8), np.float32), y_test=np.zeros((8, 8), np.float32))
    assert "the same on 63 random examples" in run("verify", "any.onnx", "three.onnx").stdout
    for data in ("x.npz", "xy.npz"):
        assert "the same on 6 examples" in run("verify", "any.onnx", "three.onnx", "--data", data).stdout
    np.savez("x.npz", x=np.ones((2, 8), np.float32))
    assert "has 2 examples, but a model takes 3 at a time" in fails(
        "verify", "any.onnx", "three.onnx", "--data", "x.npz"
    )


def test_what_cannot_be_compared() -> None:
    save(shifted(1), "one.onnx")
    out = run("verify", "a.onnx", "one.onnx", code=1).stdout
    assert "shape [16, 4] → [16, 8]" in out
    save(cnn(), "c.onnx")
    assert "does not run" in fails("verify", "a.onnx", "c.onnx")
    assert "no such file" in fails("verify", "a.onnx", "a.onnx", "--data", "nothing.npz")
    assert "no random numbers can be made" in fails("verify", "a.onnx", "a.onnx", "--shape", f"{10**9}x{10**9}")
    assert "--shape is for random" in fails("verify", "a.onnx", "a.onnx", "--data", "a.npz", "--shape", "8x8")
