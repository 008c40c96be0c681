"""Whole networks: their gradients are PyTorch's, and gradient descent lowers their loss."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from converters.onnx_file import convert_onnx
from surgery import runtime
from surgery.autodiff import gradient
from surgery.io import infer_shapes
from surgery.layers import STATISTICS, layers
from surgery.training.optimizers import Sgd, chain
from surgery.training.runner import Training
from surgery.training.step import training_step
from tests.autodiff.architectures import ARCHITECTURES, CLASSES
from tests.autodiff.torch_twin import kinks, run

pytestmark = [pytest.mark.slow, pytest.mark.training]
CPU = ["CPUExecutionProvider"]
KERNELS = [False, True] if runtime.has_training_kernels() else [False]
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# The size of the input, and dimensions that are made smaller: hidden layers of 4096 units, what goes into the first.
LIGHT_MODELS: dict[str, tuple[int, dict[int, int]]] = {
    "bvlc_alexnet": (224, {4096: 64}),
    "densenet121": (64, {}),
    "inception_v1": (96, {}),
    "inception_v2": (96, {}),
    "resnet50": (96, {}),
    "shufflenet": (224, {}),
    "squeezenet": (64, {}),
    "vgg19": (64, {4096: 64, 25088: 2048}),
    "zfnet512": (224, {4096: 64}),
}
LIGHT_CLASSES = 10
torch.set_num_threads(1)


def _light(name: str) -> ir.Model:
    """A light model with weights, which its file lacks, a free batch size, 10 classes, and no dropout."""
    size, smaller = LIGHT_MODELS[name]
    smaller = {**smaller, 1000: LIGHT_CLASSES}
    model = convert_onnx(LIGHT / f"light_{name}.onnx")
    graph = model.graph
    reshapes = {node.inputs[1] for node in graph if node.op_type == "Reshape"}
    for value in graph.initializers.values():
        assert value.const_value is not None
        if value.dtype == ir.DataType.INT64:
            numbers = [smaller.get(d, d) for d in value.const_value.numpy().tolist()] if value.shape else []
            if value in reshapes and numbers[0] == 1:
                numbers[0] = 0  # the batch
            value.const_value = ir.tensor(np.array(numbers, np.int64), name=value.name)
        elif any(node.op_type == "Dropout" for node in value.consumers()):
            value.const_value = ir.tensor(np.zeros((), np.float32), name=value.name)
    rng = np.random.default_rng(0)
    for node in list(graph):
        if node.op_type == "AveragePool" and node.attributes["kernel_shape"].as_ints()[0] == 7:  # over the whole image
            node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [size // 32] * 2)
        if node.op_type == "ConstantOfShape":
            shape = node.inputs[0].const_value.numpy().tolist()
            _make_parameter(graph, node.outputs[0], shape, rng)
            graph.remove(node)
    graph.inputs[0].shape = ir.Shape(["n", 3, size, size])
    for node in graph:
        for output in node.outputs:
            output.shape = None
    RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return model


def _make_parameter(graph: ir.Graph, old: ir.Value, shape: list[int], rng: np.random.Generator) -> None:
    """Replaces a value by an initializer: He's for weights, near 1 for scales and variances, near 0 for the rest."""
    (user, index), *_ = old.uses()
    if user.op_type == "Unsqueeze":
        (user, index), *_ = user.outputs[0].uses()
    array = rng.uniform(-0.1, 0.1, shape)
    if len(shape) > 1:
        array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif user.op_type == "Mul" or (user.op_type == "BatchNormalization" and index in (1, 4)):
        array += 1
    name = str(old.name)
    old.name = f"{name}/old"
    value = ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
    graph.register_initializer(value)
    old.replace_all_uses_with(value)


def _logits(model: ir.Model) -> str:
    """What goes into the Softmax, or the output where there is none."""
    output = next((n.inputs[0] for n in model.graph if n.op_type == "Softmax"), model.graph.outputs[0])
    assert output is not None
    return str(output.name)


def _parameters(model: ir.Model) -> list[str]:
    return [str(p.name) for layer in layers(model) for r, p in layer.parameters.items() if r not in STATISTICS]


def _compare(found: Mapping[str, np.ndarray], expected: Mapping[str, torch.Tensor]) -> None:
    """Each gradient to 3e-4, but for those that are nothing beside the others (and often nothing at all)."""
    norms = {name: float(np.linalg.norm(g.numpy())) for name, g in expected.items()}
    largest = max(norms.values())
    for name, g in expected.items():
        error = np.linalg.norm(found[name] - g.numpy())
        assert error <= 3e-4 * norms[name] + 1e-6 * largest, f"{name}: error {error:g}, norm {norms[name]:g}"


def _gradients(
    model: ir.Model, of: str, wrt: list[str], feeds: dict[str, np.ndarray], weight: np.ndarray, fused: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The gradients, and the values that tell where the kinks were, from one run."""
    made = gradient(model, of=of, wrt=wrt, weight=weight, fused=fused)
    sides = {str(v.name): v for v in kinks(made.graph)}
    made.graph.outputs.extend(v for v in sides.values() if not v.is_graph_output())
    session = runtime.session(made, CPU)
    results = session.run([f"gradient/{name}" for name in wrt] + list(sides), feeds)
    return dict(zip(wrt, results[: len(wrt)], strict=True)), dict(zip(sides, results[len(wrt) :], strict=True))


def _train(model: ir.Model, examples: np.ndarray, targets: np.ndarray, rate: float, fused: bool) -> list[float]:
    """The losses of ten steps of plain gradient descent, each before its update."""
    training = Training(training_step(model, chain(Sgd(momentum=0.0)), loss="cross_entropy", fused=fused), CPU)
    return [training.run(examples, targets, rate)[0] for _ in range(10)]


@pytest.mark.parametrize("fused", KERNELS)
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_gradients_of_light_models(name: str, fused: bool) -> None:
    model = _light(name)
    data = str(model.graph.inputs[0].name)
    of = _logits(model)
    rng = np.random.default_rng(1)
    image = rng.standard_normal((1, 3, *model.graph.inputs[0].shape[2:])).astype(np.float32)  # type: ignore[index]
    wrt = [data, *_parameters(model)]
    values = {n: torch.tensor(model.graph.initializers[n].const_value.numpy().astype(np.float64)) for n in wrt[1:]}
    values[data] = torch.tensor(image, dtype=torch.float64)
    for value in values.values():
        value.requires_grad_()
    weight = rng.standard_normal((1, LIGHT_CLASSES, *[1] * (_rank(model, of) - 2))).astype(np.float32)
    found, sides = _gradients(model, of, wrt, {data: image}, weight, fused)
    y = run(_double(model), values, of, sides=sides)
    expected = torch.autograd.grad((y * torch.tensor(weight)).sum(), [values[name] for name in wrt])
    _compare(found, dict(zip(wrt, expected, strict=True)))


def _rank(model: ir.Model, name: str) -> int:
    value = next(o for node in model.graph for o in node.outputs if o.name == name)
    assert value.shape is not None
    return len(value.shape)


def _double(model: ir.Model) -> ir.Model:
    """A copy with weights in double, for PyTorch."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
    return copy


RATES = {"densenet121": 1e-2, "resnet50": 1e-2, "shufflenet": 1e-2, "inception_v2": 1e-2}


@pytest.mark.parametrize("fused", KERNELS)
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_descent_of_light_models(name: str, fused: bool) -> None:
    """Ten steps on one batch lower the loss, which is PyTorch's at first (batch statistics and all)."""
    model = _light(name)
    rng = np.random.default_rng(2)
    images = rng.standard_normal((2, 3, *model.graph.inputs[0].shape[2:])).astype(np.float32)  # type: ignore[index]
    targets = np.array([3, 7])
    rate = RATES.get(name, 1e-3)
    losses = _train(model, images, targets, rate, fused)
    assert losses[-1] < losses[0]
    data, of = str(model.graph.inputs[0].name), _logits(model)
    logits = run(model, {data: torch.tensor(images)}, of, training=True).flatten(1)
    first = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
    assert losses[0] == pytest.approx(float(first), rel=1e-4)


def _network(name: str) -> torch.nn.Module:
    """An architecture with weights that no two layers share by chance and no unit is dead by."""
    torch.manual_seed(0)
    net = ARCHITECTURES[name]().eval()
    floats: Iterable[torch.Tensor] = [*net.parameters(), *(b for b in net.buffers() if b.dtype.is_floating_point)]
    for value in floats:
        value.data.add_(torch.rand_like(value) * 0.1)
    return net


def _examples(name: str, count: int) -> torch.Tensor:
    torch.manual_seed(1)
    if name not in ("bert", "gru"):
        return torch.rand(count, 3, 32, 32)
    ids = torch.randint(1, 30, (count, 10))
    ids[0, 7:] = 0  # padding
    return ids


def _exported(net: torch.nn.Module, examples: torch.Tensor, dynamo: bool) -> ir.Model:
    if dynamo:
        shapes = ({0: torch.export.Dim("n")},)
        program = torch.onnx.export(
            net,
            (examples,),
            dynamo=True,
            optimize=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        return ir.from_proto(program.model_proto)
    file = io.BytesIO()
    torch.onnx.export(
        net,
        (examples,),
        file,
        dynamo=False,
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}},
    )
    return ir.from_proto(onnx.load_from_string(file.getvalue()))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")
def test_networks_exported_by_pytorch(name: str, dynamo: bool) -> None:
    net, examples = _network(name), _examples(name, 2)
    model = _exported(net, examples, dynamo)
    parameters = dict(net.named_parameters())
    assert set(parameters) <= set(model.graph.initializers)
    weight = np.random.default_rng(0).standard_normal((2, CLASSES)).astype(np.float32)
    net.double()
    y = net(examples.double() if examples.is_floating_point() else examples)
    expected = torch.autograd.grad((y * torch.tensor(weight)).sum(), list(parameters.values()))
    for fused in KERNELS:
        found, _ = _gradients(model, "y", list(parameters), {"x": examples.numpy()}, weight, fused)
        _compare(found, dict(zip(parameters, expected, strict=True)))
        losses = _train(model, examples.numpy(), np.array([1, 3]), 0.02, fused)
        assert losses[-1] < losses[0]
