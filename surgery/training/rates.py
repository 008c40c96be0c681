"""What each step trains with: its learning rate, its momentum, and whether it updates the parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from surgery.training.history import check_figure, lower_is_better
from surgery.training.schedules import ReduceOnPlateau
from surgery.training.settings import TrainSettings

__all__ = ["Rates"]


@dataclasses.dataclass
class _Plateau:
    """How a training that is to slow down on plateaus stands.

    Attributes:
        multiplier: What it has come down to.
        best: The best figure so far, None before the first.
        bad_epochs: Epochs since then.
        cooldown: Epochs that do not count any more.
    """

    multiplier: float = 1.0
    best: float | None = None
    bad_epochs: int = 0
    cooldown: int = 0

    def epoch_ended(self, schedule: ReduceOnPlateau, figure: float, lower: bool) -> None:
        """As PyTorch's ``ReduceLROnPlateau.step``; `lower` says whether a lower `figure` is better."""
        if self._better(schedule, figure, lower):
            self.best, self.bad_epochs = figure, 0
        else:
            self.bad_epochs += 1
        if self.cooldown:
            self.cooldown -= 1
            self.bad_epochs = 0
        if self.bad_epochs > schedule.patience:
            self.multiplier = max(self.multiplier * schedule.factor, schedule.minimum)
            self.bad_epochs, self.cooldown = 0, schedule.cooldown

    def _better(self, schedule: ReduceOnPlateau, figure: float, lower: bool) -> bool:
        if self.best is None:
            return not math.isnan(figure)
        sign = -1 if lower else 1
        bound = schedule.threshold * (self.best if schedule.threshold_mode == "rel" else 1)
        return sign * (figure - self.best - sign * bound) > 0


class Rates:
    """The rates of a training.

    Args:
        settings: How to train.
        batches: Batches in an epoch.
    """

    def __init__(self, settings: TrainSettings, batches: int) -> None:
        self._settings, self._batches = settings, batches
        self._plateau = _Plateau()

    def at(self, batch: int) -> tuple[float, float | None]:
        """The learning rate, and the momentum where that is not the optimizer's own, of a batch, counted from 0."""
        settings = self._settings
        rate = settings.rate(batch, self._batches) * self._plateau.multiplier
        return rate, settings.momentum(batch, self._batches)

    def updates(self, batch: int) -> bool:
        """Whether the parameters are updated after this batch: the last of its group or of its epoch."""
        place = batch % self._batches + 1
        return place == self._batches or place % self._settings.accumulate == 0

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Takes the record of an epoch into account.

        Raises:
            SurgeryError: It lacks the figure that the schedule watches.
        """
        schedule = self._settings.schedule
        if not isinstance(schedule, ReduceOnPlateau):
            return
        monitor = schedule.monitor or ("val_loss" if "val_loss" in record else "loss")
        check_figure(monitor, record, "reduce_on_plateau")
        lower = lower_is_better(monitor) if schedule.mode == "auto" else schedule.mode == "min"
        self._plateau.epoch_ended(schedule, float(record[monitor]), lower)

    def state(self) -> dict[str, Any]:
        """What later rates depend on besides the settings, as plain data."""
        return dataclasses.asdict(self._plateau)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._plateau = _Plateau(**state)
