"""Runs step graphs through I/O binding: two sets of buffers that swap, so that no weight is ever copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery import runtime
from surgery.data import Arrays
from surgery.training.step import Step

__all__ = ["Evaluation", "Training"]


def _bind_batch(binding: Any, step: Step, examples: Arrays, targets: Arrays) -> None:
    for name in step.batch:
        binding.bind_cpu_input(name, examples[name] if isinstance(examples, Mapping) else examples)
    for term in step.terms:
        binding.bind_cpu_input(term.target, targets[term.output] if isinstance(targets, Mapping) else targets)


def _overwritable(step: Step) -> set[str]:
    """Which carried inputs may have their next value written over them, as an optimizer's state may.

    All that reads them is what the operator that computes the next value waits for.
    """
    graph = step.model.graph
    inputs, outputs = ({str(v.name): v for v in values} for values in (graph.inputs, graph.outputs))
    found = set()
    for name, output in step.carried.items():
        producer = outputs[output].producer()
        waited = {v.producer() for v in producer.inputs if v is not None} if producer is not None else set()
        if all(node in waited for node in inputs[name].consumers()):
            found.add(name)
    return found


class Training:
    """Drives a training step graph; holds the parameters and the optimizer's state on the device.

    Args:
        step: From `training_step`.
        providers: Execution providers, from `runtime.providers`.
    """

    def __init__(self, step: Step, providers: list[str]) -> None:
        self.step_graph = step
        self.session = runtime.session(step.model, providers, plan=False)
        self.device = "cuda" if providers[0].startswith("CUDA") else "cpu"
        ort_value = runtime.load_runtime().OrtValue
        first, second = (
            {
                name: ort_value.ortvalue_from_numpy(np.array(step.initial[name], order="C"), self.device)
                for name in names
            }
            for names in (step.initial, step.initial.keys() - _overwritable(step))
        )
        self._sets = [first, first | second]
        self._scalars = [ort_value.ortvalue_from_numpy(np.zeros((), np.float32), "cpu") for _ in step.measures]
        self._turn = 0
        self._bindings = [self._bind(*self._sets), self._bind(*reversed(self._sets))]

    def _bind(self, source: dict[str, Any], target: dict[str, Any]) -> Any:
        binding = self.session.io_binding()
        for output, value in zip(self.session.get_outputs()[: len(self._scalars)], self._scalars, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        for name, output in self.step_graph.carried.items():
            binding.bind_ortvalue_input(name, source[name])
            binding.bind_ortvalue_output(output, target[name])
        return binding

    def run(self, examples: Arrays, targets: Arrays, learning_rate: float) -> tuple[float, ...]:
        """Trains on one batch.

        Args:
            examples: The network's input; of several, by name.
            targets: The targets; of several outputs, by the output's name.
            learning_rate: The learning rate.

        Returns:
            What the step measures (``step.measures``), before the update; the loss first.
        """
        binding = self._bindings[self._turn]
        _bind_batch(binding, self.step_graph, examples, targets)
        binding.bind_cpu_input("learning_rate", np.array(learning_rate, np.float32))
        self.session.run_with_iobinding(binding)
        self._turn ^= 1
        return tuple(float(value.numpy()) for value in self._scalars)

    @property
    def values(self) -> dict[str, Any]:
        """The current `OrtValue` of every parameter and state, by name."""
        return self._sets[self._turn]

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the current parameters and running statistics, by name."""
        return {name: np.array(self.values[name].numpy()) for name in self.step_graph.weights}


class Evaluation:
    """Drives an evaluation graph, on the present weights of a `Training` where its `changing` weights are inputs."""

    def __init__(self, step: Step, providers: list[str], training: Training | None = None) -> None:
        self.step_graph = step
        self.session = runtime.session(step.model, providers)
        self._training = training

    def run(self, examples: Arrays, targets: Arrays) -> tuple[float, ...]:
        """Returns what the step measures on one batch; the loss first."""
        binding = self.session.io_binding()
        if self._training is not None:
            for name in self.step_graph.weights:
                binding.bind_ortvalue_input(name, self._training.values[name])
        _bind_batch(binding, self.step_graph, examples, targets)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(binding)
        return tuple(float(value) for value in binding.copy_outputs_to_cpu())
