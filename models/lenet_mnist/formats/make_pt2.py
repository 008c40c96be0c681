"""Writes the LeNet of the folder above as torch.export saves it: lenet.pt2. Needs PyTorch.

python models/lenet_mnist/formats/make_pt2.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from converters import convert  # noqa: E402


def network() -> nn.Sequential:
    """LeNet with the names of its Caffe layers."""
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
        "prob": nn.Softmax(dim=1),
    }.items():
        net.add_module(name, module)
    return net


def main() -> None:
    """Takes the weights from the caffemodel."""
    initializers = convert(HERE.parent / "lenet_mnist.prototxt").graph.initializers
    net = network()
    names = net.state_dict().keys()
    tensors = {name: initializers[name].const_value for name in names}
    net.load_state_dict({name: torch.from_numpy(t.numpy().copy()) for name, t in tensors.items() if t is not None})
    batch = torch.export.Dim("batch")
    program = torch.export.export(net.eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:  # where PyTorch was installed is nobody's business
        node.meta.pop("stack_trace", None)
    torch.export.save(program, HERE / "lenet.pt2")


if __name__ == "__main__":
    main()
