"""What `diff` finds between two models: each kind of change, by itself, and nothing where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from surgery.io import load, save
from surgery.marks import Preprocessing, set_labels, set_marks, set_preprocessing
from surgery.recipe import apply
from surgery.viewing.diff import diff, text
from surgery.viewing.diff_page import page
from tests.cli.test_cli import fails, run
from tests.graphs import cnn, mlp, squeezenet


def kinds(found: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["kind"] for item in found["layers"] if item["kind"] != "same"}


def changes(found: dict[str, Any], layer: str) -> dict[str, tuple[Any, Any]]:
    (item,) = (item for item in found["layers"] if item["name"] == layer)
    return {change["what"]: (change["old"], change["new"]) for change in item["changes"]}


@pytest.mark.parametrize("make", [cnn, mlp, squeezenet])
def test_nothing_between_a_model_and_itself(make: Callable[[], ir.Model], tmp_path: Path) -> None:
    save(make(), tmp_path / "m.onnx")
    found = diff(load(tmp_path / "m.onnx"), load(tmp_path / "m.onnx"))
    assert found["same"]
    assert not kinds(found)
    assert found["counts"]["same"] == len(found["layers"])


def test_an_inserted_layer_moves_no_other() -> None:
    new = cnn()
    apply(new, [{"insert": {"layers": "r1", "operator": "Identity", "name": "extra"}}])
    found = diff(cnn(), new)
    assert kinds(found) == {"r1/extra": "added", "p1": "changed"}
    assert changes(found, "p1") == {"reads": ("r1", "r1/extra")}
    assert [item["name"] for item in found["layers"]][:4] == ["c1", "r1", "r1/extra", "p1"]


def test_an_inserted_layer_moves_no_other_even_if_none_keeps_its_name() -> None:
    new = cnn()
    apply(new, [{"insert": {"layers": "r1", "operator": "Identity", "name": "extra"}}])
    for node in new.graph:
        node.name = f"other.{node.name}"
    found = diff(cnn(), new)
    assert [name for name, kind in kinds(found).items() if kind == "added"] == ["other.r1/extra"]
    assert "removed" not in kinds(found).values()
    assert changes(found, "other.c2") == {"name": ("c2", "other.c2")}


def test_a_removed_layer_is_told_where_it_was() -> None:
    new = cnn()
    apply(new, [{"remove": "r2"}])
    found = diff(cnn(), new)
    assert kinds(found) == {"r2": "removed", "g": "changed"}
    assert changes(found, "g") == {"reads": ("r2", "n2")}
    names = [item["name"] for item in found["layers"]]
    assert names.index("r2") == names.index("g") - 1


def test_weights_with_their_norms() -> None:
    new = mlp()
    tensor = new.graph.initializers["b.weight"].const_value
    assert tensor is not None
    array = tensor.numpy().copy()
    array[1, 2] += 3
    array[2, 0] -= 4
    new.graph.initializers["b.weight"].const_value = ir.tensor(array, name="b.weight")
    found = diff(mlp(), new)
    assert kinds(found) == {"b": "changed"}
    (item,) = (item for item in found["layers"] if item["name"] == "b")
    (change,) = item["changes"]
    assert change["what"] == "weight"
    assert (change["changed"], change["size"]) == (2, array.size)
    assert change["distance"] == pytest.approx(5, rel=1e-6)
    assert change["largest"] == pytest.approx(4, rel=1e-6)
    assert change["old"] == pytest.approx(np.linalg.norm(tensor.numpy()), rel=1e-6)
    assert change["new"] == pytest.approx(np.linalg.norm(array), rel=1e-6)
    assert change["relative"] == pytest.approx(5 / np.linalg.norm(tensor.numpy()), rel=1e-6)


def test_weights_that_are_no_numbers_are_the_same_as_themselves() -> None:
    models = mlp(), mlp()
    for model in models:
        model.graph.initializers["b.bias"].const_value = ir.tensor(np.full(4, np.nan, np.float32), name="b.bias")
    assert diff(*models)["same"]


def test_shapes_marks_operators_and_attributes() -> None:
    new = cnn()
    set_marks(new.graph.initializers["w1"], trainable=False, learning_rate=0.5)
    apply(new, [{"replace_head": {"units": 2}}, {"replace_activation": {"layers": "r2", "activation": "leaky_relu"}}])
    new.graph.node(0).attributes["group"] = ir.AttrInt64("group", 1)
    found = diff(cnn(), new)
    assert changes(found, "c1") == {
        "group": (None, "1"),
        "weight trainable": (True, False),
        "weight learning rate": (1.0, 0.5),
    }
    assert changes(found, "r2") == {"operator": ("Relu", "LeakyRelu")}
    assert changes(found, "h")["weight shape"] == ("5×6", "5×2")
    assert changes(found, "h")["output shape"] == ("N×6", "N×2")


def test_labels_preprocessing_and_ends() -> None:
    new = cnn()
    set_labels(new, "y", list("abcdef"))
    set_preprocessing(new, "x", Preprocessing(color="bgr", scale=0.5))
    apply(new, [{"rename": {"x": "image"}}])
    what = {change["what"]: (change["old"], change["new"]) for change in diff(cnn(), new)["model"]}
    assert what["labels of y"] == (None, "a, b, c, d, e, f")
    assert what["preprocessing of image: color"] == (None, "bgr")
    assert what["input x"][1] is None
    assert what["input image"][0] is None


def test_constants_and_what_computes_shapes_count_too(tmp_path: Path) -> None:
    def clip(top: str, axis: int) -> ir.Model:
        body = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] y)
            <float low = {{0}}, float high = {{{top}}}, int64[1] i = {{{axis}}}>
            {{ s = Shape(x) d = Gather(s, i) c = Clip(x, low, high) r = Expand(c, s) y = Add(r, r) }}"""
        import onnx

        onnx.save(onnx.parser.parse_model(body), tmp_path / "m.onnx")
        return load(tmp_path / "m.onnx")

    assert diff(clip("6", 0), clip("6", 0))["same"]
    assert changes(diff(clip("6", 0), clip("1", 0)), "c") == {"input 2": ("6.0", "1.0")}
    assert [c["what"] for c in diff(clip("6", 0), clip("6", 1))["model"]] == [
        "operators that compute shapes and constants"
    ]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = cnn()
    apply(new, [{"reinitialize": {"layers": "h", "seed": 1}}])
    save(cnn(), "a.onnx")
    save(new, "b.onnx")
    assert "the models are the same" in run("diff", "a.onnx", "a.onnx").stdout
    out = run("diff", "a.onnx", "b.onnx", "--html", "page.html", code=1).stdout
    assert "~ h MatMul N×6" in out
    assert "… 8 the same" in out
    data = json.loads(run("diff", "a.onnx", "b.onnx", "--json", code=1).stdout)
    assert data["counts"] == {"added": 0, "removed": 0, "changed": 1, "same": 8}
    assert (data["old"], data["same"]) == ("a.onnx", False)
    html = Path("page.html").read_text()
    assert "a.onnx → b.onnx" in html
    assert "http" not in html.replace("http-equiv", "")  # nothing from elsewhere
    fails("diff", "a.onnx", "missing.onnx")


def test_names_are_not_markup() -> None:
    new = cnn()
    new.graph.node(0).name = "<script>alert(1)</script>"
    found = diff(cnn(), new)
    assert "<script>" not in page(found, "<b>", "new")
    assert "<script>" in text(found).plain


def test_a_number_that_became_none_is_infinitely_far() -> None:
    old, new = mlp(), mlp()
    array = np.zeros(4, np.float32)
    old.graph.initializers["b.bias"].const_value = ir.tensor(array, name="b.bias")
    array = np.array([0, np.nan, 0, 0], np.float32)
    new.graph.initializers["b.bias"].const_value = ir.tensor(array, name="b.bias")
    (change,) = next(item for item in diff(old, new)["layers"] if item["name"] == "b")["changes"]
    assert (change["changed"], change["largest"], change["distance"]) == (1, np.inf, np.inf)
    assert "1 of 4 numbers, at most inf" in text(diff(old, new)).plain
