"""Recipes on real networks: PyTorch's exports, our LeNet, Caffe's MTCNN, a detector with its publisher's ONNX file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from converters import convert
from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.layers import head, layers
from surgery.marks import labels
from surgery.passes import Freeze, InsertDropout, LearningRate, MaxNorm, ReplaceHead
from surgery.recipe import apply
from tests.graphs import run, weights_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
torch.set_num_threads(1)
nn = torch.nn

EVERYTHING = [
    {"replace_head": {"units": 3, "labels": ["a", "b", "c"], "keep": [1]}},
    {"add_hidden": {"units": 5}},
    {"freeze": {"first": 1}},
    {"insert_dropout": {"input": 0.1, "hidden": 0.4}},
    {"max_norm": 3},
    {"learning_rate": {"layers": "head", "multiplier": 10, "bias": 20}},
]


class Residual(nn.Module):
    """The parts of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        return self.fc(self.drop(x.mean((2, 3))))


class Squeeze(nn.Module):
    """The end of a SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class Tokens(nn.Module):
    """A head on every part of a sequence: MatMul and Add, with the weight behind a Transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.embed(x.flatten(1, 2)))))


def export(net: torch.nn.Module, opset: int, folding: bool) -> ir.Model:
    """An export as training wants it (`folding` off) or as inference does."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL if folding else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.randn(2, 3, 9, 9),),
            buffer,
            dynamo=False,
            opset_version=opset,
            training=mode,
            do_constant_folding=folding,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def reloaded(model: ir.Model, folder: Path) -> ir.Model:
    save(model, folder / "m.onnx")
    return load(folder / "m.onnx")


IMAGE = np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("folding", [True, False])
@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("net", [Residual, Squeeze, Tokens])
class TestPyTorch:
    def test_everything_at_once_leaves_a_checked_model(
        self, net: Callable[[], torch.nn.Module], opset: int, folding: bool, tmp_path: Path
    ) -> None:
        model = reloaded(export(net(), opset, folding), tmp_path)
        old = run(model, IMAGE)[0]
        assert apply(model, EVERYTHING)
        again = reloaded(model, tmp_path)
        (after,) = run(again, IMAGE)
        assert after.shape == (*old.shape[:-1], 3)
        np.testing.assert_allclose(after.sum(-1), 1, rtol=1e-5)
        assert labels(again, "y") == ["a", "b", "c"]
        assert not apply(again, EVERYTHING)
        assert sum(layer.index is not None for layer in layers(again)) >= 3

    def test_kept_units_give_the_same_numbers(
        self, net: Callable[[], torch.nn.Module], opset: int, folding: bool, tmp_path: Path
    ) -> None:
        module = net()
        model = reloaded(export(module, opset, folding), tmp_path)
        if net is Squeeze:
            module.classifier[5] = nn.Identity()
        expected = module(torch.from_numpy(IMAGE)).detach().numpy()[..., [2, 0]]
        ReplaceHead(units=5, activation="linear", keep=[2, 0])(model)
        np.testing.assert_allclose(run(model, IMAGE)[0][..., :2], expected, rtol=1e-4, atol=1e-5)

    def test_what_must_not_change_a_number_does_not(
        self, net: Callable[[], torch.nn.Module], opset: int, folding: bool, tmp_path: Path
    ) -> None:
        model = reloaded(export(net(), opset, folding), tmp_path)
        (before,) = run(model, IMAGE)
        for step in (
            Freeze(layers="all"),
            InsertDropout(input=0.2, hidden=0.5),
            MaxNorm(value=1),
            LearningRate(layers="all", multiplier=0.1),
        ):
            step(model)
        np.testing.assert_allclose(run(reloaded(model, tmp_path), IMAGE)[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("net", [Residual, Squeeze, Tokens])
def test_pytorchs_newer_exporter(net: Callable[[], torch.nn.Module], training: bool, tmp_path: Path) -> None:
    """Which keeps dropout and BatchNormalization of a net in training mode only, and names operators anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net().train(training),
            (torch.randn(2, 3, 9, 9),),
            dynamo=True,
            verbose=False,
            optimize=not training,
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    onnx.save(program.model_proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert apply(model, EVERYTHING)
    again = reloaded(model, tmp_path)
    np.testing.assert_allclose(run(again, IMAGE)[0].sum(-1), 1, rtol=1e-5)
    assert not apply(again, EVERYTHING)
    assert head(again).parameters["weight"].name == ("classifier.1.weight" if net is Squeeze else "fc.weight")


def test_our_lenet(lenet_files: tuple[Path, Path]) -> None:
    definition, weights = lenet_files
    model = convert(definition, weights=weights)
    images = np.random.default_rng(0).uniform(size=(3, 1, 28, 28)).astype(np.float32)
    (before,) = run(model, images)
    old = weights_of(model)
    InsertDropout(input=0.2, hidden=0.5)(model)
    assert [n.name for n in model.graph if n.op_type == "Dropout"] == [
        "data/dropout",
        "conv1/dropout",
        "conv2/dropout",
        "drop1",
    ]
    np.testing.assert_allclose(run(model, images)[0], before, rtol=1e-5)
    ReplaceHead(units=10, keep=list(range(10)))(model)
    np.testing.assert_allclose(run(model, images)[0], before, rtol=1e-4, atol=1e-7)
    assert labels(model, "prob") == [str(digit) for digit in range(10)]
    for name in ("ip2.weight", "ip2.bias", "conv1.weight"):
        np.testing.assert_array_equal(weights_of(model)[name], old[name])


@pytest.mark.parametrize("name", ["det1", "det2", "det3"])
def test_mtcnn(shared_data: Path, name: str) -> None:
    model = convert(shared_data / "caffe" / "mtcnn" / f"{name}.prototxt")
    shape = [d if isinstance(d, int) else 2 for d in model.graph.inputs[0].shape or ()]
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    outputs = [str(o.name) for o in model.graph.outputs]
    before = dict(zip(outputs, run(model, images), strict=True))
    ReplaceHead(units=2, keep=[0, 1], output="prob1")(model)
    InsertDropout(hidden=0.3)(model)
    after = dict(zip(outputs, run(model, images), strict=True))
    for output in outputs:
        np.testing.assert_allclose(after[output], before[output], rtol=1e-4, atol=1e-6)
    box = next(o for o in outputs if o != "prob1")
    ReplaceHead(units=6, activation="tanh", output=box)(model)
    after = dict(zip(outputs, run(model, images), strict=True))
    assert after[box].shape == (*before[box].shape[:1], 6, *before[box].shape[2:])
    np.testing.assert_allclose(after["prob1"], before["prob1"], rtol=1e-4, atol=1e-6)


def test_a_detector_has_no_single_head(shared_data: Path) -> None:
    model = load(shared_data / "caffe" / "rfb320" / "RFB-320.onnx")
    for output in model.graph.outputs:
        with pytest.raises(SurgeryError, match="no head that can be found"):
            head(model, output.name)
    images = np.random.default_rng(0).normal(size=[1, 3, 240, 320]).astype(np.float32)
    before = run(model, images)
    apply(model, [{"freeze": "all"}, {"insert_dropout": 0.3}, {"max_norm": 2}])
    for old, new in zip(before, run(model, images), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)
