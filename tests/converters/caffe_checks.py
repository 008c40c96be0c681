"""What the tests of the Caffe converter share: nets written for a test, runs, and oracles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx_ir as ir
from google.protobuf import text_format

from converters import convert
from converters.caffe import caffe_pb2
from surgery.runtime import session

__all__ = [
    "IMAGE",
    "INPUT",
    "IP",
    "V2",
    "Array",
    "array",
    "binary",
    "caffe_pool",
    "check",
    "one",
    "opencv",
    "run",
    "sigmoid",
    "write",
    "write_net",
]

Array = np.ndarray
V2 = """
name: "current"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 group: 2
                            weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.3 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 } }
layer { name: "drop" type: "Dropout" bottom: "norm" top: "norm" dropout_param { dropout_ratio: 0.25 } }
layer { name: "ip" type: "InnerProduct" bottom: "norm" top: "ip"
        inner_product_param { num_output: 5 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


IP = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 4 } }"""
INPUT = 'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {} }} }} }}\n'
IMAGE = INPUT.format("dim: 1 dim: 3 dim: 8 dim: 8")


def run(model: ir.Model, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of `model` by name."""
    runner = session(model, ["CPUExecutionProvider"], threads=1)
    names = [o.name for o in runner.get_outputs()]
    feed = {i.name: array for i, array in zip(runner.get_inputs(), inputs, strict=True)}
    return dict(zip(names, runner.run(None, feed), strict=True))


def opencv(definition: Path, weights: Path | None, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what OpenCV's Caffe reader computes, by output name. Inputs are named x, y, …, but for a single one."""
    net = cv2.dnn.readNetFromCaffe(str(definition), str(weights) if weights else "")
    for name, array in zip("xyz" if len(inputs) > 1 else [""], inputs, strict=False):
        net.setInput(array, name)
    names = net.getUnconnectedOutLayersNames()
    return dict(zip(names, net.forward(names), strict=True))


def write_net(
    folder: Path,
    layers: str,
    inputs: Mapping[str, Sequence[int]],
    blobs: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> tuple[Path, Path | None]:
    """Writes a definition with `inputs` and `layers` (text), and its weights by layer name, if there are any."""
    shapes = {name: " ".join(f"dim: {d}" for d in shape) for name, shape in inputs.items()}
    head = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {shape} }} }} }}\n'
        for name, shape in shapes.items()
    )
    definition = folder / "net.prototxt"
    definition.write_text(head + layers)
    if not blobs:
        return definition, None
    net = text_format.Parse(head + layers, caffe_pb2.NetParameter())
    for layer in net.layer:
        for array in blobs.get(layer.name, ()):
            blob = layer.blobs.add(data=array.ravel())
            blob.shape.dim.extend(array.shape)
    weights = folder / "net.caffemodel"
    weights.write_bytes(net.SerializeToString())
    return definition, weights


def caffe_pool(
    x: np.ndarray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    average: bool,
    ceil: bool = True,
) -> np.ndarray:
    """Pooling of `x` ([N, C, H, W]) as Caffe documents it, window by window."""
    sizes = x.shape[2:]
    counts = []
    for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        count = (math.ceil if ceil else math.floor)((size + 2 * p - k) / s) + 1
        if p and (count - 1) * s >= size + p:
            count -= 1
        counts.append(count)
    out = np.zeros((*x.shape[:2], *counts), x.dtype)
    for i in range(counts[0]):
        for j in range(counts[1]):
            begin = [n * s - p for n, s, p in zip((i, j), stride, pad, strict=True)]
            end = [min(b + k, size + p) for b, k, size, p in zip(begin, kernel, sizes, pad, strict=True)]
            area: Any = (end[0] - begin[0]) * (end[1] - begin[1])
            window = x[:, :, max(begin[0], 0) : min(end[0], sizes[0]), max(begin[1], 0) : min(end[1], sizes[1])]
            if average:
                out[:, :, i, j] = window.sum((2, 3)) / area
            else:
                out[:, :, i, j] = window.max((2, 3), initial=np.finfo(np.float32).min)
    return out


def check(
    folder: Path,
    layers: str,
    inputs: Sequence[Array],
    expected: Sequence[Array],
    blobs: dict[str, list[Array]] | None = None,
    shape: str | None = None,
) -> dict[str, Array]:
    """Converts a net of inputs x, y, z and `layers`, and compares its outputs in order."""
    names = dict(zip("xyz", (a.shape for a in inputs), strict=False))
    definition, _ = write_net(folder, layers, names, blobs)
    found = run(convert(definition, shape=shape), *inputs)
    assert len(found) == len(expected)
    for (name, array), want in zip(found.items(), expected, strict=True):
        assert array.shape == want.shape
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-5, err_msg=name)
    return found


def one(type: str, params: str = "", bottoms: str = "x", tops: str = "out") -> str:
    """The text of one layer named "it"."""
    ends = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return f'layer {{ name: "it" type: "{type}" {" ".join(ends)} {params} }}'


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def write(folder: Path, text: str, name: str = "net.prototxt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def binary(text: str, blobs: dict[str, list[tuple[list[int], int]]]) -> bytes:
    """A caffemodel of the net `text`, with blobs of the given shapes and counts of numbers."""
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    for layer in net.layer:
        for shape, count in blobs.get(layer.name, []):
            layer.blobs.add(data=np.ones(count)).shape.dim.extend(shape)
    return net.SerializeToString()
