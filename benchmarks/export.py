"""Writes a network and a batch into a folder, in a process of its own: ``python -m benchmarks.export NET FOLDER``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import nn

from benchmarks import nets
from benchmarks.work import NETS


def main() -> None:
    """Writes NET.onnx and NET.npz; where the network has dropout, its twin without as well."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    net = nets.build(name)
    write_onnx(net, NETS[name].shape, folder / f"{name}.onnx")
    if any(isinstance(module, nn.Dropout) for module in net.modules()):
        write_onnx(nets.build(name, dropout=False), NETS[name].shape, folder / f"{name}-plain.onnx")
    np.savez(folder / f"{name}.npz", *_batch(name))


def _batch(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Examples, `[N, C, H, W]`, and their class numbers, `[N]`, the same each time."""
    net, rng = NETS[name], np.random.default_rng(0)
    examples = rng.normal(size=(net.batch, *net.shape)).astype(np.float32)
    return examples, rng.integers(0, net.classes, net.batch)


def write_onnx(net: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Writes `net` as ONNX for any batch, with its Dropout, and its BatchNormalization as it infers."""
    before = {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.train(),
            (torch.zeros(2, *shape),),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,  # keeps Dropout, and BatchNormalization beside its convolution
            do_constant_folding=False,
            input_names=["data"],
            output_names=["logits"],
            dynamic_axes={"data": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
        )
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
            kept = [a for a in node.attribute if a.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
    for index, tensor in enumerate(model.graph.initializer):  # the exporter's own run has moved the statistics
        model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(before[tensor.name], tensor.name))
    onnx.save(model, path)


if __name__ == "__main__":
    main()
