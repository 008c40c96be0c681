"""The ways of training that are compared; each is imported, then builds its step, in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.work import LEARNING_RATE, MOMENTUM, NETS, Task

__all__ = ["WAYS", "Run", "Way"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that is ready: the software, what a step is, what it does not do."""

    runtime: str
    step: Callable[[], float]
    note: str = ""


Build = Callable[[Task], Run]


def _surgery() -> Build:
    from surgery import load, runtime
    from surgery.passes import Freeze, Unfreeze
    from surgery.training.optimizers import Sgd, chain
    from surgery.training.runner import Training
    from surgery.training.step import training_step

    providers = runtime.providers("cpu")
    fused = runtime.has_training_kernels()

    def build(task: Task) -> Run:
        model = load(task.model)
        if task.case == "head":
            Freeze(layers="all")(model)
            Unfreeze(layers="head")(model)
        step = training_step(model, chain(Sgd(momentum=MOMENTUM)), loss="cross_entropy", fused=fused)
        training = Training(step, providers)
        examples, targets = _batch(task)
        return Run(runtime.describe(), lambda: training.run(examples, targets, LEARNING_RATE)[0])

    return build


def _batch(task: Task) -> tuple[Any, Any]:
    import numpy as np

    examples, targets = np.load(Path(task.model).with_name(f"{task.net}.npz")).values()
    return examples, targets


def _pytorch(compiled: bool = False) -> Build:
    import torch

    from benchmarks import nets

    def build(task: Task) -> Run:
        net = nets.build(task.net, task.dropout)
        if task.case == "head":
            net.eval()
            for name, module in net.named_modules():
                module.train(isinstance(module, torch.nn.Dropout))
                module.requires_grad_(name == NETS[task.net].head)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], LEARNING_RATE, momentum=MOMENTUM)
        forward = torch.compile(net) if compiled else net
        examples, targets = (torch.from_numpy(array) for array in _batch(task))

        def step() -> float:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(examples), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        return Run(f"PyTorch {torch.__version__}", step)

    return build


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training: its name in tables; what imports all that it needs and returns what builds a step."""

    title: str
    load: Callable[[], Build]


WAYS = {
    "pytorch": Way("PyTorch eager", _pytorch),
    "training": Way("ours, training build", _surgery),
    "stock": Way("ours, stock", _surgery),
    "compile": Way("PyTorch compiled", lambda: _pytorch(compiled=True)),
}
