"""Runs a step graph on the shards of a batch, each in a thread of its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from surgery import runtime
from surgery.data import Arrays
from surgery.training.shards import SHARE, cores
from surgery.training.step import Step

__all__ = ["Shards"]


class Shards:
    """The sessions of a step graph that is divided, and the threads that run them.

    Each shard has a session of its own, for the sake of its memory: in one that all used, blocks would wander from the
    cache of one processor to that of another.

    Args:
        step: The graph of a shard.
        providers: Execution providers.
    """

    def __init__(self, step: Step, providers: list[str]) -> None:
        self._step = step
        self._outputs = [str(v.name) for v in step.model.graph.outputs]
        threads = max(1, cores() // step.shards)
        self._sessions = [
            runtime.session(step.model, providers, threads=threads, plan=False) for _ in range(step.shards)
        ]
        self._inputs = [i.name for i in self._sessions[0].get_inputs()]
        self._threads = ThreadPoolExecutor(step.shards - 1, thread_name_prefix="shard")

    def run(
        self, values: Mapping[str, Any], examples: Arrays, targets: Arrays
    ) -> tuple[list[float], list[dict[str, Any]]]:
        """Runs the graph on one batch.

        Args:
            values: The `OrtValue` of every parameter, by name.
            examples: The network's input; of several, by name.
            targets: The targets; of several outputs, by the output's name.

        Returns:
            What the step measures, of the whole batch; and of each shard that there were examples for, the `OrtValue`
            of its gradients, by the parameter's name.
        """
        step = self._step
        arrays = step.arrays(examples, targets)
        count = len(arrays[step.batch[0]])
        bounds = np.linspace(0, count, min(step.shards, count) + 1).astype(int)
        shares = np.diff(bounds) / count
        parts = [
            {name: np.ascontiguousarray(array[start:end]) for name, array in arrays.items()}
            for start, end in itertools.pairwise(bounds)
        ]
        for part, share in zip(parts, shares, strict=True):
            part[SHARE] = np.array(share, np.float32)
        others = [self._threads.submit(self._run, number, values, parts[number]) for number in range(1, len(parts))]
        try:
            results = [self._run(0, values, parts[0])]
        finally:  # nobody changes the weights while another thread reads them
            wait(others)
        results += [other.result() for other in others]
        measured = [[float(value.numpy()) for value in result[: len(step.measures)]] for result in results]
        gradients = [dict(zip(self._outputs, result, strict=True)) for result in results]
        return (
            np.average(measured, axis=0, weights=shares).tolist(),
            [{name: found[output] for name, output in step.gradients.items()} for found in gradients],
        )

    def _run(self, number: int, values: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> list[Any]:
        binding = self._sessions[number].io_binding()
        for name in self._inputs:
            if name in part:
                binding.bind_cpu_input(name, part[name])
            else:
                binding.bind_ortvalue_input(name, values[name])
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._sessions[number].run_with_iobinding(binding)
        return list(binding.get_outputs())
