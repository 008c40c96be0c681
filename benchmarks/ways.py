"""The ways of training that are compared; each is imported, then builds its step, in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.work import LEARNING_RATE, MOMENTUM, NETS, Build, Run, Task, load_batch

__all__ = ["FOLDER", "WAYS", "Way"]

FOLDER = Path(__file__).parent.parent / "out" / "peers"  # where peers are installed that are in no extra


def _surgery() -> Build:
    from surgery import load, runtime
    from surgery.passes.freeze import Freeze, Unfreeze
    from surgery.training.optimizers import Sgd, chain
    from surgery.training.runner import Training
    from surgery.training.shards import cores
    from surgery.training.step import training_step

    providers = runtime.providers("cpu")
    fused = runtime.has_training_kernels()

    def build(task: Task) -> Run:
        model = load(task.model)
        if task.case == "head":
            Freeze(layers="all")(model)
            Unfreeze(layers="head")(model)
        step = training_step(
            model,
            chain(Sgd(momentum=MOMENTUM)),
            loss="cross_entropy",
            fused=fused,
            batch_size=NETS[task.net].batch,
            threads=cores(),
        )
        training = Training(step, providers)
        examples, targets = load_batch(task)
        return Run(runtime.describe(), lambda: training.run(examples, targets, LEARNING_RATE)[0])

    return build


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
        examples, targets = (torch.from_numpy(array) for array in load_batch(task))

        def step() -> float:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(examples), targets)
            loss.backward()
            optimizer.step()
            return loss.item()

        return Run(f"PyTorch {torch.__version__}", step)

    return build


def _peer(name: str) -> Callable[[], Build]:
    def load() -> Build:
        sys.path.append(str(FOLDER))
        return getattr(importlib.import_module("benchmarks.peers"), name)()

    return load


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        title: Its name in tables.
        load: Imports all that it needs and returns what builds a step.
        stock: Whether it runs on the stock runtime.
        packages: What is installed for it beside the project's own environment.
    """

    title: str
    load: Callable[[], Build]
    stock: bool = False
    packages: tuple[str, ...] = ()


WAYS = {
    "pytorch": Way("PyTorch eager", _pytorch),
    "training": Way("ours, training build", _surgery),
    "stock": Way("ours, stock", _surgery, stock=True),
    "compile": Way("PyTorch compiled", lambda: _pytorch(compiled=True)),
    "on_device": Way("on-device API", _peer("on_device")),
    "onnx_ad": Way("onnx-ad", _peer("onnx_ad"), stock=True, packages=("onnx-ad==0.3.0",)),
    "onnxsim": Way("onnxsim", _peer("onnxsim"), stock=True, packages=("onnxsim==0.8.1",)),
}
