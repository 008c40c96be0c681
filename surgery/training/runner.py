"""Runs step graphs through I/O binding: two sets of buffers that swap, so that no weight is ever copied."""

from __future__ import annotations

from typing import Any

import numpy as np

from surgery import runtime
from surgery.training.step import Step

__all__ = ["Evaluation", "Training"]


class Training:
    """Drives a training step graph; holds the parameters and the optimizer's state on the device.

    Args:
        step: From `training_step`.
        providers: Execution providers, from `runtime.providers`.
    """

    def __init__(self, step: Step, providers: list[str]) -> None:
        self.step_graph = step
        self.session = runtime.session(step.model, providers)
        self.device = "cuda" if providers[0].startswith("CUDA") else "cpu"
        ort_value = runtime.load_runtime().OrtValue
        self._sets = [
            {name: ort_value.ortvalue_from_numpy(np.array(array, order="C"), self.device) for name, array in initial}
            for initial in (step.initial.items(), step.initial.items())
        ]
        self._scalars = [ort_value.ortvalue_from_numpy(np.zeros((), np.float32), "cpu") for _ in range(2)]
        self._turn = 0
        self._bindings = [self._bind(*self._sets), self._bind(*reversed(self._sets))]

    def _bind(self, source: dict[str, Any], target: dict[str, Any]) -> Any:
        binding = self.session.io_binding()
        for output, value in zip(self.session.get_outputs()[:2], self._scalars, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        for name, output in self.step_graph.carried.items():
            binding.bind_ortvalue_input(name, source[name])
            binding.bind_ortvalue_output(output, target[name])
        return binding

    def run(self, examples: np.ndarray, targets: np.ndarray, learning_rate: float) -> tuple[float, float]:
        """Trains on one batch.

        Returns:
            The batch's loss and metric, before the update.
        """
        binding = self._bindings[self._turn]
        binding.bind_cpu_input(self.step_graph.batch, examples)
        binding.bind_cpu_input(self.step_graph.target, targets)
        binding.bind_cpu_input("learning_rate", np.array(learning_rate, np.float32))
        self.session.run_with_iobinding(binding)
        self._turn ^= 1
        loss, metric = (float(value.numpy()) for value in self._scalars)
        return loss, metric

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

    def run(self, examples: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """Returns the loss and metric of one batch."""
        binding = self.session.io_binding()
        if self._training is not None:
            for name in self.step_graph.weights:
                binding.bind_ortvalue_input(name, self._training.values[name])
        binding.bind_cpu_input(self.step_graph.batch, examples)
        binding.bind_cpu_input(self.step_graph.target, targets)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(binding)
        loss, metric = (float(value) for value in binding.copy_outputs_to_cpu())
        return loss, metric
