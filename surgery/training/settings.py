"""What a recipe's `train:` says: how long, with which optimizer, at which learning rates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from surgery.data.augment import Augment
from surgery.data.dataset import Sampling
from surgery.errors import SurgeryError
from surgery.training.losses import Loss, Objective, loss_of
from surgery.training.metrics import check_metrics
from surgery.training.optimizers import Link, MovingAverage, Optimizer, Sgd, chain
from surgery.training.optimizers.kinds import OptimizerName, Regularization
from surgery.training.phases import Phase
from surgery.training.schedules import Constant, OneCycle, Schedule, ScheduleName
from surgery.validation import explain

__all__ = ["TrainSettings", "changed"]


def _by_name(value: Any) -> Any:
    """``adam`` as a short form of ``{name: adam}``."""
    return {"name": value} if isinstance(value, str) else value


LossName = Literal[
    "auto", "cross_entropy", "binary_cross_entropy", "mean_squared_error", "mean_absolute_error", "huber"
]


def _loss(value: Any) -> Any:
    try:
        return value if value == "auto" else loss_of(value)
    except SurgeryError as error:
        raise ValueError(str(error)) from error


class Patience(BaseModel):
    """When to stop early: see `surgery.training.callbacks.EarlyStopping`.

    Attributes:
        patience: For how many epochs the figure may fail to improve.
        min_delta: What it has to improve by to count as better.
        monitor: Which figure of the history; by default the validation loss, or the loss where nothing is watched.
    """

    model_config = ConfigDict(extra="forbid")

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0
    monitor: str | None = None


class CacheSettings(BaseModel):
    """Where what the frozen layers make of the examples is kept.

    Attributes:
        memory: The most that is kept in memory, in gigabytes.
        disk: The most that is kept in a memory-mapped file instead, in gigabytes; what is larger is not kept.
        float16: Keep numbers of half the size, and half the digits.
        folder: Keep it in a file in this folder, for later trainings too.
    """

    model_config = ConfigDict(extra="forbid")

    memory: NonNegativeFloat = 1.0
    disk: NonNegativeFloat = 8.0
    float16: bool = False
    folder: str | None = None


def _patience(value: Any) -> Any:
    """A number as a short form of ``{patience: …}``."""
    return {"patience": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _decay(value: Any) -> Any:
    """A number as a short form of ``{decay: …}``."""
    return {"decay": value} if isinstance(value, float | int) and not isinstance(value, bool) else value


def _cache(value: Any) -> Any:
    """``true`` as a short form of what is there by default, ``false`` of none."""
    return (CacheSettings() if value else None) if isinstance(value, bool) else value


def _metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        check_metrics(names)
    except SurgeryError as error:
        raise ValueError(str(error)) from error
    return names


class TrainSettings(BaseModel):
    """How to train; its fields are the keys of a recipe's `train:` section.

    Attributes:
        epochs: How often all examples are seen.
        batch_size: Examples in a step; the last batch of an epoch may be smaller.
        optimizer: A name, or a name with settings: ``adam``, ``{name: sgd, momentum: 0.9, nesterov: true}``.
        learning_rate: At the start; by default the optimizer's usual one.
        schedule: How the learning rate goes on: a name, or a name with settings: ``{name: step, every: 10}``.
        weight_decay: How much to regularize; each parameter's multiplier applies. By default the optimizer's usual: 0,
            of adamw 0.01.
        regularization: How: ``l2`` adds the gradient of ½·weight_decay·‖w‖², ``l1`` that of weight_decay·‖w‖₁;
            ``decoupled`` takes learning rate · weight_decay of each weight away, past the optimizer. By default
            ``decoupled`` with adamw and lion, else ``l2``.
        clip_value: The largest size of the gradients' numbers.
        clip_norm: The largest norm of all gradients together (PyTorch's ``clip_grad_norm_``, Keras'
            ``global_clipnorm``).
        clip_each_norm: The largest norm of each parameter's gradient (Keras' ``clipnorm``).
        accumulate: Update the parameters after so many batches, by the mean gradient over their examples, and at the
            end of an epoch by what there is.
        ema: Keep an exponential moving average of the weights, and watch and keep that: ``0.999``, or
            ``{decay: 0.999, warmup: true}``.
        loss: A name, or a name with settings: ``{name: cross_entropy, label_smoothing: 0.1}``; ``auto`` goes by the
            network's last activation, and by the targets where it has none.
        losses: For several outputs at once, the loss of each:
            ``{class: cross_entropy, box: {name: huber, weight: 2}}``.
        output: The output to train; needed where the model has several and `losses` names none.
        validation: The share of the examples that is split off to watch, where the data has no validation part.
        early_stopping: Stop when the validation loss has not improved for so many epochs: ``5``, or
            ``{patience: 5, min_delta: 0.001, monitor: val_accuracy}``.
        augment: Random changes to the training examples: ``{resized_crop: true, horizontal_flip: true, mixup: 0.2}``.
        sampling: Which examples an epoch has: ``all``, each once; ``balanced``, as many, drawn so that all classes come
            equally often.
        metrics: What to measure on the validation data beside the loss and its own metric: ``[f1, auc, top_5]``.
        keep: Which weights to keep: of the epoch with the lowest validation loss, or of the last.
        recompute: Activation checkpointing: compute activations again in the backward pass instead of keeping them;
            deep networks then train in a fraction of the memory, for one more forward pass of time.
        phases: Parts of the training that train other layers or at other rates:
            ``[{epochs: 3, train: head}, {epochs: 5, learning_rate: ×0.1}]``; `epochs` is then the sum of theirs.
        cache: Compute what the frozen layers make of the examples once and keep it; ``false`` computes it each time;
            ``{memory: 2, disk: 20, float16: true, folder: cache}`` says where and how much.
        reestimate_batchnorm: Before training, measure the means and variances of all BatchNormalizations on the
            examples to train on.
        seed: Of the split, the order of the examples and dropout.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=True)

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    optimizer: Annotated[Optimizer, BeforeValidator(_by_name, json_schema_input_type=OptimizerName | Optimizer)] = (
        Field(default_factory=Sgd)
    )
    learning_rate: PositiveFloat | None = None
    schedule: Annotated[
        Schedule,
        BeforeValidator(_by_name, json_schema_input_type=ScheduleName | Schedule),
    ] = Field(default_factory=Constant)
    weight_decay: NonNegativeFloat | None = None
    regularization: Regularization | None = None
    clip_value: PositiveFloat | None = None
    clip_norm: PositiveFloat | None = None
    clip_each_norm: PositiveFloat | None = None
    accumulate: PositiveInt = 1
    ema: Annotated[
        MovingAverage | None, BeforeValidator(_decay, json_schema_input_type=float | MovingAverage | None)
    ] = None
    loss: Annotated[
        Literal["auto"] | Loss,
        BeforeValidator(_loss, json_schema_input_type=LossName | Loss),
    ] = "auto"
    losses: dict[str, Annotated[Loss, BeforeValidator(_loss, json_schema_input_type=LossName | Loss)]] | None = None
    output: str | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stopping: Annotated[
        Patience | None, BeforeValidator(_patience, json_schema_input_type=PositiveInt | Patience | None)
    ] = None
    augment: Augment | None = None
    sampling: Sampling = "all"
    metrics: Annotated[tuple[str, ...], AfterValidator(_metrics)] = ()
    keep: Literal["best", "last"] = "best"
    recompute: bool = False
    phases: Annotated[list[Phase], Field(min_length=1)] | None = None
    cache: Annotated[CacheSettings | None, BeforeValidator(_cache, json_schema_input_type=bool | CacheSettings)] = (
        Field(default_factory=CacheSettings)
    )
    reestimate_batchnorm: bool = False
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_objective(self) -> TrainSettings:
        if self.losses is not None and (self.loss != "auto" or self.output is not None):
            raise ValueError("`losses` says what each output costs; leave `loss` and `output` out")
        if self.losses is not None and not self.losses:
            raise ValueError("`losses` names no output")
        return self

    @model_validator(mode="after")
    def _one_clip(self) -> TrainSettings:
        given = [n for n in ("clip_value", "clip_norm", "clip_each_norm") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; clip gradients in one way")
        if isinstance(self.schedule, OneCycle) and self.schedule.cycle_momentum and not self.optimizer.has_momentum:
            raise ValueError(f"{self.optimizer.name} as it is set has no momentum that cycle_momentum could change")
        return self

    @model_validator(mode="after")
    def _something_to_regularize(self) -> TrainSettings:
        if self.regularization and self.weight_decay is None and not self.optimizer.default_decay:
            raise ValueError(f"regularization: {self.regularization} says how weight_decay works; say how much that is")
        return self

    @model_validator(mode="after")
    def _epochs_of_phases(self) -> TrainSettings:
        if self.phases is not None:
            total = sum(phase.epochs for phase in self.phases)
            if "epochs" in self.model_fields_set and self.epochs != total:
                raise ValueError(f"the phases have {total} epochs in all, not {self.epochs}; leave `epochs` out")
            self.__dict__["epochs"] = total  # as assigning it would begin this check anew
        return self

    @property
    def objective(self) -> Objective:
        """What is minimized, as `surgery.training.step.training_step` takes it."""
        return self.loss if self.losses is None else self.losses

    @property
    def initial_rate(self) -> float:
        """The learning rate of the first step, the schedule aside."""
        return self.optimizer.default_rate if self.learning_rate is None else self.learning_rate

    @property
    def cycles_momentum(self) -> bool:
        """Whether the momentum changes from step to step."""
        schedule = self.schedule
        return isinstance(schedule, OneCycle) and self.optimizer.has_momentum and schedule.cycle_momentum is not False

    def rate(self, batch: int, batches: int) -> float:
        """The learning rate of batch `batch`, counted from 0, where an epoch has so many `batches`."""
        return self.initial_rate * self.schedule.at(*self._update(batch, batches), self.epochs)

    def momentum(self, batch: int, batches: int) -> float | None:
        """The momentum of a batch, None where it is the optimizer's own."""
        return self.schedule.momentum_at(*self._update(batch, batches), self.epochs) if self.cycles_momentum else None

    def _update(self, batch: int, batches: int) -> tuple[int, int]:
        """The number of the update that a batch is for, and updates in an epoch."""
        updates = -(-batches // self.accumulate)
        epoch, place = divmod(batch, batches)
        return epoch * updates + place // self.accumulate, updates

    def links(self) -> list[Link]:
        """The optimizer, as `surgery.training.step.training_step` takes it."""
        return chain(
            self.optimizer,
            self.optimizer.default_decay if self.weight_decay is None else self.weight_decay,
            regularization=self.regularization,
            clip_value=self.clip_value,
            clip_each_norm=self.clip_each_norm,
            clip_norm=self.clip_norm,
        )


def changed(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    """Returns `settings` with some fields changed.

    Raises:
        SurgeryError: A field does not exist or does not take the value.
    """
    before = settings.model_dump()
    fields = {**{name: before[name] for name in settings.model_fields_set}, **changes}
    try:
        return TrainSettings(**fields)
    except ValidationError as error:
        place, message = explain(error, fields, TrainSettings.model_json_schema())
        raise SurgeryError(": ".join([".".join(map(str, ("train", *place))), message])) from error
