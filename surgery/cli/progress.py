"""How long work goes on: a live bar on a terminal, a line for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from surgery.cli.app import say
from surgery.training.callbacks import Callback, Plan
from surgery.training.history import Record

__all__ = ["DecodeProgress", "EpochLines", "describe"]


def _bar(*columns: str) -> Progress:
    return Progress(
        *(TextColumn(c) for c in columns[:1]),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(c) for c in columns[1:]),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def describe(record: Record) -> str:
    """An epoch's record in words."""
    return f"{_figures(record)}  {record['seconds']:.1f} s"


def _figures(record: Record) -> str:
    names = {"learning_rate": "rate"}
    return "  ".join(
        f"{names.get(key, key)} {value:.4g}"
        for key, value in record.items()
        if key not in ("epoch", "seconds") and isinstance(value, float)
    )


class EpochLines(Callback):
    """Prints a line for each epoch, and shows the steps of the present one as a bar.

    Args:
        quiet: Print and show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = _bar("training", "{task.fields[figures]}")
        self._frozen: Progress | None = None

    def on_frozen(self, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._frozen is None:
            self._frozen = _bar("frozen layers")
            self._frozen.add_task("frozen", total=total)
            self._frozen.start()
        self._frozen.update(self._frozen.task_ids[0], completed=done)
        if done == total:
            self._frozen.stop()
            self._frozen = None

    def on_train_begin(self, plan: Plan) -> None:
        self._epochs, self._plan = plan.epochs, plan
        losses = ", ".join(plan.losses).replace("_", " ")
        say(
            f"training {plan.parameters:,} parameters on {plan.examples:,} examples"
            + (f", watching {plan.validation:,}" if plan.validation else "")
            + f": {plan.epochs} epoch{'s'[: plan.epochs != 1]} of {plan.steps} step{'s'[: plan.steps != 1]}, {losses}, "
            f"on {plan.device}",
            self._quiet,
        )
        self._task = self._bar.add_task("training", total=plan.epochs * plan.steps, figures="")
        if not self._quiet:
            self._bar.start()

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        if not self._bar.disable:
            done = (epoch - 1) * self._plan.steps + step  # of a training that goes on, too
            self._bar.update(self._task, completed=done, figures=_figures(self._plan.so_far()))

    def on_note(self, note: str) -> None:
        if not self._quiet:
            self._print(note)

    def on_epoch_end(self, record: Record) -> None:
        if not self._quiet:
            width = len(str(self._epochs))
            self._print(f"epoch {record['epoch']:>{width}}/{self._epochs}  {describe(record)}")

    def _print(self, line: str) -> None:
        if sys.stdout.isatty() and sys.stderr.isatty():
            self._bar.print(line)  # above the bar
        else:
            say(line)

    def on_train_end(self) -> None:
        self._bar.stop()


class DecodeProgress:
    """A bar while images are read: ``with DecodeProgress(quiet) as progress: open_data(…, progress=progress)``.

    Args:
        quiet: Show nothing.
        what: What is done, where that is something else.
    """

    def __init__(self, quiet: bool, what: str = "reading images") -> None:
        self._quiet = quiet
        self._bar = _bar(what)

    def __enter__(self) -> Callable[[int, int], None]:
        task = self._bar.add_task("reading", total=None)

        def progress(done: int, total: int) -> None:
            if done == 1 and not self._quiet:
                self._bar.start()
            self._bar.update(task, completed=done, total=total)

        return progress

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
