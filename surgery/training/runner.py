"""Runs step graphs through I/O binding: two sets of buffers that swap, so that no weight is ever copied."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from surgery import runtime
from surgery.data import Arrays
from surgery.training.parallel import Shards
from surgery.training.shards import gradient_input
from surgery.training.step import Step

__all__ = ["Evaluation", "Training"]


def _bind_batch(binding: Any, step: Step, examples: Arrays, targets: Arrays) -> None:
    for name, array in step.arrays(examples, targets).items():
        binding.bind_cpu_input(name, array)


class _Graph:
    """A step graph's session, and two sets of buffers, which swap, for what it carries.

    Args:
        step: The graph.
        initial: The first values.
        providers: Execution providers.
        device: Where the buffers are.
        shared: Buffers whose next value is written over them, which another graph has as well.
        spin: As `runtime.session` takes it.
    """

    def __init__(
        self,
        step: Step,
        initial: Mapping[str, np.ndarray],
        providers: list[str],
        device: str,
        shared: dict[str, Any],
        spin: bool = True,
    ) -> None:
        self._carried = step.carried
        self.session = runtime.session(step.model, providers, plan=False, spin=spin)
        ort_value = runtime.load_runtime().OrtValue
        own = [name for name in step.carried if name not in shared]
        first, second = (
            {name: ort_value.ortvalue_from_numpy(np.array(initial[name], order="C"), device) for name in names}
            for names in (own, set(own) - step.overwritable)
        )
        self._sets = [first | shared, first | second | shared]
        self.scalars = [ort_value.ortvalue_from_numpy(np.zeros((), np.float32), "cpu") for _ in step.measures]
        self._turn = 0
        self._bindings = [self.bind(), self.bind(1)]

    def bind(self, later: int = 0) -> Any:
        """A binding for the next run, or the one after it, that reads and writes everything carried."""
        source, target = self._sets[self._turn ^ later], self._sets[self._turn ^ later ^ 1]
        binding = self.session.io_binding()
        for output, value in zip(self.session.get_outputs()[: len(self.scalars)], self.scalars, strict=True):
            binding.bind_ortvalue_output(output.name, value)
        for name, output in self._carried.items():
            binding.bind_ortvalue_input(name, source[name])
            binding.bind_ortvalue_output(output, target[name])
        return binding

    @property
    def binding(self) -> Any:
        """What the next run reads and writes."""
        return self._bindings[self._turn]

    def run(self, binding: Any = None) -> None:
        """Runs the graph once; what it carries is undefined afterwards if that fails."""
        self.session.run_with_iobinding(binding or self.binding)
        self._turn ^= 1

    @property
    def values(self) -> dict[str, Any]:
        """The current `OrtValue` of everything carried, by name."""
        return self._sets[self._turn]


class Training:
    """Drives a training step graph; holds the parameters and the optimizer's state on the device.

    Args:
        step: From `training_step`.
        providers: Execution providers, from `runtime.providers`.
    """

    def __init__(self, step: Step, providers: list[str]) -> None:
        initial = step.initial
        self.step_graph = step = dataclasses.replace(step, initial={})  # as large as the model, and not needed again
        self.device = "cuda" if providers[0].startswith("CUDA") else "cpu"
        ort_value = runtime.load_runtime().OrtValue
        update, shared = step.update, {}
        if update is not None:  # the sums of gradients, which both graphs carry
            for name in step.carried.keys() & update.carried.keys():
                shared[name] = ort_value.ortvalue_from_numpy(np.array(initial[name], order="C"), self.device)
        self._shards: Shards | None = None
        if update is not None and step.shards > 1:
            self._shards = Shards(step, providers)
            self._update = self._graph = _Graph(update, initial, providers, self.device, {}, spin=False)
            return
        self._graph = _Graph(step, initial, providers, self.device, shared)
        self._update = _Graph(update, initial, providers, self.device, shared) if update is not None else self._graph

    def run(
        self,
        examples: Arrays,
        targets: Arrays,
        learning_rate: float,
        *,
        momentum: float | None = None,
        update: bool = True,
    ) -> tuple[float, ...]:
        """Trains on one batch.

        Args:
            examples: The network's input; of several, by name.
            targets: The targets; of several outputs, by the output's name.
            learning_rate: The learning rate.
            momentum: The momentum, where the step takes one.
            update: Where gradients are accumulated, whether to update the parameters by them after this batch.

        Returns:
            What the step measures (``step.measures``), before the update; the loss first.
        """
        if self._shards is not None:
            return self._run_shards(self._shards, examples, targets, learning_rate, momentum)
        binding = self._graph.binding
        _bind_batch(binding, self.step_graph, examples, targets)
        if self._update is not self._graph:
            for name in self._borrowed:
                binding.bind_ortvalue_input(name, self._update.values[name])
            self._graph.run()
            if update:
                self._bind_rates(self._update.binding, learning_rate, momentum)
                self._update.run()
        else:
            self._bind_rates(binding, learning_rate, momentum)
            self._graph.run()
        return tuple(float(value.numpy()) for value in self._graph.scalars)

    def _run_shards(
        self, shards: Shards, examples: Arrays, targets: Arrays, learning_rate: float, momentum: float | None
    ) -> tuple[float, ...]:
        step = self.step_graph
        measures, gradients = shards.run(self.values, examples, targets)
        binding = self._update.bind()  # anew, for the gradients to be gone after the update
        for shard in range(step.shards):
            for name in step.gradients:
                gradient = gradients[shard] if shard < len(gradients) else self._zeros
                binding.bind_ortvalue_input(gradient_input(name, shard), gradient[name])
        self._bind_rates(binding, learning_rate, momentum)
        self._update.run(binding)
        return tuple(measures)

    @functools.cached_property
    def _zeros(self) -> dict[str, Any]:
        """The gradients of a shard for which a small batch has no example."""
        array = runtime.load_runtime().OrtValue.ortvalue_from_numpy
        values = self._update.values
        return {name: array(np.zeros(values[name].shape(), np.float32)) for name in self.step_graph.gradients}

    @functools.cached_property
    def _borrowed(self) -> list[str]:
        """What the gradients' graph reads and only the other one changes: the parameters."""
        read = {i.name for i in self._graph.session.get_inputs()} - self.step_graph.carried.keys()
        return [name for name in self._update.values if name in read]

    @staticmethod
    def _bind_rates(binding: Any, learning_rate: float, momentum: float | None) -> None:
        binding.bind_cpu_input("learning_rate", np.array(learning_rate, np.float32))
        if momentum is not None:
            binding.bind_cpu_input("momentum", np.array(momentum, np.float32))

    @property
    def values(self) -> dict[str, Any]:
        """The current `OrtValue` of every parameter and state, by name."""
        return self._graph.values if self._update is self._graph else self._graph.values | self._update.values

    @property
    def results(self) -> dict[str, Any]:
        """The current `OrtValue` of every weight as the trained model has it: averaged, where there is an average."""
        values, averages = self.values, self.step_graph.averages
        return {name: values[averages.get(name, name)] for name in self.step_graph.weights}

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of `results`: of parameters and running statistics, by name."""
        return {name: np.array(value.numpy()) for name, value in self.results.items()}


class Evaluation:
    """Drives an evaluation graph, on the present weights of a `Training` where its `changing` weights are inputs."""

    def __init__(self, step: Step, providers: list[str], training: Training | None = None) -> None:
        self.step_graph = step
        self.session = runtime.session(step.model, providers)
        self._training = training

    def run(self, examples: Arrays, targets: Arrays) -> tuple[float, ...]:
        """Returns what the step measures on one batch; the loss first."""
        return self.run_all(examples, targets)[0]

    def run_all(self, examples: Arrays, targets: Arrays) -> tuple[tuple[float, ...], list[np.ndarray]]:
        """Returns what the step measures on one batch, the loss first, and what else it computes."""
        binding = self.session.io_binding()
        if self._training is not None:
            for name, value in self._training.results.items():
                binding.bind_ortvalue_input(name, value)
        _bind_batch(binding, self.step_graph, examples, targets)
        for output in self.session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(binding)
        outputs, count = binding.copy_outputs_to_cpu(), len(self.step_graph.measures)
        return tuple(float(value) for value in outputs[:count]), outputs[count:]
