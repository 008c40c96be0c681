"""Trains Caffe's LeNet, with dropout, on MNIST and writes it in Caffe's own format.

    python models/lenet_mnist/train.py MNIST.npz

writes lenet_mnist.prototxt, lenet_mnist.caffemodel and card.yaml next to this script. MNIST.npz is the file that
`keras.datasets.mnist` downloads: x_train, y_train, x_test, y_test (uint8). Needs PyTorch.

The network is that of Caffe's MNIST example (LeCun et al. 1998, with rectified linear units), with dropout in front of
the output layer. The training images are shifted by up to two pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from google.protobuf import text_format
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from converters.caffe import caffe_pb2  # noqa: E402

SCALE = 0.00390625  # as in Caffe's example: pixels become [0, 1)


def network() -> nn.Sequential:
    """LeNet as Caffe's example has it; the names are those of the Caffe layers."""
    net = nn.Sequential()
    for name, module in {
        "conv1": nn.Conv2d(1, 20, 5),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(20, 50, 5),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "ip1": nn.Linear(800, 500),
        "relu1": nn.ReLU(),
        "drop1": nn.Dropout(0.5),
        "ip2": nn.Linear(500, 10),
    }.items():
        net.add_module(name, module)
    return net


def shifted(images: torch.Tensor, generator: torch.Generator, most: int = 2) -> torch.Tensor:
    """Moves each image ([N, 1, H, W]) by up to `most` pixels each way, filling with black."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, [most] * 4)
    offsets = torch.randint(0, 2 * most + 1, (2, n, 1, 1), generator=generator)
    rows = offsets[0] + torch.arange(height).reshape(1, -1, 1)
    columns = offsets[1] + torch.arange(width).reshape(1, 1, -1)
    return padded[torch.arange(n).reshape(-1, 1, 1), 0, rows, columns].unsqueeze(1)


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of `x` ([N, 1, 28, 28]) that `net` classifies as `y`."""
    net.eval()
    with torch.no_grad():
        right = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return right / len(y)


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> nn.Module:
    """Adam with a learning rate that falls along a cosine; prints the loss per epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = network()
    batch = 128
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        net.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for start in range(0, len(x) - batch + 1, batch):
            chosen = order[start : start + batch]
            loss = nn.functional.cross_entropy(net(shifted(x[chosen], generator)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / (len(x) // batch):.4f}", flush=True)
    return net


def definition() -> caffe_pb2.NetParameter:
    """The network as a Caffe deploy definition, with the multipliers of Caffe's example."""
    net = caffe_pb2.NetParameter(name="LeNet-MNIST")
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[1, 1, 28, 28])

    def add(name: str, kind: str, bottom: str, top: str) -> caffe_pb2.LayerParameter:
        layer = net.layer.add(name=name, type=kind, bottom=[bottom], top=[top])
        if kind in ("Convolution", "InnerProduct"):
            layer.param.add(lr_mult=1, decay_mult=1)
            layer.param.add(lr_mult=2, decay_mult=0)
            param = layer.convolution_param if kind == "Convolution" else layer.inner_product_param
            param.weight_filler.type = "xavier"
            param.bias_filler.type = "constant"
        return layer

    for number, (bottom, units) in enumerate((("data", 20), ("pool1", 50)), start=1):
        conv = add(f"conv{number}", "Convolution", bottom, f"conv{number}").convolution_param
        conv.num_output = units
        conv.kernel_size.append(5)
        conv.stride.append(1)
        pool = add(f"pool{number}", "Pooling", f"conv{number}", f"pool{number}").pooling_param
        pool.pool = caffe_pb2.PoolingParameter.MAX
        pool.kernel_size = pool.stride = 2
    add("ip1", "InnerProduct", "pool2", "ip1").inner_product_param.num_output = 500
    add("relu1", "ReLU", "ip1", "ip1")
    add("drop1", "Dropout", "ip1", "ip1").dropout_param.dropout_ratio = 0.5
    add("ip2", "InnerProduct", "ip1", "ip2").inner_product_param.num_output = 10
    add("prob", "Softmax", "ip2", "prob")
    return net


def write(net: nn.Module, measured: float, command: str) -> None:
    """Writes prototxt, caffemodel and card."""
    caffe = definition()
    (HERE / "lenet_mnist.prototxt").write_text(text_format.MessageToString(caffe))
    state = net.state_dict()
    for layer in caffe.layer:
        for role in ("weight", "bias"):
            if (array := state.get(f"{layer.name}.{role}")) is not None:
                blob = layer.blobs.add(data=array.numpy().ravel())
                blob.shape.dim.extend(array.shape)
    (HERE / "lenet_mnist.caffemodel").write_bytes(caffe.SerializeToString())
    card = {
        "name": "LeNet on MNIST",
        "source": "trained from random weights by train.py in this folder; the architecture of Caffe's MNIST example "
        "with dropout (LeCun et al., Gradient-based learning applied to document recognition, 1998)",
        "licence": "MIT, as this repository; MNIST itself is not part of it",
        "files": {"definition": "lenet_mnist.prototxt", "weights": "lenet_mnist.caffemodel"},
        "input": {"shape": [1, 28, 28], "layout": "NCHW", "color": "gray", "content": "white digits on black"},
        "preprocessing": {"color": "gray", "layout": "NCHW", "size": [28, 28], "scale": SCALE},
        "labels": [str(digit) for digit in range(10)],
        "accuracy": {"data": "MNIST test set, 10,000 images", "top1": round(measured, 4)},
        "command": command,
    }
    (HERE / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False, width=110))


def main() -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path, help="mnist.npz")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.mnist) as data:
        x, y, x_test, y_test = (data[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    images, test = (torch.from_numpy(a[:, None].astype(np.float32) * SCALE) for a in (x, x_test))
    net = train(images, torch.from_numpy(y.astype(np.int64)), options.epochs, options.seed)
    measured = accuracy(net, test, torch.from_numpy(y_test.astype(np.int64)))
    print(f"test accuracy {measured:.2%}")
    write(
        net, measured, f"python models/lenet_mnist/train.py MNIST.npz --epochs {options.epochs} --seed {options.seed}"
    )


if __name__ == "__main__":
    main()
