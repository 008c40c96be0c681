"""Loading and saving: what is not a model is refused in one line, and a failed save leaves what was there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from surgery.errors import SurgeryError
from surgery.io import infer_shapes, load, save, writing
from surgery.layers import layers
from surgery.marks import marks, set_marks
from tests.graphs import run

SMALL = """<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {a = Relu(x) y = MatMul(a, w)}"""


def small() -> onnx.ModelProto:
    return onnx.parser.parse_model(SMALL)


def wide(columns: int = 300) -> ir.Model:
    """A model with one weight of 4 · `columns` numbers, enough to go to a file of its own."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,{columns}] y) {{y = MatMul(x, w)}}'
    )
    weight = np.arange(4 * columns, dtype=np.float32).reshape(4, columns)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto)


def external(folder: Path, **changes: str) -> Path:
    """A model file whose weight is in `folder`/weights.bin; `changes` falsify its entries."""
    proto = ir.to_proto(wide())
    tensor = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    entries = {"location": "weights.bin", "offset": "0", "length": str(len(tensor.raw_data))} | changes
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def weight(model: ir.Model) -> np.ndarray:
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


class TestLoad:
    def test_a_model_comes_back_with_names_and_shapes(self, tmp_path: Path) -> None:
        onnx.save(small(), tmp_path / "m.onnx")
        model = load(tmp_path / "m.onnx")
        assert [n.name for n in model.graph] == ["a", "y"]
        assert model.graph.node(0).outputs[0].shape == ir.Shape(["N", 4])
        assert weight(model)[1, 0] == 4

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match=r"nothing\.onnx: no such file"):
            load(tmp_path / "nothing.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match="is a folder"):
            load(tmp_path)

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        with pytest.raises(SurgeryError, match="is empty"):
            load(tmp_path / "m.onnx")

    @pytest.mark.parametrize("keep", [1, 0.1, 0.5, 0.9, -1])
    def test_truncated_file(self, tmp_path: Path, keep: float) -> None:
        whole = ir.to_proto(wide()).SerializeToString()
        end = int(len(whole) * keep) if isinstance(keep, float) else keep
        (tmp_path / "m.onnx").write_bytes(whole[:end])
        with pytest.raises(SurgeryError, match=r"m\.onnx: is not"):
            load(tmp_path / "m.onnx")

    @pytest.mark.parametrize("content", [b"GIF89a" + bytes(100), b"{}", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(50)])
    def test_another_kind_of_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(SurgeryError, match=r"m\.onnx: is not"):
            load(tmp_path / "m.onnx")

    @pytest.mark.parametrize(("opset", "reason"), [(22, "newer than 21"), (6, "oldest")])
    def test_operator_set_no_runtime_reads(self, tmp_path: Path, opset: int, reason: str) -> None:
        proto = small()
        proto.opset_import[0].version = opset
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(SurgeryError, match=f"operator set {opset}.*{reason}"):
            load(tmp_path / "m.onnx")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda g: g.node[1].input.__setitem__(0, "nowhere"), "MatMul '' reads 'nowhere', which nothing gives"),
            (lambda g: g.node[0].output.__delitem__(0), "Relu '' lacks an input or its output"),
            (lambda g: g.node[1].input.__delitem__(1), "MatMul '' lacks an input or its output"),
            (lambda g: g.node[1].input.__setitem__(1, ""), "MatMul '' lacks an input or its output"),
            (lambda g: setattr(g.output[0], "name", "z"), "nothing gives the output 'z'"),
        ],
    )
    def test_a_graph_with_loose_ends(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[onnx.GraphProto], None], message: str
    ) -> None:
        proto = small()
        change(proto.graph)
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(SurgeryError, match=message):
            load(tmp_path / "m.onnx")
        assert not caplog.records

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        whole = small().SerializeToString()
        assert whole.count(b"\x22\x04Relu") == 1
        (tmp_path / "m.onnx").write_bytes(whole.replace(b"\x22\x04Relu", b"\x22\x04Re\xd2u"))
        with pytest.raises(SurgeryError, match="not valid UTF-8"):
            load(tmp_path / "m.onnx")

    def test_a_weight_without_a_type(self, tmp_path: Path) -> None:
        proto = small()
        proto.graph.initializer[0].data_type = 0
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(SurgeryError, match=r"m\.onnx: weight 'w' has no type"):
            load(tmp_path / "m.onnx")

    def test_what_a_file_says_wrong_of_a_weight(self, tmp_path: Path) -> None:
        proto = small()
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.DOUBLE, ["A", 7]))
        onnx.save(proto, tmp_path / "m.onnx")
        value = load(tmp_path / "m.onnx").graph.initializers["w"]
        assert (value.shape, value.dtype) == (ir.Shape([4, 3]), ir.DataType.FLOAT)

    def test_unreadable_file(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("the superuser may read everything")
        onnx.save(small(), tmp_path / "m.onnx")
        (tmp_path / "m.onnx").chmod(0)
        with pytest.raises(SurgeryError, match="cannot be read"):
            load(tmp_path / "m.onnx")

    def test_weights_that_are_inputs_become_plain_initializers(self, tmp_path: Path) -> None:
        proto = small()
        proto.ir_version = 3
        proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3]))
        onnx.save(proto, tmp_path / "m.onnx")
        model = load(tmp_path / "m.onnx")
        assert [i.name for i in model.graph.inputs] == ["x"]
        assert "w" in model.graph.initializers

    def test_weights_from_constant_operators_become_initializers(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13]> g (float[N,1] x) => (float[N,1] y) {
            w = Constant<value = float[1,1] {2}>() y = MatMul(x, w)}""")
        onnx.save(proto, tmp_path / "m.onnx")
        assert weight(load(tmp_path / "m.onnx")).tolist() == [[2]]

    @pytest.mark.parametrize("shape", ["4, 300", "-1, 300", "4, -1", "0, 300"])
    def test_weights_have_the_shape_in_which_they_are_used(self, tmp_path: Path, shape: str) -> None:
        proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,300] y)
            <int64[2] s = {{{shape}}}> {{r = Reshape(w, s) y = MatMul(x, r)}}""")
        array = np.arange(1200, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.reshape(4, 1, 300), "w"))
        onnx.save(proto, tmp_path / "m.onnx")
        for path in (tmp_path / "m.onnx", tmp_path / "external.onnx"):
            model = load(path)
            assert [n.op_type for n in model.graph] == ["MatMul"]
            assert set(model.graph.initializers) == {"w"}
            np.testing.assert_array_equal(weight(model), array.reshape(4, 300))
            onnx.save(proto, tmp_path / "external.onnx", save_as_external_data=True, size_threshold=0)
        assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)

    def test_statistics_that_an_exporter_made_one_with_other_tensors_are_separate_again(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
            g (float[N,2,3] x) => (float[N,2,3] z)
            <float[2] one = {1, 1}, float[2] zero = {0, 0}, float[2] mean = {0, 0}> {
                running = Identity(one) bias = Identity(mean)
                y = BatchNormalization(x, one, zero, zero, running)
                z = BatchNormalization(y, one, bias, mean, one)}""")
        for node in proto.graph.node:  # the name that the statistics would get is taken
            node.input[:] = [name.replace("zero", "y.running_mean") for name in node.input]
        proto.graph.initializer[1].name = "y.running_mean"
        onnx.save(proto, tmp_path / "m.onnx")
        model = load(tmp_path / "m.onnx")
        first, second = (layer.parameters for layer in layers(model))
        assert first["var"].name == "running"
        assert first["mean"].name == "y.running_mean_"
        assert first["scale"] is second["scale"]  # what is shared on purpose cannot be told
        statistics = [p[role] for p in (first, second) for role in ("mean", "var")]
        assert len({*statistics, first["scale"], first["bias"], second["bias"]}) == 7
        assert all(isinstance(v.const_value, ir.Tensor) for v in statistics)
        assert [n.op_type for n in model.graph] == ["Identity", "BatchNormalization", "BatchNormalization"]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        x = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
        np.testing.assert_array_equal(run(model, x)[0], ReferenceEvaluator(proto).run(None, {"x": x})[0])


class TestExternalData:
    def test_weights_stay_in_their_file(self, tmp_path: Path) -> None:
        model = load(external(tmp_path))
        assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
        np.testing.assert_array_equal(weight(model), weight(wide()))

    @pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", ""])
    def test_path_outside_the_folder(self, tmp_path: Path, location: str) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(10_000))
        (tmp_path / "model").mkdir()
        with pytest.raises(SurgeryError, match=r"outside the model's folder|no valid file name"):
            load(external(tmp_path / "model", location=location))

    def test_symbolic_link_out_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(10_000))
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "innocent.bin").symlink_to(tmp_path / "secret.bin")
        with pytest.raises(SurgeryError, match="outside the model's folder"):
            load(external(tmp_path / "model", location="innocent.bin"))

    def test_missing_weight_file(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(SurgeryError, match=r"weights\.bin is missing"):
            load(path)

    def test_weight_file_that_is_a_folder(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        (tmp_path / "weights.bin").unlink()
        (tmp_path / "weights.bin").mkdir()
        with pytest.raises(SurgeryError, match="is not a file"):
            load(path)

    @pytest.mark.parametrize("offset", ["1", "100000", str(2**62)])
    def test_range_past_the_end(self, tmp_path: Path, offset: str) -> None:
        with pytest.raises(SurgeryError, match="too short for 'w'"):
            load(external(tmp_path, offset=offset))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"length": "8"}, "said to be"),
            ({"length": "-1"}, "length must be non-negative"),
            ({"offset": "-4"}, "offset must be non-negative"),
            ({"offset": "many"}, "many"),
        ],
    )
    def test_range_that_does_not_fit_the_shape(self, tmp_path: Path, changes: dict[str, str], reason: str) -> None:
        with pytest.raises(SurgeryError, match=reason):
            load(external(tmp_path, **changes))

    def test_constant_attribute_outside_the_folder(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,3] y) {
            w = Constant<value = float[4,3] {1,2,3,4,5,6,7,8,9,10,11,12}>() y = MatMul(x, w)}""")
        tensor = proto.graph.node[0].attribute[0].t
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(SurgeryError, match="outside the model's folder"):
            load(tmp_path / "m.onnx")


class TestSave:
    def test_marks_and_the_operator_set_survive(self, tmp_path: Path) -> None:
        model = wide()
        set_marks(model.graph.initializers["w"], trainable=False, learning_rate=0.5)
        save(model, tmp_path / "m.onnx")
        proto = onnx.load(tmp_path / "m.onnx")
        assert (proto.ir_version, proto.opset_import[0].version) == (10, 13)
        again = marks(load(tmp_path / "m.onnx").graph.initializers["w"])
        assert (again.trainable, again.learning_rate) == (False, 0.5)

    def test_next_to_its_weight_file_only_the_graph_is_written(self, tmp_path: Path) -> None:
        model = load(external(tmp_path))
        save(model, tmp_path / "other.onnx")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "other.onnx", "weights.bin"]
        assert (tmp_path / "other.onnx").stat().st_size < 500
        np.testing.assert_array_equal(weight(load(tmp_path / "other.onnx")), weight(wide()))

    def test_elsewhere_the_weights_come_along(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        save(load(external(tmp_path / "in")), tmp_path / "out" / "m.onnx")
        (tmp_path / "in" / "weights.bin").unlink()
        np.testing.assert_array_equal(weight(load(tmp_path / "out" / "m.onnx")), weight(wide()))
        onnx.checker.check_model(str(tmp_path / "out" / "m.onnx"))

    def test_beyond_the_limit_of_one_file_weights_go_to_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writing, "_PROTOBUF_LIMIT", writing._GRAPH_ROOM + 4000)
        save(wide(200), tmp_path / "small.onnx")  # 3,200 bytes of weights
        assert not (tmp_path / "small.onnx.data").exists()
        model = wide()  # 4,800
        save(model, tmp_path / "big.onnx")
        assert (tmp_path / "big.onnx.data").stat().st_size == 4800
        np.testing.assert_array_equal(weight(load(tmp_path / "big.onnx")), weight(wide()))

    def test_the_model_in_memory_stays_right_when_its_own_weight_file_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writing, "_PROTOBUF_LIMIT", writing._GRAPH_ROOM + 4000)
        path = tmp_path / "m.onnx"
        save(wide(), path)
        model = load(path)
        first = ir.Value(name="first", const_value=ir.tensor(np.full(2000, 7, np.float32), name="first"))
        first.shape, first.type = ir.Shape([2000]), ir.TensorType(ir.DataType.FLOAT)
        kept = model.graph.initializers.pop("w")
        model.graph.register_initializer(first)  # so that the old weight moves to another place in the file
        model.graph.register_initializer(kept)
        save(model, path)
        np.testing.assert_array_equal(weight(model), weight(wide()))
        np.testing.assert_array_equal(weight(load(path)), weight(wide()))

    def test_a_failed_save_leaves_the_old_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "m.onnx"
        monkeypatch.setattr(writing, "_PROTOBUF_LIMIT", writing._GRAPH_ROOM + 1)
        save(wide(), path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writing, "write_model", full)
        model = wide(500)
        with pytest.raises(SurgeryError, match="No space left on device"):
            save(model, path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        assert weight(model).shape == (4, 500)

    def test_a_folder_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").mkdir()
        with pytest.raises(SurgeryError, match="cannot be written"):
            save(wide(), tmp_path / "m.onnx")
        assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]

    def test_permissions_of_the_old_file_are_kept(self, tmp_path: Path) -> None:
        save(wide(), tmp_path / "m.onnx")
        (tmp_path / "m.onnx").chmod(0o640)
        save(wide(), tmp_path / "m.onnx")
        assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o640


class TestInferShapes:
    def test_an_inconsistent_graph_names_the_operator(self) -> None:
        proto = small()
        proto.graph.initializer[0].dims[:] = [3, 4]
        proto.graph.node[1].name = "product"
        with pytest.raises(SurgeryError, match=r"inconsistent: .*MatMul.*product.*Incompatible dimensions"):
            infer_shapes(ir.from_proto(proto))

    def test_wrong_shapes_of_a_file_are_put_right(self) -> None:
        proto = small()
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", 9]))
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
        model = ir.from_proto(proto)
        infer_shapes(model)
        assert model.graph.node(0).outputs[0].shape == ir.Shape(["N", 4])
        assert model.graph.outputs[0].shape == ir.Shape(["N", 3])

    def test_scalar_results_have_a_shape(self) -> None:
        model = ir.from_proto(
            onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float y) {
                y = ReduceMean<keepdims = 0>(x)}""")
        )
        model.graph.outputs[0].shape = None
        infer_shapes(model)
        assert model.graph.outputs[0].shape == ir.Shape([])

    def test_weights_are_the_same_afterwards(self) -> None:
        model = wide()
        tensor = model.graph.initializers["w"].const_value
        infer_shapes(model)
        assert model.graph.initializers["w"].const_value is tensor


LOOSE = {
    "a subgraph's operator": "Relu 'a' reads 'nope', which nothing gives",
    "a subgraph's output": "nothing gives the output 'nope'",
    "a function's operator": "reads 'nope', which nothing gives",
    "a circle": "its operators read each other in a circle",
}
GRAPHS = {
    "a subgraph's operator": "g (float[N,3] x, bool c) => (float[N,3] y) { y = If(c) <then_branch = t () => "
    "(float[N,3] a) { [a] a = Relu(nope) }, else_branch = e () => (float[N,3] b) { b = Relu(x) }> }",
    "a subgraph's output": "g (float[N,3] x, bool c) => (float[N,3] y) { y = If(c) <then_branch = t () => "
    "(float[N,3] nope) { a = Relu(x) }, else_branch = e () => (float[N,3] b) { b = Relu(x) }> }",
    "a function's operator": 'g (float[N,3] x) => (float[N,3] y) { y = f.foo(x) } <domain: "f", opset_import: '
    '["" : 17]> foo (a) => (b) { b = Add(a, nope) }',
    "a circle": "g (float[N,3] x) => (float[N,3] y) { y = Add(z, x) z = Relu(y) }",
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_loose_ends_anywhere_are_told_and_nothing_else_is_printed(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "loose.onnx"
    text = f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]> {GRAPHS[kind]}'
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(SurgeryError, match=f"loose.onnx: .*{LOOSE[kind]}|loose.onnx: {LOOSE[kind]}"):
        load(path)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_operators_in_the_wrong_order_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "unsorted.onnx"
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x, bool c) => (float[N,3] y)
        { y = If(c) <then_branch = t () => (float[N,3] a) { a = Relu(b) b = Neg(z) },
        else_branch = e () => (float[N,3] d) { d = Relu(x) }> z = Abs(x) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    model = load(path)
    assert [node.op_type for node in model.graph] == ["Abs", "If"]
    assert [n.op_type for n in model.graph.node(1).attributes["then_branch"].as_graph()] == ["Neg", "Relu"]
    model.clone()
