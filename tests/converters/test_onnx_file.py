"""ONNX files as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import converters
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


def old_network(opset: int) -> onnx.ModelProto:
    """A network in the form that operator sets 1 to 6 have: weights are inputs, shapes attributes, broadcasts asked."""
    rng = np.random.default_rng(0)
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    shapes = {"w": (4, 3, 3, 3), "scale": (4,), "bias": (4,), "mean": (4,), "var": (4,), "g": (5, 288), "h": (5,)}
    weights = [array(rng.uniform(0.5, 1, shape).astype(np.float32), name) for name, shape in shapes.items()]
    in_place = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    reshape = {"inputs": ["t"], "shape": [-1, 288]} if opset < 5 else {"inputs": ["t", "shape"]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"], is_test=1, **in_place),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Dropout", ["r"], ["d"], is_test=1, ratio=0.5),
        helper.make_node("Add", ["d", "bias"], ["a"], broadcast=1, axis=1),
        helper.make_node("Concat", ["a", "r"], ["t"], **({} if opset < 4 else {"axis": 1})),
        helper.make_node("Reshape", outputs=["f"], **reshape),
        helper.make_node("Cast", ["f"], ["k"], to="FLOAT" if opset < 6 else 1),
        helper.make_node("Gemm", ["k", "g", "h"], ["y"], broadcast=1, transB=1),
    ]
    if opset == 5:
        weights.append(array(np.array([-1, 288], np.int64), "shape"))
    elif opset > 5:
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value=array(np.array([-1, 288]), "")))
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])
    graph = helper.make_graph(nodes, "old", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3
    return model


@pytest.mark.parametrize("opset", [1, 2, 3, 4, 5, 6])
def test_operator_sets_that_no_runtime_reads(tmp_path: Path, opset: int, rng: np.random.Generator) -> None:
    """What they compute is known from ONNX's reference evaluator for operators that have not changed, and NumPy."""
    proto = old_network(opset)
    onnx.save(proto, tmp_path / "old.onnx")
    with pytest.raises(SurgeryError, match=f"uses operator set {opset}; 7 is the oldest .* raise it with `surgery con"):
        load(tmp_path / "old.onnx")
    model = converters.convert(tmp_path / "old.onnx")
    assert model.opset_imports[""] == 17
    assert [i.name for i in model.graph.inputs] == ["x"]
    assert not any(node.op_type == "Constant" for node in model.graph)
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    w = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    c = np.einsum("nchwij,ocij->nohw", windows, w["w"])
    scale, bias, mean, var = (w[name][:, None, None] for name in ("scale", "bias", "mean", "var"))
    r = np.maximum((c - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
    expected = np.concatenate([r + bias, r], 1).reshape(1, -1) @ w["g"].T + w["h"]
    found = runtime.session(model, ["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_file_as_it_was_is_the_reference(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(OLD.replace("OPSET", "11")), tmp_path / "old.onnx")
    model = converters.convert(tmp_path / "old.onnx")
    assert converters.verify(tmp_path / "old.onnx", model).relative < 1e-6
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() + 1, name="w")
    compared = converters.verify(tmp_path / "old.onnx", model)
    assert not compared.equal
