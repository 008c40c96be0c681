"""ONNX files as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import surgery
from converters import onnx_file
from converters.onnx_file import convert_onnx
from surgery import runtime
from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.marks import Constraint, Marks, labels, marks

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_old_operator_sets_are_upgraded(rng: np.random.Generator) -> None:
    path = LIGHT / "light_squeezenet.onnx"
    before = ir.load(path)
    after = convert_onnx(path)
    assert (before.opset_imports[""], after.opset_imports[""]) == (9, 17)
    assert [i.name for i in after.graph.inputs] == ["data_0"]
    image = rng.random((1, 3, 224, 224), dtype=np.float32)
    expected, found = (
        runtime.session(model, ["CPUExecutionProvider"]).run(None, {"data_0": image})[0] for model in (before, after)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_cannot_be_upgraded_is_an_error(tmp_path: Path) -> None:
    text = '<ir_version: 3, opset_import: ["" : 8]> old (float[2] x) => (float[2] y) { y = Homemade(x) }'
    path = tmp_path / "old.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(SurgeryError, match=r"old.onnx: cannot be upgraded from operator set 8 to 17 \(.+\); export it"):
        convert_onnx(path)


OLD = """<ir_version: 6, opset_import: ["" : OPSET]> g (float[N,3] x) => (float[N,2] y)
    <float[2,3] w = {1,2,3,4,5,6}, float[2] b = {1,2}, float[2,2] v = {1,2,3,4}>
    { h = Gemm<transB = 1>(x, w, b) d, m = Dropout(h) u = Unsqueeze<axes = [2]>(d) s = Squeeze<axes = [2]>(u)
    z = MatMul(s, v) y = Softmax(z) }"""
RECIPE = [
    {"replace_head": {"units": 3, "labels": ["a", "b", "c"], "keep": [1]}},
    {"freeze": "h"},
    {"learning_rate": {"layers": "head", "multiplier": 3.0, "bias": 2.0}},
    {"max_norm": {"value": 3.0, "layers": "head"}},
]


def marked(path: Path, opset: int) -> None:
    onnx.save(onnx.parser.parse_model(OLD.replace("OPSET", str(opset))), path)
    model = load(path)
    surgery.apply(model, RECIPE)
    save(model, path)


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_marks_survive_the_upgrade(tmp_path: Path, opset: int) -> None:
    path = tmp_path / "marked.onnx"
    marked(path, opset)
    model = convert_onnx(path)
    assert model.opset_imports[""] == 17
    assert {n: marks(v) for n, v in model.graph.initializers.items() if marks(v) != Marks()} == {
        "w": Marks(trainable=False),
        "b": Marks(trainable=False),
        "z.weight": Marks(learning_rate=3.0, constraint=Constraint("max_norm", 3.0, (0,))),
        "z.bias": Marks(learning_rate=2.0),
    }
    assert labels(model, "y") == ["a", "b", "c"]
    assert surgery.apply(model, RECIPE) == []  # the head knows that it has been replaced


def test_marks_that_cannot_be_kept_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "marked.onnx"
    marked(path, 11)
    convert = onnx.version_converter.convert_version

    def rename(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        result = convert(proto, version)
        next(t for t in result.graph.initializer if t.name == "w").name = "other"
        next(n for n in result.graph.node if n.op_type == "Gemm").input[1] = "other"
        return result

    monkeypatch.setattr(onnx_file.onnx.version_converter, "convert_version", rename)
    with pytest.raises(SurgeryError, match=r"marked.onnx: .* would lose the marks of parameter 'w'; export"):
        convert_onnx(path)
