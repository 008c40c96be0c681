"""onnxruntime's on-device training API trains from our artifacts as PyTorch does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import converters
from surgery import runtime
from surgery.artifacts import AdamW, Artifacts, Sgd, artifacts
from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.marks import Constraint, set_marks
from surgery.passes import Freeze
from tests.conftest import ROOT
from tests.graphs import parse, weights_of
from tests.graphs import run as infer
from tests.nets import (
    Residual,
    batches,
    graph_with_input,
    lenet,
    model_of,
    parameter,
    residual,
    torch_lenet,
    torch_losses,
)

pytestmark = pytest.mark.training
needs_api = pytest.mark.skipif(
    not runtime.has_training_kernels(), reason="the on-device API is part of the onnxruntime-training build"
)
torch.set_num_threads(1)
Batches = list[tuple[np.ndarray, ...]]
LENET_DATA = ((1, 28, 28), 10)


class Device:
    """What an application on a device does with artifacts."""

    def __init__(self, made: Artifacts, rate: float) -> None:
        from onnxruntime.training.api import CheckpointState, Module, Optimizer

        options = runtime.load_runtime().SessionOptions()
        options.intra_op_num_threads = 1
        self.state = CheckpointState.load_checkpoint(made.checkpoint)
        self.module = Module(made.training_model, self.state, made.eval_model, session_options=options)
        self.optimizer = Optimizer(made.optimizer_model, self.module)
        self.optimizer.set_learning_rate(rate)
        self._outputs = made.outputs[2:]

    def train(self, data: Batches) -> list[float]:
        losses = []
        for examples, targets in data:
            losses.append(float(self.module(examples, targets)))
            self.optimizer.step()
            self.module.lazy_reset_grad()
        return losses

    def evaluate(self, examples: np.ndarray, targets: np.ndarray) -> Any:
        self.module.eval()
        result = self.module(examples, targets)
        self.module.train()
        return result

    def export(self, path: Path) -> ir.Model:
        self.module.export_model_for_inferencing(path, self._outputs)
        return load(path)


def probabilities(net: nn.Module, examples: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(net.eval()(torch.from_numpy(examples)), 1).numpy()


@needs_api
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("settings", "rate", "optimizer"),
    [
        pytest.param(
            AdamW(0.05, 0.8, 0.99, 1e-6),
            3e-4,
            lambda p: torch.optim.AdamW(p, 3e-4, (0.8, 0.99), 1e-6, 0.05),
            id="adamw",
        ),
        pytest.param("adamw", 3e-4, lambda p: torch.optim.Adam(p, 3e-4), id="adam"),
        pytest.param("sgd", 0.05, lambda p: torch.optim.SGD(p, 0.05), id="sgd"),
        pytest.param(Sgd(1e-2), 0.05, lambda p: torch.optim.SGD(p, 0.05, weight_decay=1e-2), id="sgd-decay"),
    ],
)
def test_lenet_follows_pytorch_and_can_be_exported(
    settings: AdamW | Sgd | str,
    rate: float,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    fused: bool,
    tmp_path: Path,
) -> None:
    net = torch_lenet()
    device = Device(artifacts(lenet(net), tmp_path, optimizer=settings, fused=fused), rate)
    data = batches(20, 16, *LENET_DATA)
    want = torch_losses(net, optimizer(net.parameters()), data)
    np.testing.assert_allclose(device.train(data), want, rtol=1e-4)
    assert want[-1] < 0.8 * want[0]
    for name, weights in net.named_parameters():
        got = device.state.parameters[name].data
        np.testing.assert_allclose(got, weights.detach(), rtol=1e-3, atol=1e-4, err_msg=name)

    examples, targets = batches(1, 32, *LENET_DATA, seed=7)[0]
    expected = probabilities(net, examples)
    loss, accuracy, given = device.evaluate(examples, targets)
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert accuracy == pytest.approx((expected.argmax(1) == targets).mean())
    assert loss == pytest.approx(-np.log(expected[np.arange(32), targets]).mean(), rel=1e-3)
    exported = device.export(tmp_path / "inference.onnx")
    assert [i.name for i in exported.graph.inputs] == ["data"]
    np.testing.assert_allclose(infer(exported, examples)[0], expected, atol=1e-4)


class Unusual(nn.Module):
    """What onnxruntime's own gradients lack (LRN, PRelu), or get wrong (SAME padding)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.prelu = nn.PReLU(8)
        self.fc = nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 8, 8] → logits [N, 4]."""
        x = self.conv(nn.functional.pad(x, (0, 1, 0, 1)))
        x = self.prelu(nn.functional.local_response_norm(x, 5, alpha=0.5, beta=0.75, k=1.0))
        return self.fc(x.flatten(1))


def unusual(net: Unusual) -> ir.Model:
    op, x = graph_with_input("N", 3, 8, 8)
    weights = [parameter(op, f"conv.{role}", getattr(net.conv, role)) for role in ("weight", "bias")]
    x = op.Conv(x, *weights, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", _name="conv")
    x = op.LRN(x, size=5, alpha=0.5, beta=0.75, bias=1.0, _name="lrn")
    x = op.PRelu(x, parameter(op, "prelu.weight", net.prelu.weight.reshape(8, 1, 1)), _name="prelu")
    weights = [parameter(op, f"fc.{role}", getattr(net.fc, role)) for role in ("weight", "bias")]
    x = op.Gemm(op.Flatten(x, _name="flat"), *weights, transB=1, _name="fc")
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1, _name="softmax")})


@needs_api
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("settings", ["adamw", "sgd"])
def test_operators_without_a_gradient_of_onnxruntimes_own(settings: str, fused: bool, tmp_path: Path) -> None:
    net = Unusual()
    device = Device(artifacts(unusual(net), tmp_path, optimizer=settings, fused=fused), 0.01)
    data = batches(20, 16, (3, 8, 8), 4)
    optimizer = torch.optim.Adam if settings == "adamw" else torch.optim.SGD
    want = torch_losses(net, optimizer(net.parameters(), 0.01), data)
    np.testing.assert_allclose(device.train(data), want, rtol=1e-4)
    assert want[-1] < want[0]
    slopes = device.state.parameters["prelu.weight"].data.ravel()
    np.testing.assert_allclose(slopes, net.prelu.weight.detach(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(slopes, 0.25)


@needs_api
def test_gradients_of_several_batches_add_up_until_reset(tmp_path: Path) -> None:
    net = torch_lenet()
    device = Device(artifacts(lenet(net), tmp_path, optimizer="sgd"), 0.01)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    data = batches(6, 8, *LENET_DATA)
    for pair in (data[:2], data[2:4], data[4:]):
        optimizer.zero_grad()
        for examples, targets in pair:
            device.module(examples, targets)
            nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets)).backward()
        device.optimizer.step()
        optimizer.step()
        device.module.lazy_reset_grad()
    for name, weights in net.named_parameters():
        np.testing.assert_allclose(device.state.parameters[name].data, weights.detach(), atol=1e-6, err_msg=name)


def multiplied(rate: float, decay: float, make: Any) -> tuple[nn.Sequential, ir.Model, torch.optim.Optimizer]:
    """LeNet with multipliers, and PyTorch's parameter groups for them."""
    net = torch_lenet()
    model = lenet(net)
    set_marks(model.graph.initializers["conv1.bias"], learning_rate=2.0)
    set_marks(model.graph.initializers["ip1.weight"], learning_rate=0.1, decay=0.0)
    named = dict(net.named_parameters())
    rest = [p for n, p in named.items() if n not in ("conv1.bias", "ip1.weight")]
    groups = [
        {"params": rest, "lr": rate, "weight_decay": decay},
        {"params": [named["conv1.bias"]], "lr": 2 * rate, "weight_decay": decay},
        {"params": [named["ip1.weight"]], "lr": 0.1 * rate, "weight_decay": 0.0},
    ]
    return net, model, make(groups)


@needs_api
def test_sgd_keeps_multipliers(tmp_path: Path) -> None:
    net, model, optimizer = multiplied(0.02, 0.01, torch.optim.SGD)
    made = artifacts(model, tmp_path, optimizer=Sgd(0.01))
    device = Device(made, 0.02)
    data = batches(20, 16, *LENET_DATA)
    np.testing.assert_allclose(device.train(data), torch_losses(net, optimizer, data), rtol=1e-4)
    for name, weights in net.named_parameters():
        got = device.state.parameters[name].data
        np.testing.assert_allclose(got, weights.detach(), rtol=1e-4, atol=1e-5, err_msg=name)
    assert made.notes == []


@needs_api
def test_adamw_keeps_multipliers_by_keeping_the_parameter_divided(tmp_path: Path) -> None:
    net, model, optimizer = multiplied(3e-4, 0.0, torch.optim.AdamW)
    made = artifacts(model, tmp_path)
    assert any("ip1.weight is kept divided" in note for note in made.notes)
    device = Device(made, 3e-4)
    data = batches(20, 16, *LENET_DATA)
    np.testing.assert_allclose(device.train(data), torch_losses(net, optimizer, data), rtol=1e-4)
    for stored, name, factor in (("conv1.bias/2", "conv1.bias", 2.0), ("ip1.weight/0.1", "ip1.weight", 0.1)):
        want = dict(net.named_parameters())[name].detach()
        np.testing.assert_allclose(device.state.parameters[stored].data * factor, want, rtol=1e-3, atol=1e-5)
    examples, _ = batches(1, 16, *LENET_DATA, seed=7)[0]
    exported = device.export(tmp_path / "inference.onnx")
    np.testing.assert_allclose(infer(exported, examples)[0], probabilities(net, examples), atol=1e-4)


@needs_api
@pytest.mark.parametrize(("settings", "multiplier"), [("sgd", 1.0), ("adamw", 1.0), ("adamw", 3.0)])
def test_a_constraint_holds_wherever_the_weight_is_used(settings: str, multiplier: float, tmp_path: Path) -> None:
    bound, rate = 0.55, 0.02 if settings == "sgd" else 1e-3
    net = torch_lenet()
    model = lenet(net)
    weight = model.graph.initializers["ip1.weight"]
    set_marks(weight, constraint=Constraint("max_norm", bound, (1,)), learning_rate=multiplier)
    made = artifacts(model, tmp_path, optimizer=settings)
    device = Device(made, rate)
    data = batches(20, 16, *LENET_DATA)
    named = dict(net.named_parameters())

    def project() -> None:
        with torch.no_grad():
            named["ip1.weight"].copy_(torch.renorm(named["ip1.weight"], 2, 0, bound))

    rest = [p for n, p in named.items() if n != "ip1.weight"]
    groups = [{"params": rest, "lr": rate}, {"params": [named["ip1.weight"]], "lr": multiplier * rate}]
    optimizer = torch.optim.SGD(groups) if settings == "sgd" else torch.optim.Adam(groups)
    assert named["ip1.weight"].norm(dim=1).max() > bound
    want = []
    for batch in data:
        project()
        want += torch_losses(net, optimizer, [batch])
    np.testing.assert_allclose(device.train(data), want, rtol=1e-3)
    project()
    exported = device.export(tmp_path / "inference.onnx")
    examples, _ = batches(1, 16, *LENET_DATA, seed=7)[0]
    np.testing.assert_allclose(infer(exported, examples)[0], probabilities(net, examples), atol=1e-3)
    assert any("ip1.weight is brought within max_norm 0.55" in note for note in made.notes)


@needs_api
@pytest.mark.parametrize(("settings", "rate"), [(Sgd(1e-2), 0.02), ("adamw", 3e-4)])
def test_a_layer_s_own_regularization_is_in_its_gradient(settings: Sgd | str, rate: float, tmp_path: Path) -> None:
    net = torch_lenet()
    model = lenet(net)
    set_marks(model.graph.initializers["ip2.weight"], l1=0.01, l2=0.3, learning_rate=2.0)
    device = Device(artifacts(model, tmp_path, optimizer=settings), rate)
    named = dict(net.named_parameters())
    weight = named.pop("ip2.weight")
    groups = [{"params": [*named.values()]}, {"params": [weight], "lr": 2 * rate}]
    optimizer = (
        torch.optim.SGD(groups, rate, weight_decay=1e-2)
        if isinstance(settings, Sgd)
        else torch.optim.Adam(groups, rate)
    )
    want = []
    data = batches(20, 16, *LENET_DATA)
    for examples, targets in data:
        loss = nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets))
        want.append(loss.item())
        optimizer.zero_grad()
        (loss + 0.01 * weight.abs().sum() + 0.15 * weight.square().sum()).backward()
        optimizer.step()
    np.testing.assert_allclose(device.train(data), want, rtol=1e-3)


@needs_api
@pytest.mark.parametrize("place", ["models", "checkpoint"])
def test_frozen_layers_and_statistics_stay_bit_for_bit(place: Any, tmp_path: Path) -> None:
    net = Residual()
    model = residual(net)
    Freeze(layers={"until": "bn1"})(model)
    for role in ("running_mean", "running_var"):
        set_marks(model.graph.initializers[f"bn2.{role}"], trainable=False)
    before = {name: array.copy() for name, array in weights_of(model).items()}
    made = artifacts(model, tmp_path, frozen=place)
    assert set(made.trained) == {"conv2.weight", "bn2.weight", "bn2.bias", "fc.weight", "fc.bias"}
    device = Device(made, 0.01)
    trained = [p for n, p in net.named_parameters() if n in made.trained]
    data = batches(20, 16, (3, 8, 8), 4)
    net.eval()
    want = torch_losses(net, torch.optim.Adam(trained, 0.01), data)
    np.testing.assert_allclose(device.train(data), want, rtol=1e-3)
    held = {name for name, _ in device.state.parameters}
    assert ("bn1.running_mean" in held) == ("conv1.weight" in held) == (place == "checkpoint")
    after = weights_of(device.export(tmp_path / "inference.onnx"))
    for name, array in before.items():
        assert np.array_equal(after[name], array) == (name not in made.trained), name
    examples, _ = batches(1, 16, (3, 8, 8), 4, seed=9)[0]
    np.testing.assert_allclose(
        infer(load(tmp_path / "inference.onnx"), examples)[0], probabilities(net, examples), atol=1e-3
    )


@needs_api
def test_trained_statistics_follow_pytorch(tmp_path: Path) -> None:
    net = Residual()
    device = Device(artifacts(residual(net), tmp_path, optimizer="sgd"), 0.05)
    data = batches(20, 16, (3, 8, 8), 4)
    net.train()
    want = torch_losses(net, torch.optim.SGD(net.parameters(), 0.05), data)
    np.testing.assert_allclose(device.train(data), want, rtol=1e-3)
    for name, tensor in net.named_buffers():
        if "running" in name:
            # ONNX's running variance is the population's, PyTorch's the sample's: 16·64 values differ by a thousandth.
            got = device.state.parameters[name].data
            np.testing.assert_allclose(got, tensor, rtol=5e-3, atol=1e-3, err_msg=name)
            assert not device.state.parameters[name].requires_grad
    examples, targets = batches(1, 64, (3, 8, 8), 4, seed=9)[0]
    given = device.evaluate(examples, targets)[2]
    np.testing.assert_allclose(given, probabilities(net, examples), atol=5e-3)


@needs_api
def test_training_goes_on_from_a_checkpoint_that_the_device_saved(tmp_path: Path) -> None:
    from onnxruntime.training.api import CheckpointState

    net = torch_lenet()
    made = artifacts(lenet(net), tmp_path)
    data = batches(10, 16, *LENET_DATA)
    whole = Device(made, 3e-4).train(data)
    first = Device(made, 3e-4)
    losses = first.train(data[:5])
    CheckpointState.save_checkpoint(first.state, made.checkpoint, include_optimizer_state=True)
    np.testing.assert_allclose(losses + Device(made, 3e-4).train(data[5:]), whole, rtol=1e-6)


TWO_HEADS = (
    "(float[N,8] x) => (float[N,4] y, float[N,3] z)",
    "a = Gemm<transB = 1>(x, a__weight, a__bias) r = Relu(a) "
    "b = Gemm<transB = 1>(r, b__weight, b__bias) s = Softmax(b) y = Flatten(s) "
    "z = Gemm<transB = 1>(r, c__weight, c__bias)",
    {"a.weight": [6, 8], "a.bias": [6], "b.weight": [4, 6], "b.bias": [4], "c.weight": [3, 6], "c.bias": [3]},
)


@needs_api
def test_outputs_that_are_not_trained_are_still_given(tmp_path: Path, rng: np.random.Generator) -> None:
    model = parse(*TWO_HEADS, opset=17)
    before = weights_of(model)
    made = artifacts(model, tmp_path, output="y", optimizer="sgd")
    assert made.outputs == ["loss", "accuracy", "y", "z"]
    assert not any(name.startswith("c.") for name in made.trained)
    device = Device(made, 0.05)
    x = rng.normal(size=(5, 8)).astype(np.float32)
    _, _, *given = device.evaluate(x, np.zeros(5, np.int64))
    for got, want in zip(given, infer(model, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    device.train([(x, np.zeros(5, np.int64))] * 5)
    after = device.export(tmp_path / "inference.onnx")
    y, z = infer(after, x)
    assert y[:, 0].mean() > given[0][:, 0].mean()
    assert not np.allclose(z, given[1])  # its body is trained, itself not
    np.testing.assert_array_equal(weights_of(after)["c.weight"], before["c.weight"])


@needs_api
@pytest.mark.parametrize("fused", [True, False])
def test_several_inputs_and_outputs_are_trained_together(fused: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    model = parse(
        "(float[N,8] x, float[N,6] u) => (float[N,4] y, float[N,3] z)",
        "a = Gemm<transB = 1>(x, a__weight, a__bias) t = Tanh(a) r = Mul(t, u) "
        "b = Gemm<transB = 1>(r, b__weight, b__bias) y = Softmax(b) "
        "z = Gemm<transB = 1>(r, c__weight, c__bias)",
        TWO_HEADS[2],
    )
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in weights_of(model).items()}
    loss = {"y": "cross_entropy", "z": {"name": "mean_squared_error", "weight": 0.5}}
    made = artifacts(model, tmp_path, loss=loss, optimizer="sgd", fused=fused)
    assert made.inputs == ["x", "u", "target/y", "target/z"]
    assert made.outputs[0] == "loss"
    assert made.outputs[-2:] == ["y", "z"]
    device = Device(made, 0.05)
    optimizer = torch.optim.SGD(weights.values(), 0.05)
    x, u = rng.normal(size=(9, 8)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    t, v = rng.integers(0, 4, 9), rng.normal(size=(9, 3)).astype(np.float32)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        linear = nn.functional.linear
        r = torch.tanh(linear(torch.from_numpy(x), weights["a.weight"], weights["a.bias"])) * torch.from_numpy(u)
        heads = [linear(r, weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in "bc"]
        return heads[0], heads[1]

    for _ in range(20):
        y, z = forward()
        first = nn.functional.cross_entropy(y, torch.from_numpy(t))
        total = first + 0.5 * nn.functional.mse_loss(z, torch.from_numpy(v))
        assert float(device.module(x, u, t, v)) == pytest.approx(total.item(), rel=1e-4)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        device.optimizer.step()
        device.module.lazy_reset_grad()
    y, z = (output.detach().numpy() for output in forward())
    device.module.eval()
    given = device.module(x, u, t, v)
    np.testing.assert_allclose(given[-2], torch.softmax(torch.from_numpy(y), 1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(given[-1], z, rtol=1e-3, atol=1e-4)
    assert given[made.outputs.index("y_loss")] == pytest.approx(first.item(), rel=0.05)
    device.module.export_model_for_inferencing(tmp_path / "inference.onnx", ["y", "z"])
    exported = load(tmp_path / "inference.onnx")
    assert [i.name for i in exported.graph.inputs] == ["x", "u"]
    np.testing.assert_allclose(infer(exported, x, u)[1], z, rtol=1e-3, atol=1e-4)


@needs_api
def test_dropout_is_on_in_training_only(tmp_path: Path, rng: np.random.Generator) -> None:
    model = parse(
        "(float[N,8] x) => (float[N,4] y)",
        "d = Dropout(x, ratio) y = Gemm<transB = 1>(d, b__weight, b__bias)",
        {"b.weight": [4, 8], "b.bias": [4], "ratio": []},
        17,
    )
    ratio = model.graph.initializers["ratio"]
    ratio.const_value = ir.tensor(np.array(0.5, np.float32), name="ratio")
    device = Device(artifacts(model, tmp_path, loss="mean_squared_error", optimizer="sgd"), 0.0)
    x, t = rng.normal(size=(16, 8)).astype(np.float32), np.zeros((16, 4), np.float32)
    losses = {float(device.module(x, t)) for _ in range(4)}
    assert len(losses) == 4  # other units each time
    want = float((infer(model, x)[0] ** 2).mean())
    assert all(float(device.evaluate(x, t)[0]) == pytest.approx(want, rel=1e-5) for _ in range(2))


@needs_api
def test_weights_in_an_external_file_are_exported(tmp_path: Path) -> None:
    net = torch_lenet()
    model = lenet(net)
    Freeze(layers={"first": 3})(model)
    onnx.save(
        ir.to_proto(model), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    device = Device(artifacts(load(tmp_path / "net.onnx"), tmp_path / "device"), 1e-3)
    for path in tmp_path.glob("net.*"):
        path.unlink()
    (tmp_path / "app").mkdir()
    examples, _ = batches(1, 4, *LENET_DATA)[0]
    exported = device.export(tmp_path / "app" / "inference.onnx")
    np.testing.assert_allclose(infer(exported, examples)[0], probabilities(net, examples), atol=1e-6)


@needs_api
def test_the_models_written_are_of_the_last_ir_version_that_the_runtime_reads(tmp_path: Path) -> None:
    model = lenet(torch_lenet())
    before = copy.deepcopy(ir.to_proto(model))
    made = artifacts(model, tmp_path)
    for path in (made.training_model, made.eval_model, made.optimizer_model):
        assert onnx.load(path).ir_version == 10
    assert ir.to_proto(model) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint",
        "eval_model.onnx",
        "optimizer_model.onnx",
        "training_model.onnx",
    ]


@needs_api
def test_impossible_requests_are_told_and_leave_what_was_there(tmp_path: Path) -> None:
    model = lenet(torch_lenet())
    made = artifacts(model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    set_marks(model.graph.initializers["conv1.bias"], learning_rate=2.0)
    set_marks(model.graph.initializers["ip1.bias"], decay=0.0)
    with pytest.raises(SurgeryError, match=r"conv1\.bias \(learning rate ×2, decay ×1\), ip1\.bias .*use sgd"):
        artifacts(model, tmp_path, optimizer=AdamW(weight_decay=0.1))
    with pytest.raises(SurgeryError, match="no optimizer 'adam'; did you mean 'adamw'"):
        artifacts(model, tmp_path, optimizer="adam")
    with pytest.raises(SurgeryError, match="no loss is named 'crossentropy'; did you mean 'cross_entropy'"):
        artifacts(lenet(torch_lenet()), tmp_path, loss="crossentropy")
    with pytest.raises(SurgeryError, match="frozen is 'model'"):
        artifacts(lenet(torch_lenet()), tmp_path, frozen="model")  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="beta2 is a number from 0 to below 1"):
        AdamW(beta2=1.0)
    renamed = lenet(torch_lenet())
    renamed.graph.inputs[0].name = "x_grad"
    with pytest.raises(SurgeryError, match="input 'x_grad'"):
        artifacts(renamed, tmp_path)
    Freeze(layers="all")(model)
    with pytest.raises(SurgeryError, match="nothing to train"):
        artifacts(model, tmp_path)
    with pytest.raises(SurgeryError, match="cannot be written"):
        artifacts(lenet(torch_lenet()), made.checkpoint)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@needs_api
def test_parameters_that_are_not_float32_are_refused(tmp_path: Path) -> None:
    model = parse("(double[N,8] x) => (float[N,4] y)", "a = MatMul(x, w) y = Cast<to = 1>(a)", {"w": [8, 4]})
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.ones((8, 4)), name="w")
    weight.dtype = ir.DataType.DOUBLE
    with pytest.raises(SurgeryError, match="'w' is DOUBLE"):
        artifacts(model, tmp_path, loss="mean_squared_error")


@needs_api
def test_the_command_line_writes_the_same_and_tells_what(tmp_path: Path) -> None:
    from surgery.cli.app import app

    model = lenet(torch_lenet())
    set_marks(model.graph.initializers["conv1.bias"], learning_rate=2.0)
    save(model, tmp_path / "net.onnx")
    result = CliRunner().invoke(app, ["artifacts", str(tmp_path / "net.onnx"), "--json", "--beta1", "0.5"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["inputs"] == ["data", "target"]
    assert "conv1.bias/2" in told["trained"]
    assert len(told["notes"]) == 1
    made = artifacts(model, tmp_path / "direct", optimizer=AdamW(beta1=0.5))
    for path in told["files"]:
        assert Path(path).read_bytes() == (made.checkpoint.parent / Path(path).name).read_bytes()
    assert Path(told["files"][0]).parent == tmp_path / "net-artifacts"
    refused = CliRunner().invoke(app, ["artifacts", str(tmp_path / "net.onnx"), "--optimizer", "sgd", "--epsilon", "1"])
    assert isinstance(refused.exception, SurgeryError)
    assert "sgd has no epsilon" in str(refused.exception)


@pytest.mark.skipif(runtime.has_training_kernels(), reason="the onnxruntime-training build can write checkpoints")
def test_the_stock_runtime_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="need the onnxruntime-training build; onnxruntime 1"):
        artifacts(lenet(torch_lenet()), tmp_path / "device")
    assert not (tmp_path / "device").exists()


@needs_api
def test_the_documentation_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converters.convert(ROOT / "models" / "lenet_mnist")
    artifacts(model, tmp_path / "device")
    code = (ROOT / "docs" / "devices.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    exported = load(tmp_path / "device" / "inference.onnx")
    np.testing.assert_allclose(infer(exported, names["images"])[0], names["probabilities"], atol=1e-6)
