"""Torch7 files are read in all their encodings, and become networks that compute and train as they did."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import surgery
from converters import convert
from converters.registry import find_network
from converters.torch7.objects import Function, Storage, Table, Tensor, TorchObject
from converters.torch7.read import read
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import marks
from tests.converters.caffe_checks import array, run
from tests.converters.torch7_files import Key, Longs, Lua, Obj, View, module, write_t7

ENCODINGS: list[dict[str, Any]] = [
    {"ascii": True},
    {"ascii": False, "long_size": 8},
    {"ascii": False, "long_size": 4},
    {"ascii": False, "cuda": True},
]
LENET = Path(__file__).resolve().parents[2] / "models" / "lenet_mnist" / "formats" / "lenet.t7"
rng = np.random.default_rng(3)
W1, B1 = (rng.standard_normal(s).astype(np.float32) for s in ((4, 1, 3, 3), (4,)))
W2, B2 = (rng.standard_normal(s).astype(np.float32) for s in ((3, 4 * 3 * 3), (3,)))


def small_net(last: str = "LogSoftMax") -> Obj:
    """A network for images of 1 × 8 × 8."""
    return module(
        "Sequential",
        module("SpatialConvolution", nInputPlane=1, nOutputPlane=4, kW=3, kH=3, dW=1, dH=1, padW=0, padH=0, weight=W1,
               bias=B1),
        module("SpatialBatchNormalization", running_mean=B1, running_var=np.abs(B1) + 1, weight=B1, bias=-B1, eps=1e-5,
               momentum=0.2, affine=True),
        module("ReLU"),
        module("SpatialMaxPooling", kW=2, kH=2, dW=2, dH=2, padW=0, padH=0, ceil_mode=False),
        module("View", size=Longs([36]), numElements=36),
        module("Dropout", p=0.25, v2=True),
        module("Sequential", module("Linear", weight=W2, bias=B2), module(last)),
    )  # fmt: skip


def twin() -> torch.nn.Module:
    """The same network in PyTorch."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Dropout(0.25), torch.nn.Linear(36, 3), torch.nn.LogSoftmax(1),
    ).eval()  # fmt: skip
    state = {"0.weight": W1, "0.bias": B1, "1.weight": B1, "1.bias": -B1, "1.running_mean": B1,
             "1.running_var": np.abs(B1) + 1, "6.weight": W2, "6.bias": B2}  # fmt: skip
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    return net


@pytest.mark.parametrize("how", ENCODINGS, ids=str)
def test_values_of_every_kind_are_read(tmp_path: Path, how: dict[str, Any]) -> None:
    numbers = {
        kind: np.array([[0, 1, 2], [250 if kind == "u1" else -3, 4, 5]], kind)
        for kind in ("u1", "i1", "i2", "i4", "i8", "f4", "f8")
    }
    numbers["f4"][0] = [0.1, -np.inf, 3e-39]
    base = np.arange(20, dtype=np.float64)
    shared = {"me": 1}
    value = {
        "text": "größe", "empty": "", "two\nlines": "a\n b",
        "yes": True, "no": False, "half": 0.5, "whole": -7,
        3: "three", "large": 1e300, "list": [1, [2, "x"]], "longs": Longs([3, -1]),
        "view": View(base, (2, 3), (7, 2), 4),
        "nothing": np.zeros(0, np.float32), "closures": [Lua(6), Lua(7), Lua(8)], "first": shared, "second": shared,
        "base": View(base, (20,), (1,)), "object": Obj("my.Class", {"field": 1}), "old": Obj("my.Old", {}, None),
        **numbers,
    }  # fmt: skip
    shared["self"] = value["object"]
    value["object"].fields["circle"] = value
    found = read(write_t7(tmp_path, value, **how))
    entries = found.entries
    for key in ("text", "empty", "two\nlines", "yes", "no", "half", "whole", 3, "large"):
        assert entries[key] == value[key]
        assert type(entries[key]) is type(value[key])
    assert entries["list"].items()[1].items() == [2, "x"]
    assert isinstance(entries["longs"], Storage)
    assert entries["longs"].data.tolist() == [3, -1]
    np.testing.assert_array_equal(entries["view"].numpy(), [[4, 6, 8], [11, 13, 15]])
    assert entries["view"].storage is entries["base"].storage
    assert isinstance(entries["nothing"], Tensor)
    assert entries["nothing"].size == 0
    assert all(isinstance(each, Function) for each in entries["closures"].items())
    assert len(entries["closures"].items()) == 3
    assert entries["first"] is entries["second"]
    assert isinstance(entries["object"], TorchObject)
    assert entries["object"].fields["circle"] is found
    assert entries["first"].entries["self"] is entries["object"]
    assert entries["old"].type == "my.Old"
    for kind, expected in numbers.items():
        np.testing.assert_array_equal(entries[kind].numpy(), expected)
        short = kind == "i8" and how.get("long_size") == 4
        assert entries[kind].numpy().dtype == (np.int32 if short else expected.dtype)


def test_deep_tables_cost_no_recursion(tmp_path: Path) -> None:
    """A graph's nodes lie in each other."""
    depth = 20_000
    content = b"".join(struct.pack("<iiiid", 3, i + 1, 1, 1, 1.0) for i in range(depth)) + struct.pack("<i", 0)
    path = tmp_path / "deep.t7"
    path.write_bytes(content)
    value, found = read(path), 0
    while isinstance(value, Table):
        value, found = value.entries.get(1), found + 1
    assert found == depth


def test_files_of_others(shared_data: Path) -> None:
    folder = shared_data / "torch7"
    np.testing.assert_array_equal(read(folder / "doubletensor.t7").numpy(), [[1, 2, 3], [4, 5, 6.9]])
    assert read(folder / "floattensor.t7").shape == (2, 3, 4)
    assert read(folder / "list_table.t7").items() == ["hello", "world", "third item", 123]
    assert read(folder / "map_table1.t7").entries[0] == "zero"
    assert read(folder / "nngraph_node.t7").fields["data"].entries["annotations"].entries["hello"] == 123
    x, y = (read(folder / "pair" / name).numpy() for name in ("x.t7", "y.t7"))
    (found,) = run(convert(folder / "pair" / "net.t7"), x[None]).values()
    np.testing.assert_array_equal(found, y[None])


def test_a_graph_of_others(shared_data: Path) -> None:
    """CAddTable of Linear(1, 2) of the first input and Identity of the second; its file was made with nngraph."""
    path = shared_data / "torch7" / "gmodule_with_linear_identity.t7"
    model = convert(path, shape={"input2": [2]})
    assert [str(v.shape) for v in model.graph.inputs] == ["[N,1]", "[N,2]"]
    x, y = np.array([[1.0], [2]], np.float32), np.array([[10, 20], [30, 40.0]], np.float32)
    weight, bias = array(model, "3.Linear.weight"), array(model, "3.Linear.bias")
    np.testing.assert_allclose(weight, [[-0.0248373], [0.17503954]], rtol=1e-6)
    (found,) = run(model, x, y).values()
    np.testing.assert_allclose(found, x @ weight.T + bias + y, rtol=1e-6)


@pytest.mark.parametrize("how", ENCODINGS, ids=str)
@torch.no_grad()
def test_a_network_computes_as_in_pytorch(tmp_path: Path, how: dict[str, Any]) -> None:
    model = convert(write_t7(tmp_path, small_net(), **how), shape="1x8x8")
    x = rng.standard_normal((5, 1, 8, 8)).astype(np.float32)
    (found,) = run(model, x).values()
    np.testing.assert_allclose(found, twin()(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_what_training_needs_stays(tmp_path: Path) -> None:
    model = convert(write_t7(tmp_path, small_net()))
    names = [layer.name for layer in layers(model)]
    assert names == ["1.SpatialConvolution", "2.SpatialBatchNormalization", "3.ReLU", "4.SpatialMaxPooling", "5.View",
                     "6.Dropout", "7.1.Linear", "7.2.LogSoftMax"]  # fmt: skip
    by_name = {node.name: node for node in model.graph}
    norm, drop = by_name["2.SpatialBatchNormalization"], by_name["6.Dropout"]
    assert norm.op_type == "BatchNormalization"
    assert norm.attributes.get_float("momentum") == pytest.approx(0.8)  # of the old value
    np.testing.assert_array_equal(array(model, "2.SpatialBatchNormalization.var"), np.abs(B1) + 1)
    assert drop.op_type == "Dropout"
    assert array(model, "6.Dropout.ratio") == np.float32(0.25)
    np.testing.assert_array_equal(array(model, "7.1.Linear.weight"), W2)
    assert str(model.graph.inputs[0].shape) == "[N,1,height,width]"
    assert str(model.graph.outputs[0].shape) == "[N,3]"


def test_names_of_the_file_are_the_layers(tmp_path: Path) -> None:
    """loadcaffe gives each module the name of its Caffe layer; equal ones get a number."""
    net = module("Sequential", module("Linear", weight=W2, name="fc6"), module("ReLU", name="relu6"),
                 module("ReLU", name="relu6"), module("ReLU", name="bad\nname"))  # fmt: skip
    model = convert(write_t7(tmp_path, net))
    assert [layer.name for layer in layers(model)] == ["fc6", "relu6", "relu6_2", "4.ReLU"]
    assert list(model.graph.initializers) == ["fc6.weight"]


def test_shared_tensors_stay_shared(tmp_path: Path) -> None:
    """A module that is twice in a network, and two that look at the same numbers, have one parameter."""
    weight = rng.standard_normal((6, 6)).astype(np.float32)
    twice = module("Linear", weight=weight)
    base = weight.ravel().copy()
    views = [View(base, (6, 6), (6, 1)) for _ in range(2)] + [View(base, (6, 6), (1, 6))]
    net = module("Sequential", twice, module("Tanh"), twice, *(module("Linear", weight=view) for view in views))
    model = convert(write_t7(tmp_path, net))
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    weights = [node.inputs[1] for node in gemms]
    assert weights[0] is weights[1]
    assert weights[2] is weights[3]
    assert weights[3] is not weights[4]  # the same numbers transposed are another matrix
    x = rng.standard_normal((2, 6)).astype(np.float32)
    (found,) = run(model, x).values()
    np.testing.assert_allclose(
        found, np.tanh(x @ weight.T) @ weight.T @ weight.T @ weight.T @ weight, rtol=1e-3, atol=1e-3
    )


def test_statistics_without_parameters_are_not_trained(tmp_path: Path) -> None:
    net = module("BatchNormalization", running_mean=B1, running_var=np.abs(B1), eps=1e-5, affine=False)
    model = convert(write_t7(tmp_path, net))
    initializers = model.graph.initializers
    assert {name.rpartition(".")[2] for name, v in initializers.items() if not marks(v).trainable} == {"scale", "bias"}


def test_dropout_of_old_files_trains_as_it_did(tmp_path: Path) -> None:
    """Without ``v2`` a mask alone is applied in training, and the inference is scaled."""
    model = convert(write_t7(tmp_path, module("Dropout", p=0.5)), shape="1000")
    drop = next(node for node in model.graph if node.op_type == "Dropout")
    x = np.ones((1, 1000), np.float32)
    assert set(run(model, x)["output"].ravel()) == {0.5}
    true = ir.Value(name="true", const_value=ir.tensor(np.array(True), name="true"))
    model.graph.register_initializer(true)
    drop.resize_inputs(3)
    drop.replace_input_with(2, true)
    assert set(run(model, x)["output"].ravel()) == {0.0, 1.0}


@pytest.mark.parametrize("entry", ["model", 1])
def test_a_network_in_a_table_is_found(tmp_path: Path, entry: str | int) -> None:
    path = write_t7(tmp_path, {entry: small_net(), "opt": {"rate": 0.1}, "log": Lua()})
    assert len(layers(convert(path))) == 8
    path = write_t7(tmp_path, {"a": small_net(), "b": module("Tanh")})
    assert len(layers(convert(path, key="a"))) == 8


def test_options(tmp_path: Path) -> None:
    path = write_t7(tmp_path, small_net())
    assert str(convert(path, batch=4, shape="1x8x8").graph.inputs[0].shape) == "[4,1,8,8]"
    net = write_t7(
        tmp_path, module("Sequential", module("Linear", weight=W2), Obj("my.Twice", {"factor": 3})), "own.t7"
    )

    def custom(c: Any) -> Any:
        return c.op.Mul(c.x, c.number("factor"))

    x = rng.standard_normal((2, 36)).astype(np.float32)
    (found,) = run(convert(net, custom=custom), x).values()
    np.testing.assert_allclose(found, 3 * x @ W2.T, rtol=1e-5, atol=1e-5)


def test_a_folder_with_one_network_and_a_file_by_its_content(tmp_path: Path) -> None:
    path = write_t7(tmp_path, small_net(), "resnet.model")
    assert find_network(tmp_path) == path
    assert len(layers(convert(tmp_path))) == 8


@pytest.mark.parametrize(("shape", "expected"), [(None, "[N,252]"), ("3x4x21", "[N,3,4,21]")])
def test_a_network_that_flattens_first_takes_any_shape(tmp_path: Path, shape: str | None, expected: str) -> None:
    net = module("Sequential", module("Reshape", size=Longs([252]), nelement=252),
                 module("Linear", weight=np.ones((2, 252), np.float32)))  # fmt: skip
    assert str(convert(write_t7(tmp_path, net), shape=shape).graph.inputs[0].shape) == expected


def graph(inputs: int) -> Obj:
    """nngraph's {CAddTable(Tanh(a), b), b} of one or two inputs; with one, b is Abs(a)."""

    def node(**data: Any) -> Obj:
        return Obj("nngraph.Node", {"data": {"annotations": {}, "mapindex": {}, **data}, "id": 0, "children": {}})

    def join(parent: Obj, child: Obj, place: int) -> None:
        children, to = parent.fields["children"], child.fields["data"]["mapindex"]
        children[len([k for k in children if isinstance(k, int)]) + 1] = child
        to[place] = parent.fields["data"]
        maps.append((to, parent.fields["data"], place))

    maps: list[Any] = []
    start, split = node(input=[]), node(nSplitOutputs=2)
    a, b = node(selectindex=1), node(selectindex=2)
    tanh = node(module=module("Tanh"), annotations={"name": "squash"})
    other = node(module=module("Abs" if inputs == 1 else "Identity"))
    add, end = node(module=module("CAddTable")), node(input=[])
    if inputs == 2:
        nodes = [start, split, a, b, tanh, other, add, end]
        for parent, child, place in ((start, split, 1), (split, a, 1), (split, b, 1), (a, tanh, 1), (b, other, 1)):
            join(parent, child, place)
    else:
        nodes = [start, a, tanh, other, add, end]
        del a.fields["data"]["selectindex"]
        for parent, child, place in ((start, a, 1), (a, tanh, 1), (a, other, 1)):
            join(parent, child, place)
    for parent, child, place in ((tanh, add, 1), (other, add, 2), (add, end, 1), (other, end, 2)):
        join(parent, child, place)
    for to, data, place in maps:
        to[Key(data)] = place
    out = Obj("nngraph.Node", {"data": end.fields["data"], "children": {}})
    return module("gModule", forwardnodes=nodes, innode=start, outnode=out, nInputs=inputs)


@pytest.mark.parametrize("inputs", [1, 2])
def test_graphs(tmp_path: Path, inputs: int) -> None:
    model = convert(
        write_t7(tmp_path, graph(inputs)),
        shape={f"input{i}" if inputs > 1 else "input": [5] for i in range(1, inputs + 1)},
    )
    arrays = [rng.standard_normal((2, 5)).astype(np.float32) for _ in range(inputs)]
    b = np.abs(arrays[0]) if inputs == 1 else arrays[1]
    found = run(model, *arrays)
    assert list(found) == ["output1", "output2"]
    np.testing.assert_allclose(found["output1"], np.tanh(arrays[0]) + b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["output2"], b)
    assert "squash.Tanh" in [layer.name for layer in layers(model)]


@pytest.mark.training
def test_a_converted_network_trains(tmp_path: Path) -> None:
    model = convert(write_t7(tmp_path, small_net()), shape="1x8x8")
    x = rng.standard_normal((32, 1, 8, 8)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(np.int64)
    trained = surgery.train(model, (x, y), epochs=2, batch_size=16, learning_rate=0.01, optimizer="sgd")
    before, after = (array(each, "1.SpatialConvolution.weight") for each in (model, trained.model))
    assert np.abs(after - before).max() > 1e-5
    assert np.isfinite(after).all()
    assert any(node.op_type == "Dropout" for node in trained.model.graph)


@pytest.mark.parametrize("free", [False, True], ids=["known size", "any size"])
def test_lenet_computes_as_its_caffe_network(lenet_files: tuple[Path, Path], free: bool) -> None:
    """The trained LeNet as Torch's loadcaffe would have saved it; its layers have the Caffe layers' names."""
    model = convert(LENET, shape=None if free else "1x28x28")
    x = np.random.default_rng(0).random((4, 1, 28, 28), np.float32)
    (found,) = run(model, x).values()
    (expected,) = run(convert(lenet_files[0]), x).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    names = [layer.name for layer in layers(model)]
    assert names == ["conv1", "pool1", "conv2", "pool2", "flatten", "ip1", "relu1", "drop1", "ip2", "prob"]


def test_a_shape_that_is_lacking_is_named(shared_data: Path) -> None:
    with pytest.raises(SurgeryError, match=r"of its input 'input2'.* --shape input2=3x224x224"):
        convert(shared_data / "torch7" / "gmodule_with_linear_identity.t7")
