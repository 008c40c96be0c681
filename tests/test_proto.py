"""Files written without their weights in memory once more are those that onnx writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.proto import light_proto, write_model

DTYPES = [
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT64,
    ir.DataType.INT4,
    ir.DataType.BOOL,
]


def model_of(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A model whose initializers are `tensors`, each passed on to an output."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    for name, tensor in tensors.items():
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.register_initializer(value)
        node = ir.node("Identity", [value], name=f"n_{name}")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"o_{name}", value.type, value.shape
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    model = ir.Model(graph, ir_version=10, producer_name="test")
    model.metadata_props["surgery.key"] = "kept"
    return model


def some_tensors(rng: np.random.Generator) -> dict[str, ir.TensorProtocol]:
    tensors: dict[str, ir.TensorProtocol] = {}
    for dtype in DTYPES:
        for count in (3, 65):  # around the limit that the test sets
            array = rng.integers(0, 2, (count, 2)).astype(dtype.numpy())
            tensors[f"{dtype.name}_{count}"] = ir.Tensor(array, dtype=dtype, name=f"{dtype.name}_{count}")
    array = rng.normal(size=(50, 30)).astype(np.float32)
    tensors["turned"] = ir.tensor(array.T, name="turned")  # not contiguous
    unaligned = np.frombuffer(b"x" + array.tobytes(), np.float32, array.size, 1)
    tensors["unaligned"] = ir.tensor(unaligned, name="unaligned")
    tensors["empty"] = ir.tensor(np.zeros((0, 4), np.float32), name="empty")
    return tensors


@pytest.mark.parametrize("least", [0, 16, 2**16])
def test_a_file_is_what_onnx_writes(tmp_path: Path, least: int, rng: np.random.Generator) -> None:
    model = model_of(some_tensors(rng))
    write_model(model, tmp_path / "ours.onnx", least)
    onnx.save(ir.to_proto(model), tmp_path / "theirs.onnx")
    ours, theirs = (onnx.load(tmp_path / name) for name in ("ours.onnx", "theirs.onnx"))
    assert ours == theirs
    onnx.checker.check_model(ours)


def test_external_weights_stay_references(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.normal(size=(100, 100)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 0, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape([100, 100]), name="w", base_dir=tmp_path
    )
    write_model(model_of({"w": tensor, "v": ir.tensor(array + 1, name="v")}), tmp_path / "m.onnx", 16)
    assert (tmp_path / "m.onnx").stat().st_size < 1.1 * array.nbytes
    loaded = ir.load(tmp_path / "m.onnx").graph.initializers
    for name, expected in (("w", array), ("v", array + 1)):
        value = loaded[name].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), expected)


def test_a_light_message_has_shapes_and_leaves_the_model_as_it_was(rng: np.random.Generator) -> None:
    array = rng.normal(size=(100, 100)).astype(np.float32)
    model = model_of({"w": ir.tensor(array, name="w"), "s": ir.tensor(array[:1, :2], name="s")})
    proto, big = light_proto(model, 1000)
    assert set(big) == {"w"}
    assert proto.ByteSize() < 1000
    assert {i.name: list(i.dims) for i in proto.graph.initializer} == {"w": [100, 100], "s": [1, 2]}
    value = model.graph.initializers["w"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), array)
