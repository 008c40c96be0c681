"""Small networks twice: as an ONNX model and as the PyTorch module it equals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from surgery.emit import Emitter
from surgery.io import IR_VERSION, infer_shapes

__all__ = ["Residual", "lenet", "model_of", "parameter", "residual", "torch_lenet", "torch_losses"]


def model_of(graph: ir.Graph, outputs: dict[str, ir.Value]) -> ir.Model:
    """A model of `graph` with named `outputs` and inferred shapes."""
    for name, value in outputs.items():
        value.name = name
        value.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    model = ir.Model(graph, ir_version=IR_VERSION)
    infer_shapes(model)
    return model


def parameter(op: Emitter, name: str, tensor: torch.Tensor) -> ir.Value:
    """An initializer that holds a copy of `tensor`."""
    array = tensor.detach().numpy().copy()
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    op.graph.register_initializer(value)
    return value


def graph_with_input(*shape: int | str) -> tuple[Emitter, ir.Value]:
    """An empty graph (opset 21) with the input ``data`` of `shape`."""
    data = ir.val("data", ir.DataType.FLOAT, shape)
    graph = ir.Graph([data], [], nodes=[], opset_imports={"": 21}, name="net")
    return Emitter(graph), data


def torch_lenet(seed: int = 0) -> nn.Sequential:
    """Caffe's LeNet, without dropout."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    for name, module in {
        "conv1": nn.Conv2d(1, 20, 5),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5),
        "pool2": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "ip1": nn.Linear(800, 500),
        "relu1": nn.ReLU(),
        "ip2": nn.Linear(500, 10),
    }.items():
        net.add_module(name, module)
    return net


def lenet(net: nn.Sequential) -> ir.Model:
    """The ONNX twin of `torch_lenet`, with a Softmax at the end."""
    op, x = graph_with_input("N", 1, 28, 28)
    for name, module in net.named_children():
        weights = [parameter(op, f"{name}.{role}", p) for role, p in module.named_parameters()]
        if isinstance(module, nn.Conv2d):
            x = op.Conv(x, *weights, kernel_shape=[5, 5], _name=name)
        elif isinstance(module, nn.MaxPool2d):
            x = op.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2], _name=name)
        elif isinstance(module, nn.Linear):
            x = op.Gemm(x, *weights, transB=1, _name=name)
        else:
            x = op.Flatten(x, _name=name) if isinstance(module, nn.Flatten) else op.Relu(x, _name=name)
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1, _name="softmax")})


class Residual(nn.Module):
    """Two convolutions with BatchNormalization around a shortcut, and a linear classifier."""

    def __init__(self, seed: int = 0, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)
        for bn in (self.bn1, self.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.uniform_(bn.bias, -0.2, 0.2)
            nn.init.uniform_(bn.running_mean, -0.2, 0.2)
            nn.init.uniform_(bn.running_var, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] → logits [N, classes]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def residual(net: Residual, size: int = 8) -> ir.Model:
    """The ONNX twin of `net`, with a Softmax at the end."""
    op, x = graph_with_input("N", 3, size, size)

    def normalized(value: ir.Value, number: int) -> ir.Value:
        conv, bn = getattr(net, f"conv{number}"), getattr(net, f"bn{number}")
        weight = parameter(op, f"conv{number}.weight", conv.weight)
        value = op.Conv(value, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], _name=f"conv{number}")
        values = [
            parameter(op, f"bn{number}.{role}", getattr(bn, role))
            for role in ("weight", "bias", "running_mean", "running_var")
        ]
        return op.BatchNormalization(value, *values, epsilon=bn.eps, momentum=0.9, _name=f"bn{number}")

    x = op.Relu(normalized(x, 1), _name="relu1")
    x = op.Relu(op.Add(x, normalized(x, 2), _name="add"), _name="relu2")
    x = op.Flatten(op.GlobalAveragePool(x, _name="pool"), _name="flat")
    x = op.Gemm(
        x, parameter(op, "fc.weight", net.fc.weight), parameter(op, "fc.bias", net.fc.bias), transB=1, _name="fc"
    )
    return model_of(op.graph, {"prob": op.Softmax(x, axis=1, _name="softmax")})


def batches(count: int, size: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Batches of examples whose class shows in their mean."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        targets = rng.integers(0, classes, size)
        level = targets.reshape(-1, *[1] * len(shape)) / classes
        result.append(((rng.normal(0, 0.5, (size, *shape)) + level).astype(np.float32), targets.astype(np.int64)))
    return result


def torch_losses(net: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[np.ndarray, ...]]) -> list[float]:
    """Trains `net` on batches of examples and class numbers; returns the loss of each, before its update."""
    losses = []
    for examples, targets in data:
        loss = nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
