"""What the tests of the Caffe converter share: runs, and OpenCV's reader as the oracle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir

from surgery.runtime import session

__all__ = ["opencv", "run"]


def run(model: ir.Model, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of `model` by name."""
    runner = session(model, ["CPUExecutionProvider"], threads=1)
    names = [o.name for o in runner.get_outputs()]
    feed = {i.name: array for i, array in zip(runner.get_inputs(), inputs, strict=True)}
    return dict(zip(names, runner.run(None, feed), strict=True))


def opencv(definition: Path, weights: Path, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what OpenCV's Caffe reader computes, by output name."""
    net = cv2.dnn.readNetFromCaffe(str(definition), str(weights))
    for index, array in enumerate(inputs):
        net.setInput(array, "" if len(inputs) == 1 else f"input{index}")
    names = net.getUnconnectedOutLayersNames()
    return dict(zip(names, net.forward(names), strict=True))
