"""What the known results share: the data, networks layer by layer, and the line that says how it went."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
from PIL import Image

import surgery
from surgery.data.preprocess import resize
from surgery.emit import Emitter
from surgery.io import IR_VERSION, infer_shapes
from surgery.passes.initializers import initialize
from surgery.training.callbacks import Callback
from surgery.training.history import Record

HERE = Path(__file__).parent
PHOTOGRAPHS = "download and unpack https://download.pytorch.org/tutorial/hymenoptera_data.zip"
MNIST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options that every result has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/known_results"), help="a folder for the results")
    parser.add_argument("--examples", type=int, help="use so many examples only, to try it out")
    parser.add_argument("--epochs", type=int, help="of each training, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def mnist(path: Path, examples: int | None = None) -> dict[str, np.ndarray]:
    """Reads x_train, y_train, x_test, y_test of MNIST, or the first of each."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; download it from {MNIST}")
    with np.load(path) as arrays:
        return {name: arrays[name][:examples] for name in ("x_train", "y_train", "x_test", "y_test")}


def photographs(files: list[Path], size: int) -> np.ndarray:
    """Reads photographs, their middle as squares of `size` pixels: `[N, size, size, 3]`."""
    return np.stack([resize(np.asarray(Image.open(file).convert("RGB")), (size, size)) for file in files])


class Network:
    """Builds a network layer by layer; weights are drawn with `seed`, biases are 0.

    Args:
        shape: Of an example: channels, height and width of an image, or the number of features.
        seed: Of the weights.
        initializer: Of the weights, as `replace_head` takes it.
    """

    def __init__(self, *shape: int, seed: int = 0, initializer: str = "glorot") -> None:
        self._input = ir.val("input", ir.DataType.FLOAT, ("N", *shape))
        graph = ir.Graph([self._input], [], nodes=[], opset_imports={"": 21}, name="network")
        self._op, self._value, self._shape = Emitter(graph), self._input, list(shape)
        self._seed, self._initializer = seed, initializer

    def conv(self, name: str, units: int, kernel: int = 3, pad: int = 0) -> Network:
        """A convolution with ReLU."""
        weight, bias = self._parameters(name, (units, self._shape[0], kernel, kernel))
        how = {"kernel_shape": [kernel, kernel], "pads": [pad] * 4}
        self._value = self._op.Relu(self._op.Conv(self._value, weight, bias, _name=name, **how), _name=f"{name}/relu")
        self._shape = [units, *(size + 2 * pad - kernel + 1 for size in self._shape[1:])]
        return self

    def pool(self, name: str, size: int = 2) -> Network:
        """The maximum over squares."""
        self._value = self._op.MaxPool(self._value, kernel_shape=[size] * 2, strides=[size] * 2, _name=name)
        self._shape = [self._shape[0], *(s // size for s in self._shape[1:])]
        return self

    def average(self, name: str) -> Network:
        """The mean over all places."""
        self._value = self._op.Flatten(self._op.GlobalAveragePool(self._value, _name=name))
        self._shape = self._shape[:1]
        return self

    def dropout(self, name: str, rate: float) -> Network:
        """Drops units while training."""
        self._value = self._op.Dropout(self._value, self._op.constant(rate, ir.DataType.FLOAT), _name=name)
        return self

    def dense(self, name: str, units: int, activation: str | None = "Relu") -> Network:
        """A fully connected layer."""
        if len(self._shape) > 1:
            self._value, self._shape = self._op.Flatten(self._value), [int(np.prod(self._shape))]
        weight, bias = self._parameters(name, (units, self._shape[0]))
        self._value, self._shape = self._op.Gemm(self._value, weight, bias, transB=1, _name=name), [units]
        if activation is not None:
            how = {"axis": 1} if activation == "Softmax" else {}
            self._value = getattr(self._op, activation)(self._value, _name=f"{name}/{activation.lower()}", **how)
        return self

    def model(self) -> ir.Model:
        """What has been built."""
        self._value.name, self._value.type = "output", ir.TensorType(ir.DataType.FLOAT)
        self._op.graph.outputs.append(self._value)
        model = ir.Model(self._op.graph, ir_version=IR_VERSION)
        infer_shapes(model)
        return model

    def _parameters(self, name: str, shape: tuple[int, ...]) -> list[ir.Value]:
        arrays = {"weight": initialize(self._initializer, shape, self._seed, name), "bias": np.zeros(shape[:1])}
        found = []
        for role, array in arrays.items():
            tensor = ir.tensor(array.astype(np.float32), name=f"{name}.{role}")
            value = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), const_value=tensor)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self._op.graph.register_initializer(value)
            found.append(value)
        return found


class Epochs(Callback):
    """Prints a line for each epoch."""

    def on_epoch_end(self, record: Record) -> None:
        figures = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if k not in ("epoch", "seconds", "learning_rate"))
        print(f"  epoch {record['epoch']:>2}  {figures}  {record['seconds']:.1f} s", flush=True)


def accuracy(model: ir.Model, examples: np.ndarray, targets: np.ndarray) -> float:
    """The share that `model` classifies as they are."""
    return surgery.evaluate(model, (examples, targets), batch_size=256).value
