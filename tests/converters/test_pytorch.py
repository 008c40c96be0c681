"""PyTorch networks: what each form of them becomes, compared with PyTorch."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import converters
import surgery
from converters.pytorch.weights import read_state
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import marks
from surgery.runtime import session
from tests.cli.test_cli import fails, run
from tests.converters import pytorch_nets
from tests.converters.pytorch_nets import Net, Recurrent, Two, small

NETS = "tests.converters.pytorch_nets"
SHAPE = "3x16x16"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small` in every form that PyTorch has."""
    path = tmp_path_factory.mktemp("pytorch")
    net, x = small(frozen=True), torch.randn(2, 3, 16, 16)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path / "net.pt2")
    torch.jit.trace(net, x).save(str(path / "traced.pt"))
    torch.jit.script(net).save(str(path / "scripted.pt"))
    torch.save(net.state_dict(), path / "state.pth")
    torch.save(net, path / "module.pth")
    return path


FORMS: dict[str, dict[str, Any]] = {
    "net.pt2": {},
    "traced.pt": {"shape": SHAPE},
    "scripted.pt": {"shape": SHAPE},
    f"{NETS}:small": {"shape": SHAPE, "arguments": {"frozen": True}, "weights": "state.pth"},
}


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, ir.Model]:
    """`small` converted from each form."""
    found = {}
    for form, options in FORMS.items():
        given = {**options, "weights": folder / "state.pth"} if "weights" in options else options
        found[form] = converters.convert(folder / form if "." in form[-5:] else form, **given)
    return found


def outputs(model: ir.Model, *inputs: np.ndarray) -> list[np.ndarray]:
    runner = session(model, ["CPUExecutionProvider"], threads=1)
    return runner.run(None, {i.name: x for i, x in zip(runner.get_inputs(), inputs, strict=True)})


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_the_same_on_any_batch(models: dict[str, ir.Model], form: str, rng: np.random.Generator) -> None:
    net = small(frozen=True)
    for batch in (1, 2, 5):
        x = rng.normal(size=(batch, 3, 16, 16)).astype(np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(outputs(models[form], x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_what_training_needs_is_there(models: dict[str, ir.Model], form: str) -> None:
    model = models[form]
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds == {
        "Conv": 3, "BatchNormalization": 3, "HardSwish": 1, "MaxPool": 1, "Clip": 2, "Add": 1, "GlobalAveragePool": 1,
        "Flatten": 1, "Dropout": 3 if form != "scripted.pt" else 2, "Gemm": 1,
    }  # fmt: skip
    rates = [ir.convenience.get_const_tensor(n.inputs[1]) for n in model.graph if n.op_type == "Dropout"]  # type: ignore[arg-type]
    expected = [0.1, 0.2, 0.3] if form != "scripted.pt" else [0.1, 0.3]  # a function asks `training` of the network
    assert [round(float(rate.numpy()), 6) for rate in rates if rate is not None] == expected
    state = {n: t for n, t in small(frozen=True).state_dict().items() if not n.endswith("num_batches_tracked")}
    found = {n: v.const_value for n, v in model.graph.initializers.items() if n in state}
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), state[name].numpy())
    frozen = {name for name, value in model.graph.initializers.items() if not marks(value).trainable}
    assert frozen == {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"}
    names = [layer.name for layer in layers(model) if layer.parameters]
    assert names == ["stem.0", "stem.1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2", "fc"]
    assert {"stem.2", "layer1.0.relu", "layer1.0/add", "avgpool", "layer1.1", "drop"} <= {n.name for n in model.graph}
    assert str(model.graph.inputs[0].shape) == "[batch,3,16,16]"
    assert str(model.graph.outputs[0].shape) == "[batch,5]"


def test_dropout_drops_when_it_is_told_to(models: dict[str, ir.Model], rng: np.random.Generator) -> None:
    """So training finds a Dropout that works; at inference it changes nothing."""
    model = ir.from_proto(ir.to_proto(models["net.pt2"]))
    x = rng.normal(size=(2, 3, 16, 16)).astype(np.float32)
    on = ir.Value(name="on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(on)
    for node in model.graph:
        if node.op_type == "Dropout":
            node.resize_inputs(3)
            node.replace_input_with(2, on)
            node.resize_outputs(2)  # the gradient reads the mask; without, ONNX Runtime 1.32 optimizes Dropout away
            mask = node.outputs[1]
            mask.name, mask.type, mask.shape = f"{node.name}/mask", on.type, node.outputs[0].shape
            model.graph.outputs.append(mask)
    quiet, loud = (outputs(model, x, np.array(flag))[0] for flag in (False, True))
    np.testing.assert_array_equal(quiet, outputs(models["net.pt2"], x)[0])
    assert not np.allclose(loud, quiet)


@pytest.mark.training
def test_it_can_be_fine_tuned(models: dict[str, ir.Model], rng: np.random.Generator) -> None:
    """With its Dropout, past a head of another size, and with what is frozen left alone."""
    model = ir.from_proto(ir.to_proto(models["net.pt2"]))
    surgery.apply(model, [{"replace_head": {"units": 2, "seed": 0}}])
    x = rng.normal(size=(24, 3, 16, 16)).astype(np.float32)
    y = np.arange(24) % 2
    x[y == 1] += 0.7
    trained = surgery.train(model, (x, y), epochs=8, batch_size=8, learning_rate=0.05, validation=0.0, seed=0)
    losses = [record["loss"] for record in trained.history]
    assert losses[-1] < 0.7 * losses[0]
    old, new = model.graph.initializers, trained.model.graph.initializers
    same = {
        name
        for name, value in old.items()
        if name in new and np.array_equal(value.const_value.numpy(), new[name].const_value.numpy())  # type: ignore[union-attr]
    }
    assert {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"} <= same
    assert not {"layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer1.0.bn1.bias"} & same


def test_a_program_exported_in_training_mode_infers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Its normalizations would use the batch's statistics, and change their own."""
    torch.export.save(torch.export.export(small().train(), (torch.randn(2, 3, 16, 16),)), tmp_path / "net.pt2")
    model = converters.convert(tmp_path / "net.pt2")
    assert [len(node.outputs) for node in model.graph if node.op_type == "BatchNormalization"] == [1, 1, 1]
    assert len(model.graph.outputs) == 1
    x = rng.normal(size=(2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = small().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(model, x)[0], expected, rtol=1e-5, atol=1e-6)
    assert converters.verify(tmp_path / "net.pt2", model).equal
    assert str(model.graph.inputs[0].shape) == "[2,3,16,16]"  # as it was exported


def test_nothing_random_is_left_of_training_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Recurrent()
    x = torch.randn(2, 6, 2, 2)
    torch.export.save(torch.export.export(net.train(), (x,)), tmp_path / "net.pt2")
    model = converters.convert(tmp_path / "net.pt2")
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    for _ in range(2):
        np.testing.assert_allclose(outputs(model, x.numpy())[0], expected, rtol=1e-5, atol=1e-6)
    assert converters.verify(tmp_path / "net.pt2", model).equal


def test_two_inputs_and_outputs(rng: np.random.Generator) -> None:
    model = converters.convert(f"{NETS}:Two", shape="info=2,image=4")
    assert [i.name for i in model.graph.inputs] == ["image", "info"]
    assert not marks(model.graph.initializers["scale"]).trainable
    assert marks(model.graph.initializers["a.weight"]).trainable
    net = Two()
    names = ("a.weight", "a.bias", "b.weight", "b.bias")
    tensors = {name: model.graph.initializers[name].const_value for name in names}
    net.load_state_dict({n: torch.from_numpy(t.numpy().copy()) for n, t in tensors.items() if t}, strict=False)
    x, y = (rng.normal(size=(3, size)).astype(np.float32) for size in (4, 2))
    with torch.no_grad():
        expected = net(torch.from_numpy(x), torch.from_numpy(y))
    for found, want in zip(outputs(model, x, y), expected, strict=True):
        np.testing.assert_allclose(found, want.numpy(), rtol=1e-5, atol=1e-6)


def test_indices_and_attention() -> None:
    source = f"{NETS}:embedding"
    model = converters.convert(source, shape="6", dtype="int64")
    assert model.graph.inputs[0].dtype == ir.DataType.INT64
    compared = converters.verify(source, model, shape="6", dtype="int64")
    assert compared.shapes == {"tokens": (2, 6)}
    assert compared.relative < 1e-5
    assert sum(node.op_type == "Dropout" for node in model.graph) >= 3
    state = {name for name, _ in pytorch_nets.embedding().named_parameters()}
    assert state <= model.graph.initializers.keys()
    assert "head" in {layer.name for layer in layers(model)}


def test_a_batch_that_the_code_fixes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = converters.convert(f"{NETS}:FixedBatch", shape="4")
    assert "its code fixes the size of the batch: it is 1" in caplog.text
    assert str(model.graph.inputs[0].shape) == "[1,4]"


def test_free_sizes_and_a_fixed_batch(rng: np.random.Generator) -> None:
    model = converters.convert(f"{NETS}:small", shape="3x?x?", batch=2)
    assert str(model.graph.inputs[0].shape) == "[2,3,height,width]"
    x = rng.normal(size=(2, 3, 20, 28)).astype(np.float32)
    with torch.no_grad():
        expected = small()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(model, x)[0], expected, rtol=1e-5, atol=1e-6)


def test_random_weights_are_the_same_each_time() -> None:
    state = torch.random.get_rng_state()
    model = converters.convert(f"{NETS}:FixedBatch", shape="4")
    assert converters.verify(f"{NETS}:FixedBatch", model, shape="4").equal
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_is_made_already() -> None:
    model = converters.convert(f"{NETS}:ready", shape=SHAPE)
    assert str(model.graph.outputs[0].shape) == "[batch,2]"


def test_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_ours.py").write_text("from tests.converters.pytorch_nets import small\n")
    words = ["convert", "nets_of_ours:small", "--weights", folder / "state.pth", "--shape", SHAPE, "--verify"]
    done = json.loads(run(*words, "--json").stdout)
    assert done["output"] == "small.onnx"
    assert done["verified"]["equal"] is True
    assert done["verified"]["framework"] == "PyTorch"
    assert (tmp_path / "small.onnx").is_file()
    text = run("convert", folder / "traced.pt", "-o", "t.onnx", "--shape", SHAPE, "--verify").stdout
    assert "compared with PyTorch on random x 2×3×16×16: largest difference" in text
    assert "give it with --shape, such as 3x224x224 (inputs: x)" in fails("convert", folder / "traced.pt")
    assert "give it with --shape" in fails("convert", "nets_of_ours:small")
    assert "no such file or folder" in fails("convert", "missing.pt2")


def safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the format as its specification says: length, header in JSON, numbers."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        numbers = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += numbers
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_weights_in_safetensors(tmp_path: Path) -> None:
    state = {**small().state_dict(), "half": torch.arange(6).reshape(2, 3).to(torch.bfloat16), "none": torch.empty(0)}
    safetensors(tmp_path / "w.safetensors", state)
    found = read_state(tmp_path / "w.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("wrapped", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", ""])
def test_weights_in_checkpoints(tmp_path: Path, wrapped: str | None, prefix: str) -> None:
    """As training scripts save them: with the epoch, and from nn.DataParallel or torch.compile."""
    from converters.pytorch.weights import load_weights

    state: Any = {prefix + name: tensor for name, tensor in small(seed=3).state_dict().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "w.pth")
    net = Net()
    load_weights(net, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))


def test_names_of_torchvisions_densenets(tmp_path: Path) -> None:
    """Their published files say norm.1 where the code says norm1."""
    from converters.pytorch.weights import load_weights

    net = nn.Sequential()
    layer = nn.Sequential()
    layer.add_module("norm1", nn.BatchNorm2d(2))
    layer.add_module("conv1", nn.Conv2d(2, 2, 1))
    net.add_module("denselayer1", layer)
    state = {n.replace("norm1", "norm.1").replace("conv1", "conv.1"): t + 1 for n, t in net.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert torch.equal(net.state_dict()["denselayer1.norm1.weight"], torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc.bias"), "lacks fc.bias: it belongs to another network"),
        (lambda s: s.update(extra=torch.zeros(1)), "has extra, which the network does not"),
        (lambda s: s.update({"fc.weight": torch.zeros(7, 8)}), "size mismatch for fc.weight"),
    ],
)
def test_weights_of_another_network(tmp_path: Path, change: Any, message: str) -> None:
    state = small().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SurgeryError, match=message):
        converters.convert(f"{NETS}:small", weights=tmp_path / "w.pth", shape=SHAPE)


def test_sizes_of_a_script_are_not_called_the_batch(tmp_path: Path) -> None:
    """PyTorch's exporter does that to the height behind a padding that it computes."""
    path = tmp_path / "padded.pt"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"))
    torch.jit.script(torch.nn.Sequential(network, torch.nn.PixelShuffle(2))).save(str(path))
    shape = converters.convert(path, shape="3x8x8").graph.outputs[0].shape
    assert shape is not None
    assert len({str(d) for d in shape}) == 4


def test_a_bias_of_zeros_stays_where_it_is_a_parameter() -> None:
    assert set(converters.convert(f"{NETS}:Bare", shape="3x4x4").graph.initializers) == {"weight", "start"}
