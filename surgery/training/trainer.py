"""The training loop: epochs of steps, validation after each, the best weights kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.data import Arrays, Dataset, Source, as_dataset, as_part, from_arrays
from surgery.errors import SurgeryError
from surgery.layers import find_output
from surgery.marks import set_labels, set_preprocessing
from surgery.training.callbacks import Callback, EarlyStopping, Plan
from surgery.training.history import History, Record
from surgery.training.losses import CrossEntropy, activation_loss, loss_of
from surgery.training.optimizers import chain
from surgery.training.runner import Evaluation, Training
from surgery.training.settings import TrainSettings, changed
from surgery.training.step import Objective, Step, Term, evaluation_step, training_step
from surgery.training.verdict import Verdict, verdict

__all__ = ["Scores", "Trained", "evaluate", "predict", "train"]

Ending = Literal["finished", "stopped", "interrupted", "diverged"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        model: The trained model, for inference, its marks kept.
        history: A record for each finished epoch.
        kept_epoch: The epoch whose weights the model has; 0 for those it came with.
        ending: ``finished``; ``stopped`` (by a callback, as early stopping); ``interrupted`` (Ctrl-C); or ``diverged``
            (a loss that is not a number).
        message: Where and why it ended early; empty when it finished.
    """

    model: ir.Model
    history: History
    kept_epoch: int
    ending: Ending = "finished"
    message: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether it converges, overfits, diverges or should go on, and why."""
        return verdict(self.history, self.message if self.ending == "diverged" else "")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `evaluate` returns.

    Attributes:
        measures: The loss and the metric, means over the examples, by name; of several outputs, each one's.
        examples: How many there were.
    """

    measures: dict[str, float]
    examples: int

    @property
    def loss(self) -> float:
        """The loss that training minimizes."""
        return self.measures["loss"]

    @property
    def metric(self) -> str:
        """The name of the first metric, as ``accuracy``."""
        return next(name for name in self.measures if not name.endswith("loss"))

    @property
    def value(self) -> float:
        """The first metric."""
        return self.measures[self.metric]


class _Diverged(Exception):
    """A loss is not a finite number."""


def train(
    model: ir.Model,
    data: Source,
    settings: TrainSettings | None = None,
    *,
    validation: Source | float | None = None,
    device: runtime.Device = "auto",
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> Trained:
    """Fine-tunes `model`, which is left as it is.

    Args:
        model: A model with marks.
        data: What to train on: a path (`.npz` or a folder of images), ``(examples, targets)`` or a `Dataset`.
        settings: How to train.
        validation: What to watch, or the share of `data` to split off for it; by default the validation part that
            `data` has, or the share that the settings say.
        device: Where to run; ``auto`` takes CUDA where it starts.
        callbacks: What to tell how it goes.
        **changes: Fields of `TrainSettings` that differ from `settings`, such as ``epochs=20``.

    Returns:
        The trained model, with the class names that the data have, the preprocessing that was
        assumed for raw images where `model` says nothing of it, and its history. Ctrl-C and a loss that is not a
        number end the training early; the model then has the best weights so far.

    Raises:
        SurgeryError: The data do not fit the model, nothing is trainable, or an operator has no gradient.
    """
    if isinstance(validation, float):
        changes["validation"], validation = validation, None
    settings = changed(settings or TrainSettings(), changes)
    providers = runtime.providers(device)
    examples, held = as_dataset(data, model)
    objective = _objective(model, settings.objective, settings.output, examples.targets)
    step = training_step(
        model,
        chain(settings.optimizer, settings.weight_decay),
        loss=objective,
        output=settings.output,
        fused=runtime.has_training_kernels(),
        recompute=settings.recompute,
        seed=settings.seed,
    )
    if validation is not None:
        held, _ = as_dataset(validation, model)
    if held is None and settings.validation:
        examples, held = examples.split(settings.validation, settings.seed)
        if not len(held) or not len(examples):
            raise SurgeryError(
                f"a validation share of {settings.validation:g} leaves {len(examples)} examples to train on and "
                f"{len(held)} to watch; change it or bring more data"
            )
    examples = _fit(examples, step)
    training = Training(step, providers)
    watch = None
    if held is not None:
        held = _fit(held, step)
        graph = evaluation_step(model, loss=objective, output=settings.output, changing=True)
        watch = Evaluation(graph, providers, training)
    if settings.early_stopping is not None:
        callbacks = [*callbacks, EarlyStopping(**settings.early_stopping.model_dump())]
    run = _Run(settings, examples, held, training, watch, callbacks)
    ending, message = run.all_epochs()
    trained = _with_weights(model, run.best)
    for term in step.terms if examples.labels is not None else []:
        if term.units[:1] == (len(examples.labels or ()),):
            set_labels(trained, term.output, list(examples.labels or ()))
    for name, how in examples.assumed.items():
        set_preprocessing(trained, name, how)
    return Trained(trained, run.history, run.best_epoch, ending, message)


class _Run:
    """One training: the loop and the weights that are worth keeping."""

    def __init__(
        self,
        settings: TrainSettings,
        data: Dataset,
        validation: Dataset | None,
        training: Training,
        watch: Evaluation | None,
        callbacks: Iterable[Callback],
    ) -> None:
        self.settings, self.data, self.validation = settings, data, validation
        self.training, self.watch, self.callbacks = training, watch, list(callbacks)
        self.history: History = []
        self.best = training.weights()
        self.best_epoch = 0
        self._best_loss = math.inf
        self._steps = -(-len(data) // settings.batch_size)
        self._shuffle = np.random.default_rng(settings.seed)

    def all_epochs(self) -> tuple[Ending, str]:
        """Trains; returns how it ended and what to tell about it."""
        step = self.training.step_graph
        plan = Plan(
            self.settings.epochs,
            self._steps,
            len(self.data),
            len(self.validation or ()),
            sum(step.initial[name].size for name in step.weights),
            [term.loss.name for term in step.terms],
            step.measures[1:],
            self.training.device,
            weights=self.training.weights,
        )
        epoch = 0
        ending: tuple[Ending, str] = "finished", ""
        try:
            for callback in self.callbacks:
                callback.on_train_begin(plan)
            for epoch in range(1, self.settings.epochs + 1):
                if reason := self._finish_epoch(self._one_epoch(epoch)):
                    ending = "stopped", f"stopped after epoch {epoch}: {reason}"
                    break
        except KeyboardInterrupt:
            ending = "interrupted", f"interrupted in epoch {epoch}; the weights are those of epoch {self.best_epoch}"
        except _Diverged as error:
            ending = "diverged", f"{error}; the weights are those of epoch {self.best_epoch}, lower the learning rate"
        finally:
            for callback in self.callbacks:
                callback.on_train_end()
        return ending

    def _one_epoch(self, epoch: int) -> Record:
        start = time.perf_counter()
        names = self.training.step_graph.measures
        total = np.zeros(len(names))
        rate = 0.0
        batches = self.data.batches(self.settings.batch_size, self._shuffle)
        for index, (examples, targets) in enumerate(batches):
            rate = self.settings.rate((epoch - 1) * self._steps + index, self._steps)
            measured = self.training.run(examples, targets, rate)
            if not math.isfinite(measured[0]):
                self.data.check_finite()
                raise _Diverged(f"the loss became {measured[0]} at step {index + 1} of epoch {epoch}")
            total += np.array(measured) * _count(targets)
            for callback in self.callbacks:
                callback.on_step_end(epoch, index + 1, measured[0])
        record: dict[str, Any] = {"epoch": epoch}
        record |= dict(zip(names, (total / len(self.data)).tolist(), strict=True))
        if self.watch is not None and self.validation is not None:
            scores = _measure(self.watch, self.validation, self.settings.batch_size)
            if not math.isfinite(scores.loss):
                raise _Diverged(f"the validation loss became {scores.loss} after epoch {epoch}")
            record |= {f"val_{name}": value for name, value in scores.measures.items()}
        record |= {"learning_rate": rate, "seconds": round(time.perf_counter() - start, 4)}
        return record

    def _finish_epoch(self, record: Record) -> str | None:
        """Keeps the weights where they are the best; returns why a callback wants to end the training."""
        self.history.append(record)
        watched = record.get("val_loss") if self.settings.keep == "best" else None
        if watched is None or watched < self._best_loss:
            weights = self.training.weights()
            if not all(np.isfinite(array).all() for array in weights.values()):
                raise _Diverged(f"a weight became infinite in epoch {record['epoch']}")
            self.best, self.best_epoch, self._best_loss = weights, record["epoch"], watched or 0.0
        reasons = [callback.on_epoch_end(record) for callback in self.callbacks]
        return next((reason for reason in reasons if reason), None)


def _with_weights(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
    """A copy of `model` with other weights."""
    model = model.clone()
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def _objective(model: ir.Model, objective: Any, output: str | None, targets: Arrays) -> Any:
    """The loss with what only the data can say: class numbers want cross-entropy, probabilities soft labels."""
    if isinstance(objective, Mapping) and "name" not in objective:
        if not isinstance(targets, dict) or set(targets) != set(objective):
            have = ", ".join(targets) if isinstance(targets, dict) else "a single array"
            raise SurgeryError(f"losses are given for the outputs {', '.join(objective)}, targets for {have}")
        return {name: _for_targets(model, loss, name, targets[name]) for name, loss in objective.items()}
    if isinstance(targets, dict):
        return {name: _for_targets(model, objective, name, array) for name, array in targets.items()}
    return _for_targets(model, objective, output, targets)


def _for_targets(model: ir.Model, loss: Any, output: str | None, targets: np.ndarray) -> Any:
    classes = np.issubdtype(targets.dtype, np.integer)
    if loss == "auto":
        end = find_output(model, output)
        loss = activation_loss(end) or ("cross_entropy" if classes else "mean_squared_error")
    chosen = loss_of(loss)
    if isinstance(chosen, CrossEntropy) and not classes and targets.ndim > 1:
        return chosen.model_copy(update={"soft_labels": True})
    return chosen


def _fit(data: Dataset, step: Step) -> Dataset:
    """`data` with its targets as `step` takes them.

    Raises:
        SurgeryError: They do not fit: class numbers out of range, other dimensions, numbers that are not finite.
    """
    if not isinstance(data.targets, dict):
        return dataclasses.replace(data, targets=_fit_term(data.targets, step.terms[0]))
    return dataclasses.replace(data, targets={t.output: _fit_term(data.targets[t.output], t) for t in step.terms})


def _fit_term(targets: np.ndarray, term: Term) -> np.ndarray:
    loss, units = term.loss, term.units
    name = f"output {term.output!r} of {'×'.join('?' if u is None else str(u) for u in units) or '1'} units"
    if isinstance(loss, CrossEntropy) and not loss.soft_labels:
        if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != len(units):
            raise SurgeryError(
                f"cross_entropy needs class numbers, one for each prediction of the {name}; the targets are "
                f"{targets.dtype} {list(targets.shape)}"
            )
        counted = targets if loss.ignore_index is None else targets[targets != loss.ignore_index]
        low, high = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
        classes = units[0] or 0
        if low < 0 or high >= classes:
            raise SurgeryError(
                f"the labels go from {low} to {high}, but the {name} takes 0 to {classes - 1}; number them from 0, or "
                f"give the network a head for them (replace_head: {{units: {high + 1}}})"
            )
        return targets
    targets = targets.astype(np.float32)
    if not np.isfinite(targets).all():
        raise SurgeryError("some targets are not finite numbers; leave those examples out")
    known = [u for u in units if u is not None]
    if len(known) == len(units) and targets.size == len(targets) * math.prod(known):
        return targets.reshape(len(targets), *known)
    if targets.ndim != len(units) + 1:
        raise SurgeryError(f"targets of shape {list(targets.shape[1:])} do not fit the {name}")
    return targets


def _count(targets: Arrays) -> int:
    """How many examples there are in a batch."""
    return len(next(iter(targets.values())) if isinstance(targets, dict) else targets)


def _measure(evaluation: Evaluation, data: Dataset, batch_size: int) -> Scores:
    names = evaluation.step_graph.measures
    total = np.zeros(len(names))
    for examples, targets in data.batches(batch_size):
        total += np.array(evaluation.run(examples, targets)) * _count(targets)
    if not math.isfinite(total[0]):
        data.check_finite()
    return Scores(dict(zip(names, (total / len(data)).tolist(), strict=True)), len(data))


def evaluate(
    model: ir.Model,
    data: Source,
    *,
    loss: Objective = "auto",
    output: str | None = None,
    batch_size: int = 64,
    device: runtime.Device = "auto",
    split: str | None = None,
) -> Scores:
    """Measures `model` on `data`, as it infers; of a path, on the part that `split` says, as `open_part` takes it.

    Raises:
        SurgeryError: The data do not fit the model, or have no such part, or are not finite numbers.
    """
    examples = as_part(data, model, split)
    step = evaluation_step(model, loss=_objective(model, loss, output, examples.targets), output=output)
    return _measure(Evaluation(step, runtime.providers(device)), _fit(examples, step), batch_size)


def predict(model: ir.Model, examples: Arrays, *, batch_size: int = 64, device: runtime.Device = "auto") -> np.ndarray:
    """Returns the first output of `model` for each of `examples`, as `surgery.data.from_arrays` takes them."""
    count = _count(examples)
    data = from_arrays(examples, np.zeros(count, np.int64), model)
    session = runtime.session(model, runtime.providers(device))
    outputs, batch = [str(model.graph.outputs[0].name)], str(model.graph.inputs[0].name)
    feeds = (x if isinstance(x, dict) else {batch: x} for x, _ in data.batches(batch_size))
    return np.concatenate([session.run(outputs, feed)[0] for feed in feeds])
