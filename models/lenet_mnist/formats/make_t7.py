"""Writes the LeNet of the folder above as Lua Torch's loadcaffe would: lenet.t7, binary, with longs of 8 bytes.

python models/lenet_mnist/formats/make_t7.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from converters import convert  # noqa: E402
from tests.converters.torch7_files import Longs, Obj, module, write_t7  # noqa: E402


def network(weights: dict[str, np.ndarray]) -> Obj:
    """LeNet in modules of package nn, named as its Caffe layers."""

    def convolution(name: str, inputs: int, outputs: int) -> Obj:
        sizes = {
            "nInputPlane": inputs,
            "nOutputPlane": outputs,
            "kW": 5,
            "kH": 5,
            "dW": 1,
            "dH": 1,
            "padW": 0,
            "padH": 0,
        }
        return module("SpatialConvolution", name=name, **sizes, **parameters(name))

    def pooling(name: str) -> Obj:
        return module("SpatialMaxPooling", name=name, kW=2, kH=2, dW=2, dH=2, padW=0, padH=0, ceil_mode=True)

    def parameters(name: str) -> dict[str, np.ndarray]:
        return {role: weights[f"{name}.{role}"] for role in ("weight", "bias")}

    return module(
        "Sequential",
        convolution("conv1", 1, 20),
        pooling("pool1"),
        convolution("conv2", 20, 50),
        pooling("pool2"),
        module("View", name="flatten", size=Longs([-1]), numElements=1, numInputDims=3),
        module("Linear", name="ip1", **parameters("ip1")),
        module("ReLU", name="relu1", threshold=0, val=0, inplace=True),
        module("Dropout", name="drop1", p=0.5, v2=True, inplace=False),
        module("Linear", name="ip2", **parameters("ip2")),
        module("SoftMax", name="prob"),
    )


def main() -> None:
    """Takes the weights from the caffemodel."""
    initializers = convert(HERE.parent / "lenet_mnist.prototxt").graph.initializers
    weights = {name: value.const_value.numpy() for name, value in initializers.items() if value.const_value is not None}
    write_t7(HERE, network(weights), "lenet.t7")


if __name__ == "__main__":
    main()
