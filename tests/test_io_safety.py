"""Hostile files: each kind of lie is refused in one line, in no time and no memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from surgery.errors import SurgeryError
from surgery.io import load
from surgery.layers import layers
from surgery.proto import prefix
from surgery.runtime import session

TEXT = """<ir_version: 8, opset_import: ["": 17, "custom": 1]> g (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { a = Relu(x) y = MatMul(a, w) }"""


@pytest.fixture(autouse=True)
def soon_and_small() -> Iterator[None]:
    """Every test here takes less than 5 seconds of computing and 200 MB."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def refused(path: Path, proto: onnx.ModelProto | bytes, reason: str) -> None:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    with pytest.raises(SurgeryError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def small() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


BRANCH = onnx.parser.parse_graph("t () => (float[2] b) { b = Constant<value = float[2] {1, 2}>() }")


class TestNames:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda g: g.node[1].output.__setitem__(0, "a"), "a"),
            (lambda g: g.node[0].output.__setitem__(0, "x"), "x"),
            (lambda g: g.node[0].output.__setitem__(0, "w"), "w"),
            (lambda g: g.initializer.append(g.initializer[0]), "w"),
            (lambda g: g.input.append(g.input[0]), "x"),
            (lambda g: g.output.append(g.output[0]), "y"),
        ],
    )
    def test_twice(self, tmp_path: Path, change: Callable[[onnx.GraphProto], None], name: str) -> None:
        proto = small()
        change(proto.graph)
        refused(tmp_path / "m.onnx", proto, f"two values of one graph have the name '{name}'")

    def test_twice_in_a_subgraph_and_in_a_function(self, tmp_path: Path) -> None:
        branch = onnx.GraphProto()
        branch.CopyFrom(BRANCH)
        branch.node.append(branch.node[0])
        proto = small()
        proto.graph.node.add(op_type="If", input=["c"], output=["z"]).attribute.add(name="then", type=5).g.CopyFrom(
            branch
        )
        refused(tmp_path / "m.onnx", proto, "two values of one graph have the name 'b'")
        proto = small()
        function = proto.functions.add(name="f", domain="custom", input=["i"], output=["o"])
        function.node.extend(onnx.helper.make_node("Relu", ["i"], ["o"]) for _ in range(2))
        refused(tmp_path / "m.onnx", proto, "two values of one graph have the name 'o'")

    @pytest.mark.parametrize("what", [b"\x0a\x01x", b"\x42\x01w", b"\x12\x01a", b"\x0a\x01y"])
    def test_no_text(self, tmp_path: Path, what: bytes) -> None:
        """Of an input, a weight, an operator's output, a graph's output."""
        data = small().SerializeToString()
        assert what in data
        refused(tmp_path / "m.onnx", data.replace(what, what[:-1] + b"\xff"), r"UTF-8|is not a readable ONNX file")


class TestSizes:
    @pytest.mark.parametrize("dims", [[2**40, 2**40], [4, 4], [4, -3], [2**62, 0, 2**62, 5]])
    def test_a_shape_that_the_numbers_do_not_fill(self, tmp_path: Path, dims: list[int]) -> None:
        for encoding in ("float_data", "raw", "big"):
            proto = small()
            tensor = proto.graph.initializer[0]
            if encoding != "float_data":
                tensor.ClearField("float_data")
                tensor.raw_data = bytes(48 if encoding == "raw" else 2**17)
            tensor.dims[:] = dims
            refused(tmp_path / "m.onnx", proto, r"weight 'w' (of shape .* needs .* and has|has the shape)")

    def test_no_numbers_at_all(self, tmp_path: Path) -> None:
        proto = small()
        proto.graph.initializer[0].ClearField("float_data")
        refused(tmp_path / "m.onnx", proto, "weight 'w' of shape .* needs 12 numbers and has 0")

    def test_a_constant(self, tmp_path: Path) -> None:
        proto = small()
        tensor = onnx.TensorProto(data_type=1, dims=[2**33], float_data=[1, 2])
        proto.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t.CopyFrom(tensor)
        refused(tmp_path / "m.onnx", proto, "needs 8589934592 numbers and has 2")

    def test_words(self, tmp_path: Path) -> None:
        proto = small()
        proto.graph.initializer.add(name="s", data_type=8, dims=[2**50]).string_data.append(b"a")
        refused(tmp_path / "m.onnx", proto, "weight 's' .* needs 1125899906842624 texts and has 1")

    def test_huge_dimensions_of_values(self, tmp_path: Path) -> None:
        proto = small()
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2**62
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert len(layers(load(tmp_path / "m.onnx"))) == 2


def nested(depth: int) -> bytes:
    """A graph in a graph in a graph …, each in an If."""
    parts = [BRANCH.SerializeToString()]  # from the inside out
    size = len(parts[0])
    for _ in range(depth):
        for before, field in ((b"\x0a\x04then\xa0\x01\x05", 6), (b"\x22\x02If\x12\x01b", 5), (b"", 1)):
            parts.append(before + prefix(field, size))
            size += len(parts[-1])
    return b"\x08\x08\x42\x04\x0a\x00\x10\x11" + prefix(7, size) + b"".join(reversed(parts))


class TestGraphs:
    @pytest.mark.parametrize("depth", [40, 1_000, 100_000])
    def test_deeply_nested(self, tmp_path: Path, depth: int) -> None:
        refused(tmp_path / "m.onnx", nested(depth), "is not a readable ONNX file")

    def test_nested_as_deep_as_protobuf_reads(self, tmp_path: Path) -> None:
        refused(tmp_path / "m.onnx", nested(20), "lacks an input")

    def test_a_long_circle(self, tmp_path: Path) -> None:
        proto = small()
        del proto.graph.node[:]
        names = [f"v{i}" for i in range(20_000)]
        for i, name in enumerate(names):
            proto.graph.node.add(op_type="Relu", input=[names[i - 1]], output=[name])
        proto.graph.output[0].name = names[-1]
        refused(tmp_path / "m.onnx", proto, "read each other in a circle")

    def test_operators_of_other_domains(self, tmp_path: Path) -> None:
        """They load, and a runtime that does not have them says so."""
        proto = small()
        proto.graph.node[0].domain = "custom"
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        model = load(tmp_path / "m.onnx")
        assert [layer.op_type for layer in layers(model)] == ["Relu", "MatMul"]
        with pytest.raises(SurgeryError, match=r"refuses the model: .*custom"):
            session(model, ["CPUExecutionProvider"])

    def test_types_and_versions_that_there_are_not(self, tmp_path: Path) -> None:
        constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.TensorProto(data_type=116, dims=[1]))
        proto = small()
        proto.graph.node.append(constant)
        refused(tmp_path / "m.onnx", proto, "weight '' has a type that there is not")
        proto.graph.node[-1].attribute[0].ClearField("type")
        proto.graph.node[-1].attribute[0].t.data_type = 1
        refused(tmp_path / "m.onnx", proto, "m.onnx: ")
        proto = small()
        function = proto.functions.add(name="f", domain="custom", input=["i"], output=["o"])
        function.opset_import.add(version=2**40)
        function.node.append(onnx.helper.make_node("Relu", ["i"], ["o"]))
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert len(layers(load(tmp_path / "m.onnx"))) == 2  # nothing uses it

    def test_a_domain_without_a_version(self, tmp_path: Path) -> None:
        proto = small()
        proto.graph.node[0].domain = "elsewhere"
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(SurgeryError, match="refuses the model"):
            session(load(tmp_path / "m.onnx"), ["CPUExecutionProvider"])


def external(folder: Path, places: dict[str, tuple[int, int]]) -> Path:
    """A model whose weights are at offsets and of lengths in weights.bin, which has 1000 bytes."""
    (folder / "weights.bin").write_bytes(bytes(1000))
    proto = small()
    del proto.graph.initializer[:]
    for name, (offset, length) in places.items():
        tensor = proto.graph.initializer.add(name=name, data_type=1, dims=[length // 4], data_location=1)
        for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    proto.graph.node[1].input[1] = next(iter(places))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


class TestExternal:
    def test_overlaps(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match=r"weights 'u' and 'v' overlap in weights\.bin"):
            load(external(tmp_path, {"v": (96, 100), "u": (0, 100)}))
        with pytest.raises(SurgeryError, match="overlap"):
            load(external(tmp_path, {"u": (0, 400), "v": (40, 40), "z": (500, 4)}))
        load(external(tmp_path, {"u": (0, 100), "v": (100, 100), "z": (0, 100)}))  # the same place is one weight

    def test_past_the_end(self, tmp_path: Path) -> None:
        with pytest.raises(SurgeryError, match="too short for 'v'"):
            load(external(tmp_path, {"u": (0, 100), "v": (904, 100)}))
        with pytest.raises(SurgeryError, match="too short for 'u'"):
            load(external(tmp_path, {"u": (0, 2**42)}))

    def test_in_a_subgraph_and_in_a_function(self, tmp_path: Path) -> None:
        tensor = onnx.TensorProto(name="t", data_type=1, dims=[2], data_location=1)
        tensor.external_data.add(key="location", value="/etc/passwd")
        proto = small()
        branch = onnx.GraphProto()
        branch.CopyFrom(BRANCH)
        branch.node[0].attribute[0].t.CopyFrom(tensor)
        node = proto.graph.node.add(op_type="If", input=["c"], output=["z"])
        proto.graph.input.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
        for name in ("then_branch", "else_branch"):
            node.attribute.add(name=name, type=5).g.CopyFrom(branch)
        refused(tmp_path / "m.onnx", proto, "points outside the model's folder")
        proto = small()
        function = proto.functions.add(name="f", domain="custom", output=["b"])
        function.opset_import.add(version=17)
        function.node.append(branch.node[0])
        refused(tmp_path / "m.onnx", proto, "points outside the model's folder")

    def test_a_hard_link_to_a_file_of_another_user(self, tmp_path: Path) -> None:
        path = external(tmp_path, {"u": (0, 100)})
        os.link(tmp_path / "weights.bin", tmp_path / "other")
        load(path)  # one's own
        if os.geteuid():
            pytest.skip("only the superuser may give files away")
        os.chown(tmp_path / "weights.bin", 12345, 12345)
        with pytest.raises(SurgeryError, match=r"weights\.bin is a hard link to another user's file"):
            load(path)
        (tmp_path / "other").unlink()
        load(path)  # it has one name

    def test_a_pipe_and_a_device(self, tmp_path: Path) -> None:
        path = external(tmp_path, {"u": (0, 100)})
        (tmp_path / "weights.bin").unlink()
        os.mkfifo(tmp_path / "weights.bin")
        with pytest.raises(SurgeryError, match="is not a file"):
            load(path)
        os.mkfifo(tmp_path / "pipe.onnx")
        with pytest.raises(SurgeryError, match="is not a file"):
            load(tmp_path / "pipe.onnx")
        with pytest.raises(SurgeryError, match="is not a file"):
            load("/dev/zero")


def test_random_bytes_in_the_place_of_a_weight_are_only_numbers(tmp_path: Path, rng: np.random.Generator) -> None:
    proto = small()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = rng.bytes(48)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    found = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert found is not None
    assert found.tobytes() == tensor.raw_data
