"""Time of the update alone, every optimizer on the weights of a network, beside PyTorch's `step`.

.venv/bin/python -m benchmarks.optimizers [lenet]
PYTHONPATH=.stock .venv/bin/python -m benchmarks.optimizers
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.nets import build
from surgery import runtime
from surgery.emit import Emitter
from surgery.io import IR_VERSION
from surgery.training.optimizers import write_updates
from surgery.training.settings import TrainSettings

TWINS: dict[str, Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer] | None] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "lion": None,
}
TURNS = 30


def updater(name: str, weights: list[np.ndarray], gradients: list[np.ndarray]) -> tuple[Callable[[], None], float]:
    """What runs one update, and how many operators it has for each weight."""
    parameters, given = (
        [ir.val(f"{stem}{i}", ir.DataType.FLOAT, w.shape) for i, w in enumerate(weights)] for stem in "wg"
    )
    graph = ir.Graph([*parameters, *given], [], nodes=[], opset_imports={"": 21}, name="update")
    op = Emitter(graph)
    links = TrainSettings(optimizer=name).links()  # type: ignore[arg-type]
    updates = write_updates(op, parameters, dict(zip(parameters, given, strict=True)), links)
    before = {v.name: v for v in graph.inputs}
    for key, value in updates.after.items():
        value.shape, value.type = before[key].shape, before[key].type
        graph.outputs.append(value)
    session = runtime.session(ir.Model(graph, ir_version=IR_VERSION), ["CPUExecutionProvider"], plan=False)
    ort_value = runtime.load_runtime().OrtValue
    binding = session.io_binding()
    first = {f"w{i}": w for i, w in enumerate(weights)} | updates.initial
    held = []  # which a binding does not
    for key, value in updates.after.items():
        held += [ort_value.ortvalue_from_numpy(first[key].copy()) for _ in range(2)]
        binding.bind_ortvalue_input(key, held[-2])
        binding.bind_ortvalue_output(value.name, held[-1])
    for i, gradient in enumerate(gradients):
        binding.bind_cpu_input(f"g{i}", gradient)
    rate = np.array(0.01, np.float32)
    binding.bind_cpu_input("learning_rate", rate)

    def run(held: object = (held, rate)) -> None:
        session.run_with_iobinding(binding)

    return run, len(graph) / len(weights)


def stepper(make: Callable[..., torch.optim.Optimizer], net: torch.nn.Module) -> Callable[[], None]:
    """What runs one of PyTorch's updates."""
    optimizer = make(net.parameters())
    return lambda: optimizer.step()


def median(run: Callable[[], None]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(TURNS + 3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:])) * 1e3


def main() -> None:
    """Prints a table."""
    net = build(sys.argv[1] if len(sys.argv) > 1 else "resnet18")
    rng = np.random.default_rng(0)
    weights = [p.detach().numpy() for p in net.parameters()]
    gradients = [rng.normal(0, 0.01, w.shape).astype(np.float32) for w in weights]
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient)
    print(f"{len(weights)} parameters with {sum(w.size for w in weights):,} numbers, {runtime.describe()}\n")
    print("| optimizer | operators a parameter | ms | PyTorch's ms |\n| --- | ---: | ---: | ---: |")
    for name, make in TWINS.items():
        run, operators = updater(name, weights, gradients)
        theirs = f"{median(stepper(make, net)):.2f}" if make is not None else ""
        print(f"| {name} | {operators:.1f} | {median(run):.2f} | {theirs} |")


if __name__ == "__main__":
    main()
