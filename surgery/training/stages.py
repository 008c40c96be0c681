"""From a phase's settings to what it is run with: its layers, its step graph, the frozen part's results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Dataset
from surgery.layers import find_output
from surgery.training.callbacks import Callback
from surgery.training.checkpoint import State
from surgery.training.forward import trainable_parameters
from surgery.training.frozen import Features, Prefix, Uncached, features
from surgery.training.loop import Stage
from surgery.training.metrics import check_metrics, kind_of, rehearse
from surgery.training.phases import Phase, restrict
from surgery.training.prefix import Split, split
from surgery.training.runner import Evaluation, Training
from surgery.training.settings import TrainSettings
from surgery.training.shards import cores
from surgery.training.step import Step, Term, evaluation_step, training_step
from surgery.training.targets import fit

__all__ = ["Stages", "with_weights"]


def with_weights(model: ir.Model, weights: Mapping[str, np.ndarray]) -> ir.Model:
    """A copy of `model` with other weights."""
    model = model.clone()
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


class Stages:
    """Makes the stages of a training; what cannot be trained in any of its phases is told at once.

    Args:
        model: The model.
        settings: How to train.
        objective: What is minimized.
        providers: Execution providers.
        data: The examples.
        held: The validation data.
        callbacks: What to tell how far the frozen part is computed.

    Attributes:
        data: The examples, their targets as the steps take them.
        terms: What is minimized, output by output.
    """

    def __init__(
        self,
        model: ir.Model,
        settings: TrainSettings,
        objective: Any,
        providers: list[str],
        data: Dataset,
        held: Dataset | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._callbacks = callbacks
        self._model, self._settings, self._objective, self._providers = model, settings, objective, providers
        self._phases = settings.phases or [Phase(epochs=settings.epochs)]
        self._found: dict[str, Features | str] = {}  # by what they are of
        steps = [self._step(self._network(number), State()) for number in range(len(self._phases))]
        self.terms: list[Term] = steps[0].terms
        check_metrics(settings.metrics, [kind_of(term.loss, term.units) for term in self.terms])
        self.data = fit(data, steps[0])
        self._held = None if held is None else fit(held, steps[0])
        if self._held is not None:
            of = self._held.targets
            for term in self.terms:
                rehearse(settings.metrics, term.loss, term.units, of[term.output] if isinstance(of, dict) else of)

    def __call__(self, number: int, state: State) -> Stage:
        """Makes the stage of phase `number`, counted from 0, that goes on from `state`."""
        phase = self._phases[number]
        rate = phase.rate(self._settings.initial_rate)
        settings = self._settings.model_copy(update={"epochs": phase.epochs, "learning_rate": rate, "phases": None})
        network = with_weights(self._network(number), state.weights)
        parts, kept, notes = self._divide(network)
        trained, watched = (parts.rest if parts is not None and kept[i] is not None else network for i in (0, 1))
        _count_anew(state, number, trained)
        step = self._step(trained, state)
        carried = {n: a for n, a in {**state.weights, **state.states}.items() if _fits(step, n, a)}
        training = Training(dataclasses.replace(step, initial=step.initial | carried), self._providers)
        held = self._held if kept[1] is None else kept[1].data
        watch = None
        if held is not None:
            graph = evaluation_step(
                watched,
                loss=self._objective,
                output=settings.output,
                changing=True,
                predictions=bool(settings.metrics),
            )
            watch = Evaluation(graph, self._providers, training)
        if len(self._phases) > 1:
            notes = [
                f"phase {number + 1} of {len(self._phases)}: {phase.epochs} epoch{'s' if phase.epochs > 1 else ''}, "
                f"{step.size:,} parameters, learning rate {rate:g}",
                *notes,
            ]
        before = sum(p.epochs for p in self._phases[:number])
        return Stage(settings, before, training, self.data if kept[0] is None else kept[0].data, watch, held, notes)

    def _network(self, number: int) -> ir.Model:
        """The model with the marks of a phase."""
        selector = self._phases[number].train
        return self._model if selector is None else restrict(self._model, selector)

    def _step(self, network: ir.Model, state: State) -> Step:
        settings = self._settings
        return training_step(
            network,
            settings.links(),
            loss=self._objective,
            output=settings.output,
            fused=runtime.has_training_kernels(),
            recompute=settings.recompute,
            seed=settings.seed,
            runs=state.runs,
            counters=state.counters,
            accumulate=settings.accumulate > 1,
            momentum=settings.cycles_momentum,
            average=settings.ema,
            batch_size=settings.batch_size,
            threads=1 if self._providers[0].startswith("CUDA") else cores(),
        )

    def _divide(self, network: ir.Model) -> tuple[Split | None, list[Features | None], list[str]]:
        """Cuts the frozen part off, where that is of use for the examples or the validation data.

        Returns:
            The parts; what the frozen one makes of the examples and of the validation data; what to tell about it.
        """
        if self._settings.cache is None:
            return None, [None, None], []
        outputs = list(self._objective) if isinstance(self._objective, dict) else [self._settings.output]
        parts = split(network, {str(find_output(network, name).name) for name in outputs})
        if parts is None:
            return None, [None, None], []
        if isinstance(parts, str):
            return None, [None, None], [f"frozen part: computed in each epoch, as {parts}"]
        prefix = Prefix(parts, self._providers, self._tell)
        keys = [f"{prefix.digest if len(self._phases) > 1 else ''} {which}" for which in ("data", "held")]
        self._found = {key: self._found[key] for key in keys if key in self._found}  # others are of an earlier phase
        for key, data in zip(keys, (self.data, self._held), strict=True):
            if key not in self._found and data is not None:
                try:
                    self._found[key] = features(prefix, data, self._settings.cache)
                except Uncached as error:
                    self._found[key] = str(error)
        found = [self._found.get(key) for key in keys]
        return parts, [f if isinstance(f, Features) else None for f in found], _told(parts, found)

    def _tell(self, done: int, total: int) -> None:
        for callback in self._callbacks:
            callback.on_frozen(done, total)


def _told(parts: Split, found: Sequence[Features | str | None]) -> list[str]:
    """What to tell about the frozen part, in a line."""
    kept = [f for f in found if isinstance(f, Features)]
    where = f"frozen part: {parts.operators} operators up to {', '.join(parts.cut)}"
    if not kept:
        return [f"{where}, computed in each epoch, as {found[0]}"]
    count, size = sum(len(f.data) for f in kept), sum(f.size for f in kept) / 10**6
    places = " and ".join(dict.fromkeys(f.place for f in kept))
    aside = f"; of the examples to train on in each epoch, as {found[0]}" if isinstance(found[0], str) else ""
    aside += f"; of the validation data in each epoch, as {found[1]}" if isinstance(found[1], str) else ""
    aside += f"; {parts.end}" if parts.end else ""
    return [f"{where}, computed once for {count:,} examples: {size:,.1f} MB {places}{aside}"]


def _fits(step: Step, name: str, array: np.ndarray) -> bool:
    return name in step.initial and step.initial[name].shape == array.shape


def _count_anew(state: State, number: int, network: ir.Model) -> None:
    """Notes in `state` that phase `number` begins, and gives parameters that come new a count of their own."""
    if number == state.phase:
        return
    names = [str(p.name) for p in trainable_parameters(network)]
    if state.phase >= 0:
        counters = {n: state.counters.get(n, "step") if n in state.trained else f"step/{number}" for n in names}
        state.counters = {n: counter for n, counter in counters.items() if counter != "step"}
    state.phase, state.trained = number, names
