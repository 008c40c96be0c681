"""The training loop: phases of epochs of steps, validation after each epoch, the best weights kept, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from surgery.data import Dataset
from surgery.training.callbacks import Callback, Plan
from surgery.training.checkpoint import Checkpoints, State
from surgery.training.history import Record
from surgery.training.measure import measure
from surgery.training.rates import Rates
from surgery.training.runner import Evaluation, Training
from surgery.training.schedules import ReduceOnPlateau
from surgery.training.settings import TrainSettings
from surgery.training.targets import count

__all__ = ["Ending", "Loop", "Stage"]

Ending = Literal["finished", "stopped", "interrupted", "diverged"]


class _Diverged(Exception):
    """A loss is not a finite number."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one phase is run with.

    Attributes:
        settings: How to train, its epochs and learning rate being the phase's.
        before: How many epochs the phases before it have.
        training: What runs its steps.
        data: The examples, in the order and form that `training` takes.
        watch: What measures the validation data, where there are such.
        held: The validation data, in the form that `watch` takes.
        notes: What is worth telling, a line each.
    """

    settings: TrainSettings
    before: int
    training: Training
    data: Dataset
    watch: Evaluation | None
    held: Dataset | None
    notes: list[str]


class Loop:
    """One training.

    Args:
        settings: How to train.
        stages: Makes the stage of a phase, counted from 0, given what has been trained so far.
        data: The examples, to look for the fault in where a loss is no number.
        checkpoints: Where to write checkpoints.
        state: What to go on from, where a training was interrupted.
        callbacks: What to tell how it goes.
    """

    stage: Stage  # of the present phase

    def __init__(
        self,
        settings: TrainSettings,
        stages: Callable[[int, State], Stage],
        data: Dataset,
        checkpoints: Checkpoints | None,
        state: State | None,
        callbacks: Iterable[Callback],
    ) -> None:
        self.settings, self.data, self.callbacks = settings, data, list(callbacks)
        self._stages, self._checkpoints = stages, checkpoints
        self.state = state or State()
        if self.state.ending == "interrupted":
            self.state.ending = ""
        epochs = [phase.epochs for phase in settings.phases] if settings.phases else [settings.epochs]
        self._ends = np.cumsum(epochs).tolist()
        self._steps = -(-len(data) // settings.batch_size)
        self._phase = -1
        self._so_far: dict[str, float] = {}
        self._enter(min(self.state.epoch, settings.epochs))

    def run(self) -> tuple[Ending, str]:
        """Trains; returns how it ended and what to tell about it."""
        state = self.state
        stopped = state.ending == "stopped"  # before it was gone on with
        ending: tuple[Ending, str] = (
            ("stopped", f"stopped after epoch {state.epoch - 1}") if stopped else ("finished", "")
        )
        plan, schedule = self._plan(), self.settings.schedule
        if isinstance(schedule, ReduceOnPlateau) and schedule.monitor:
            plan.check_figure(schedule.monitor, "reduce_on_plateau")
        try:
            for callback in self.callbacks:
                callback.on_train_begin(plan)
            self._tell([*self._where(), *([] if state.ending else self.stage.notes)])
            while state.epoch <= self.settings.epochs and not state.ending:
                if self._enter(state.epoch):
                    self._tell(self.stage.notes)
                epoch = state.epoch
                if reason := self._finish_epoch(self._one_epoch(epoch)):
                    state.ending, ending = "stopped", ("stopped", f"stopped after epoch {epoch}: {reason}")
                elif state.epoch > self.settings.epochs:
                    state.ending = "finished"
                self._save()
        except KeyboardInterrupt:
            last = f"interrupted in epoch {state.epoch}; the weights are those of epoch {state.best_epoch}"
            ending = "interrupted", last
        except _Diverged as error:
            last = f"{error}; the weights are those of epoch {state.best_epoch}, lower the learning rate"
            ending = "diverged", last
        finally:
            for callback in self.callbacks:
                callback.on_train_end()
        if self._checkpoints is not None and ending[0] in ("interrupted", "diverged"):
            self._checkpoints.end(ending[0])
        return ending

    def _plan(self) -> Plan:
        step, training = self.stage.training.step_graph, self.stage.training
        return Plan(
            self.settings.epochs,
            self._steps,
            len(self.data),
            len(self.stage.held or ()),
            step.size,
            [term.loss.name for term in step.terms],
            step.measures[1:],
            training.device,
            watched=self.settings.metrics,
            past=tuple(self.state.history),
            weights=lambda: self.stage.training.weights(),
            so_far=lambda: self._so_far,
        )

    def _where(self) -> list[str]:
        """Where an interrupted training goes on."""
        state = self.state
        if not state.runs:
            return []
        if state.ending:
            return [f"the training had {state.ending} before: nothing is left to do"]
        return [f"going on in epoch {state.epoch}" + (f", after step {state.step}" if state.step else "")]

    def _tell(self, notes: Iterable[str]) -> None:
        for note in notes:
            for callback in self.callbacks:
                callback.on_note(note)

    def _enter(self, epoch: int) -> bool:
        """Makes the stage that `epoch` is in; returns whether it is another one than before."""
        phase = sum(epoch > end for end in self._ends)
        if phase == self._phase:
            return False
        if self._phase >= 0:
            self._note_values()
            del self.stage  # its memory is the next one's
        self._phase = phase
        goes_on = phase == self.state.phase
        self.stage = self._stages(phase, self.state)
        self._rates = Rates(self.stage.settings, self._steps)
        if goes_on:
            self._rates.load_state(self.state.rates)
        if not self.state.best:
            self.state.best = self.stage.training.weights()
        return True

    def _note_values(self) -> None:
        """Brings the state's arrays up to date."""
        training, state = self.stage.training, self.state
        values = {name: np.array(value.numpy()) for name, value in training.values.items()}
        weights = training.step_graph.weights
        state.weights = state.weights | {name: values[name] for name in weights}
        state.states = {name: array for name, array in values.items() if name not in weights}

    def _save(self) -> None:
        if self._checkpoints is not None:
            self._note_values()
            self.state.rates = self._rates.state()
            self._checkpoints.save(self.state)

    def _one_epoch(self, epoch: int) -> Record:
        state, stage = self.state, self.stage
        start = time.perf_counter() - state.seconds
        names = stage.training.step_graph.measures
        total = np.array(state.totals) if state.step else np.zeros(len(names))
        batches = stage.data.batches(self.settings.batch_size, seed=self.settings.seed, epoch=epoch, first=state.step)
        rate = 0.0
        for examples, targets in batches:
            batch = (epoch - 1 - stage.before) * self._steps + state.step
            rate, momentum = self._rates.at(batch)
            updates = self._rates.updates(batch)
            measured = stage.training.run(examples, targets, rate, momentum=momentum, update=updates)
            state.step, state.runs = state.step + 1, state.runs + 1
            if not math.isfinite(measured[0]):
                self.data.check_finite()
                raise _Diverged(f"the loss became {measured[0]} at step {state.step} of epoch {epoch}")
            total += np.array(measured) * count(targets)
            seen = min(state.step * self.settings.batch_size, len(self.data))
            self._so_far = dict(zip(names, (total / seen).tolist(), strict=True)) | {"learning_rate": rate}
            for callback in self.callbacks:
                callback.on_step_end(epoch, state.step, measured[0])
            if self._checkpoints is not None and state.step < self._steps and self._checkpoints.due(state.step):
                state.totals, state.seconds = total.tolist(), time.perf_counter() - start
                self._save()
        record: dict[str, Any] = {"epoch": epoch}
        record |= dict(zip(names, (total / len(self.data)).tolist(), strict=True))
        if stage.watch is not None and stage.held is not None:
            scores = measure(stage.watch, stage.held, self.settings.batch_size, self.settings.metrics)
            if not math.isfinite(scores.loss):
                raise _Diverged(f"the validation loss became {scores.loss} after epoch {epoch}")
            record |= {f"val_{name}": value for name, value in scores.measures.items()}
        return record | {"learning_rate": rate, "seconds": round(time.perf_counter() - start, 4)}

    def _finish_epoch(self, record: Record) -> str | None:
        """Keeps the weights where they are the best; returns why a callback wants to end the training."""
        state = self.state
        state.history.append(record)
        self._rates.epoch_ended(record)
        watched = record.get("val_loss") if self.settings.keep == "best" else None
        if watched is None or watched < state.best_loss:
            weights = self.stage.training.weights()
            if not all(np.isfinite(array).all() for array in weights.values()):
                raise _Diverged(f"a weight became infinite in epoch {record['epoch']}")
            state.best, state.best_epoch = state.weights | weights, record["epoch"]
            state.best_loss = watched or 0.0
        state.epoch, state.step, state.totals, state.seconds = record["epoch"] + 1, 0, [], 0.0
        reasons = [callback.on_epoch_end(record) for callback in self.callbacks]
        return next((reason for reason in reasons if reason), None)
