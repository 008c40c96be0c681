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

from converters.caffe import caffe_pb2
from surgery.runtime import session

__all__ = ["caffe_pool", "opencv", "run", "write_net"]


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
