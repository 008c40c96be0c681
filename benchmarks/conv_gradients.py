"""Times the gradients of convolutions, ours and PyTorch's: ``python -m benchmarks.conv_gradients``.

The rule's choices rest on this: ``--ways`` times every way to the weight's gradient that the rule knows.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from surgery import runtime
from surgery.autodiff import backward
from surgery.autodiff.rules import kernel
from surgery.io import IR_VERSION, infer_shapes


@dataclasses.dataclass(frozen=True)
class Layer:
    """A square convolution of a batch."""

    batch: int
    channels: int
    size: int
    filters: int
    window: int
    stride: int = 1
    padding: int = 0
    group: int = 1

    def __str__(self) -> str:
        group = f", {self.group} groups" if self.group > 1 else ""
        return (
            f"{self.batch} × {self.channels}, {self.size}² → {self.filters}, "
            f"{self.window}×{self.window} / {self.stride}{group}"
        )


LAYERS = {
    "LeNet": [Layer(64, 1, 28, 20, 5), Layer(64, 20, 12, 50, 5)],
    "ResNet": [
        Layer(8, 3, 224, 64, 7, 2, 3),
        Layer(8, 64, 56, 64, 3, 1, 1),
        Layer(8, 64, 56, 128, 3, 2, 1),
        Layer(8, 128, 28, 128, 3, 1, 1),
        Layer(8, 256, 14, 256, 3, 1, 1),
        Layer(8, 512, 7, 512, 3, 1, 1),
        Layer(8, 256, 28, 512, 1, 2),
        Layer(8, 256, 14, 1024, 1),
        Layer(8, 64, 56, 256, 1),
    ],
    "VGG": [Layer(4, 3, 224, 64, 3, 1, 1), Layer(4, 64, 112, 128, 3, 1, 1)],
    "AlexNet": [Layer(8, 3, 227, 96, 11, 4), Layer(8, 96, 27, 256, 5, 1, 2, 2)],
    "MobileNet": [
        Layer(8, 3, 224, 32, 3, 2, 1),
        Layer(8, 32, 112, 32, 3, 1, 1, 32),
        Layer(8, 16, 112, 96, 1),
        Layer(8, 144, 56, 144, 3, 2, 1, 144),
        Layer(8, 192, 28, 192, 3, 1, 1, 192),
        Layer(8, 576, 14, 576, 3, 1, 1, 576),
        Layer(8, 960, 7, 960, 3, 1, 1, 960),
        Layer(8, 96, 14, 576, 1),
    ],
    "ConvNeXt": [
        Layer(8, 96, 56, 96, 7, 1, 3, 96),
        Layer(8, 192, 28, 192, 7, 1, 3, 192),
        Layer(8, 384, 14, 384, 7, 1, 3, 384),
        Layer(8, 768, 7, 768, 7, 1, 3, 768),
    ],
    "ResNeXt": [Layer(8, 128, 28, 128, 3, 1, 1, 32)],
}
WAYS = ("_by_products", "_by_columns", "_by_example", "_by_sums", "_by_lines", "_by_convolution")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Times the gradients of convolutions, ours and PyTorch's.")
    parser.add_argument("--nets", nargs="+", choices=[*LAYERS], default=list(LAYERS))
    parser.add_argument(
        "--threads", type=int, default=1, help="1 (default) counts the processor's time, more the clock's"
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--ways", action="store_true", help="every way to the weight's gradient")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fused = ["ConvGrad"] if runtime.has_training_kernels() else []
    titles = ["forward", "dX", "dW", *fused, "PyTorch's dX", "PyTorch's dW"]
    titles += [w.removeprefix("_by_") for w in WAYS] if options.ways else []
    print(f"{runtime.describe()}, PyTorch {torch.__version__}, {options.threads} thread(s); ms\n")
    print("| layer | " + " | ".join(titles) + " |\n| --- |" + " ---: |" * len(titles))
    for net in options.nets:
        for layer in LAYERS[net]:
            cells = [f"{t:.1f}" if t is not None else "–" for t in _row(layer, options)]
            print(f"| {net}: {layer} | " + " | ".join(cells) + " |", flush=True)


def _row(layer: Layer, options: Any) -> list[float | None]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((layer.batch, layer.channels, layer.size, layer.size)).astype(np.float32)
    w = rng.standard_normal((layer.filters, layer.channels // layer.group, layer.window, layer.window))
    w = (w / np.sqrt(w[0].size)).astype(np.float32)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tw, None, layer.stride, layer.padding, 1, layer.group)
    dy = rng.standard_normal(ty.shape).astype(np.float32)
    feeds, td = {"x": x, "w": w, "dy": dy}, torch.tensor(dy)
    expected = [g.numpy() for g in torch.autograd.grad(ty, [tx, tw], td, retain_graph=True)]

    def ours(wrt: list[int], fused: bool = False) -> float:
        run = _runner(_model(layer, dy.shape, wrt, fused), feeds, options.threads)
        for found, index in zip(run() if wrt else [], wrt, strict=True):
            scale = np.abs(expected[index]).max()
            np.testing.assert_allclose(found.numpy(), expected[index], atol=1e-4 * scale, rtol=1e-3)
        return _time(run, options)

    def theirs(wrt: list[torch.Tensor]) -> float:
        return _time(lambda: torch.autograd.grad(ty, wrt, td, retain_graph=True), options)

    times: list[float | None] = [ours([]), ours([0]), ours([1])]
    if runtime.has_training_kernels():
        times.append(ours([0, 1], fused=True))
    times += [theirs([tx]), theirs([tw])]
    if options.ways:
        choice = kernel.choose
        for way in WAYS:
            depthwise = layer.group == layer.channels == layer.filters
            lines = depthwise and layer.stride == 1
            if not {"_by_sums": depthwise, "_by_lines": lines, "_by_columns": layer.group == 1}.get(way, True):
                times.append(None)
                continue
            kernel.choose = lambda *_, way=way, **__: getattr(kernel, way)
            times.append(ours([1]))
        kernel.choose = choice
    return times


def _model(layer: Layer, places: tuple[int, ...], wrt: list[int], fused: bool) -> ir.Model:
    """A model of the gradients with respect to inputs `wrt`, or of the convolution where there are none."""
    shapes = {"x": (layer.batch, layer.channels, layer.size, layer.size), "dy": places}
    shapes["w"] = (layer.filters, layer.channels // layer.group, layer.window, layer.window)
    values = {name: ir.val(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}
    attributes: dict[str, Any] = {"strides": [layer.stride] * 2, "pads": [layer.padding] * 4, "group": layer.group}
    node = ir.node("Conv", [values["x"], values["w"]], attributes, name="conv")
    node.outputs[0].name = "y"
    graph = ir.Graph([*values.values()], node.outputs, nodes=[node], opset_imports={"": 17}, name="conv")
    model = ir.Model(graph, ir_version=IR_VERSION)
    infer_shapes(model)
    if wrt:
        inputs = [values["x"], values["w"]]
        found = backward(graph, {graph.outputs[0]: values["dy"]}, [inputs[i] for i in wrt], fused=fused)
        graph.outputs[:] = [found[inputs[i]] for i in wrt]
        graph.remove(node, safe=True)
    return model


def _runner(model: ir.Model, feeds: dict[str, np.ndarray], threads: int) -> Callable[[], Any]:
    session = runtime.session(model, ["CPUExecutionProvider"], threads=threads)
    values = {k: runtime.load_runtime().OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items()}
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    feed = {n: values[n] for n in names}
    return lambda: session.run_with_ort_values(outputs, feed)


def _time(run: Callable[[], Any], options: Any) -> float:
    """The shortest time of a run, in milliseconds."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    run()
    best = float("inf")
    for _ in range(options.repetitions):
        start = clock()
        run()
        best = min(best, clock() - start)
    return best * 1e3


if __name__ == "__main__":
    main()
