"""Big weights stay in the file: whatever way it is encoded, what is read is what protobuf would have read."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.io import load
from surgery.io.tensors import ExternalTensor, InlineTensor, Source
from surgery.io.thin import thin
from surgery.proto import prefix

LEAST = 64
HERE = "here"


def restored(data: bytes) -> onnx.ModelProto:
    """What `thin` makes of `data`, with what it left in its place put back."""
    proto = onnx.ModelProto.FromString(thin(memoryview(data), LEAST, HERE))
    for tensor in tensors_of(proto.graph, proto.functions):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == HERE:
            start, length = int(entries["offset"]), int(entries["length"])
            tensor.raw_data = data[start : start + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto


def tensors_of(graph: onnx.GraphProto, functions: object = ()) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    nodes = list(graph.node)
    for function in functions:  # type: ignore[attr-defined]
        nodes += function.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from tensors_of(inner)


def raw(name: str, size: int, byte: int = 1) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=2, dims=[size], raw_data=bytes([byte]) * size)


def everything() -> onnx.ModelProto:
    """A model with tensors in all places and of all encodings, small and big."""
    proto = onnx.ModelProto(ir_version=8, producer_name="x" * 200)
    graph = proto.graph
    graph.name = "g"
    kinds = {1: "float_data", 6: "int32_data", 7: "int64_data", 11: "double_data", 13: "uint64_data", 10: "int32_data"}
    for kind, field in kinds.items():
        for count in (2, 100):
            tensor = graph.initializer.add(name=f"{field}{kind}{count}", data_type=kind, dims=[count])
            getattr(tensor, field).extend([3] * count)
            graph.initializer.append(raw(f"raw{kind}{count}", count, kind))
    graph.initializer.add(name="text", data_type=8, dims=[50]).string_data.extend([b"many words"] * 50)
    graph.initializer.add(name="packed", data_type=22, dims=[200]).raw_data = bytes(100)
    external = graph.initializer.add(name="outside", data_type=1, dims=[40], data_location=1)
    external.external_data.add(key="location", value="x" * 100)
    inner = onnx.GraphProto(name="inner", initializer=[raw("inside", 300), raw("small", 3)])
    node = graph.node.add(op_type="If", output=["y"])
    node.attribute.add(name="then_branch", type=5).g.CopyFrom(inner)
    node.attribute.add(name="many", type=10).graphs.extend([inner, inner])
    node.attribute.add(name="list", type=9).tensors.extend([raw("a", 90), raw("b", 91)])
    graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t.CopyFrom(raw("c", 120))
    function = proto.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t.CopyFrom(raw("c", 130))
    proto.metadata_props.add(key="k", value="v" * 300)
    return proto


class TestThin:
    def test_all_places_and_encodings(self) -> None:
        proto = everything()
        data = proto.SerializeToString()
        thinned = thin(memoryview(data), LEAST, HERE)
        # 6 big raw initializers, a packed one, one in each of three subgraphs, two in a list, two in Constants
        assert thinned.count(HERE.encode()) == 6 + 1 + 3 + 2 + 2
        assert restored(data) == proto

    def test_fields_in_any_order_repeated_and_unknown(self) -> None:
        tensor = raw("w", 200, 7)
        unknown = b"\xf8\x07\x05" + prefix(200, 3) + b"abc" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4)
        first = prefix(9, 100) + bytes(100)  # raw_data twice: the last counts
        content = first + tensor.SerializeToString()
        graphs = [
            unknown + prefix(5, len(content)) + content + unknown,
            onnx.GraphProto(name="late").SerializeToString(),
        ]
        data = b"".join(prefix(7, len(g)) + g for g in graphs) + b"\x08\x0a"  # the graph comes in two parts
        expected = onnx.ModelProto.FromString(data)
        assert expected.graph.initializer[0].raw_data == b"\x07" * 200
        assert restored(data) == expected
        assert HERE.encode() in thin(memoryview(data), LEAST, HERE)

    def test_numbers_longer_than_they_need_be(self) -> None:
        content = raw("w", 200).SerializeToString()
        long = b"\xaa\x80\x00" + bytes([len(content) & 0x7F | 0x80, len(content) >> 7 | 0x80, 0x80, 0x00])
        graph = long + content
        data = prefix(7, len(graph)) + graph
        assert onnx.ModelProto.FromString(data).graph.initializer[0].name == "w"
        assert restored(data) == onnx.ModelProto.FromString(data)

    @pytest.mark.parametrize(
        "extra",
        [
            onnx.TensorProto(float_data=[1.0]),
            onnx.TensorProto(segment=onnx.TensorProto.Segment(begin=1)),
            onnx.TensorProto(data_location=0),
            onnx.TensorProto(data_type=8),
            onnx.TensorProto(data_type=99),
        ],
    )
    def test_what_is_for_protobuf_to_judge_is_left_alone(self, extra: onnx.TensorProto) -> None:
        tensor = raw("w", 200)
        tensor.MergeFrom(extra)
        data = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString()
        assert thin(memoryview(data), LEAST, HERE) == data

    def test_a_tensor_attribute_in_two_parts_is_left_alone(self) -> None:
        attribute = onnx.AttributeProto(name="value", type=4, t=raw("c", 100)).SerializeToString()
        attribute += onnx.AttributeProto(t=onnx.TensorProto(raw_data=bytes(90))).SerializeToString()
        node = prefix(5, len(attribute)) + attribute
        graph = prefix(1, len(node)) + node
        data = prefix(7, len(graph)) + graph
        assert restored(data) == onnx.ModelProto.FromString(data)

    @pytest.mark.parametrize("length", [2**31, 2**63, 2**70, 10**6])
    def test_lengths_past_the_end(self, length: int) -> None:
        with pytest.raises(DecodeError):
            thin(memoryview(b"\x08\x08" + prefix(7, length) + bytes(100)), LEAST, HERE)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_changed_bytes_are_read_as_protobuf_reads_them(self, data: st.DataObject) -> None:
        content = bytearray(everything().SerializeToString())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        try:
            expected = onnx.ModelProto.FromString(bytes(content))
        except DecodeError:
            with contextlib.suppress(DecodeError):  # what protobuf refuses within a weight may be read
                restored(bytes(content))
        else:
            assert restored(bytes(content)).SerializeToString(deterministic=True) == expected.SerializeToString(
                deterministic=True
            )


DTYPES = [t for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


class TestTensors:
    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
    @pytest.mark.parametrize("external", [True, False], ids=["external", "inline"])
    def test_every_type(self, tmp_path: Path, dtype: ir.DataType, external: bool, rng: np.random.Generator) -> None:
        array = rng.integers(0, 2, (300, 401)).astype(dtype.numpy())
        made = ir.Tensor(array, dtype=dtype, name="w")
        x = ir.Value(name="w", shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=made)
        node = ir.node("Identity", [x])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
        graph = ir.Graph([], node.outputs, nodes=[node], initializers=[x], opset_imports={"": 21}, name="g")
        ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", external_data="w.bin" if external else None)
        tensor = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
        assert isinstance(tensor, ExternalTensor if external else InlineTensor if made.nbytes >= 2**16 else object)
        assert tensor is not None
        assert tensor.dtype == dtype
        assert tensor.numpy().dtype == array.dtype
        assert tensor.numpy().tobytes() == array.tobytes()
        assert tensor.tobytes() == made.tobytes()
        with (tmp_path / "out").open("wb") as file:
            file.write(b"abc")
            tensor.tofile(file)  # type: ignore[attr-defined]
            file.write(b"def")
        assert (tmp_path / "out").read_bytes() == b"abc" + made.tobytes() + b"def"
        assert np.asarray(tensor).tobytes() == array.tobytes()

    def test_an_array_is_shared_while_it_is_held_and_aligned(self, tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(b"abc" + np.arange(10, dtype=np.float32).tobytes())
        source = Source(tmp_path / "w")
        tensor = InlineTensor(source, 3, ir.DataType.FLOAT, ir.Shape([5, 2]), name="w")
        array = tensor.numpy()
        assert tensor.numpy() is array
        assert array.flags.aligned
        np.testing.assert_array_equal(array, np.arange(10, dtype=np.float32).reshape(5, 2))
        np.testing.assert_array_equal(np.from_dlpack(tensor), array)  # type: ignore[arg-type]

    def test_weights_that_nobody_looks_at_are_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N,300] x) => (float[N,300] y) '
            "{ a = MatMul(x, u) y = MatMul(a, v) }"
        )
        for name in "uv":
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), name))
        onnx.save(proto, tmp_path / "m.onnx")
        read: list[int] = []
        original = InlineTensor._read

        def counted(self: InlineTensor) -> np.ndarray:
            read.append(self.nbytes)
            return original(self)

        monkeypatch.setattr(InlineTensor, "_read", counted)
        model = load(tmp_path / "m.onnx")
        assert not read
        tensor = model.graph.initializers["u"].const_value
        assert tensor is not None
        assert tensor.numpy().sum() == 90_000
        assert read == [360_000]

    def test_the_model_stays_what_it_was_when_its_file_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N,300] x) => (float[N,300] y) { y = MatMul(x, w) }'
        )
        for fill in (1, 2):
            del proto.graph.initializer[:]
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((300, 300), fill, np.float32), "w"))
            onnx.save(proto, tmp_path / f"{fill}.onnx")
        os.replace(tmp_path / "1.onnx", path)
        tensor = load(path).graph.initializers["w"].const_value
        os.replace(tmp_path / "2.onnx", path)
        assert tensor is not None
        assert tensor.numpy().max() == 1

    def test_an_external_file_that_was_changed_is_told(self, tmp_path: Path) -> None:
        from surgery.errors import SurgeryError

        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N,300] x) => (float[N,300] y) { y = MatMul(x, w) }'
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((300, 300), np.float32), "w"))
        onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
        tensor = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
        (tmp_path / "w.bin").write_bytes(b"short")
        assert tensor is not None
        with pytest.raises(SurgeryError, match=r"w\.bin: was changed"):
            tensor.numpy()

    def test_files_are_closed(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
        )
        onnx.save(proto, tmp_path / "m.onnx")
        count = len(os.listdir("/proc/self/fd"))
        for _ in range(30):
            load(tmp_path / "m.onnx")
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= count + 2
