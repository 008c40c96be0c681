"""Schedules give PyTorch's learning rates, step by step and epoch by epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as pytorch

import surgery
from surgery.errors import SurgeryError
from surgery.training.callbacks import Callback
from surgery.training.history import Record
from surgery.training.rates import Rates
from surgery.training.settings import TrainSettings, changed
from tests.nets import Residual, batches, residual

Make = Callable[[torch.optim.Optimizer, int], pytorch.LRScheduler]
EPOCHS, STEPS = 12, 7
# PyTorch counts in changes of the rate; `unit` is how many of them an epoch has.
SCHEDULES: dict[str, tuple[Any, Make]] = {
    "constant": ("constant", lambda o, unit: pytorch.ConstantLR(o, 1.0)),
    "step": (
        {"name": "step", "every": 3, "gamma": 0.5},
        lambda o, unit: pytorch.StepLR(o, 3 * unit, 0.5),
    ),
    "multi_step": (
        {"name": "multi_step", "milestones": [2, 5, 9], "gamma": 0.3},
        lambda o, unit: pytorch.MultiStepLR(o, [2 * unit, 5 * unit, 9 * unit], 0.3),
    ),
    "exponential": (
        {"name": "exponential", "gamma": 0.8},
        lambda o, unit: pytorch.ExponentialLR(o, 0.8 ** (1 / unit)),
    ),
    "inverse_time": (
        {"name": "inverse_time", "gamma": 0.3, "power": 0.75},
        lambda o, unit: pytorch.LambdaLR(o, lambda n: (1 + 0.3 * n / unit) ** -0.75),
    ),
    "polynomial": (
        {"name": "polynomial", "power": 2},
        lambda o, unit: pytorch.PolynomialLR(o, EPOCHS * unit, 2.0),
    ),
    "cosine": ("cosine", lambda o, unit: pytorch.CosineAnnealingLR(o, EPOCHS * unit)),
    "cosine, minimum": (
        {"name": "cosine", "minimum": 0.1},
        lambda o, unit: pytorch.CosineAnnealingLR(o, EPOCHS * unit, eta_min=0.05),
    ),
    "restarts": (
        {"name": "cosine", "restart_every": 3},
        lambda o, unit: pytorch.CosineAnnealingWarmRestarts(o, 3 * unit),
    ),
    "restarts, longer and longer": (
        {"name": "cosine", "restart_every": 1, "t_mult": 2, "minimum": 0.2},
        lambda o, unit: pytorch.CosineAnnealingWarmRestarts(o, unit, 2, eta_min=0.1),
    ),
    "one_cycle": ("one_cycle", lambda o, unit: pytorch.OneCycleLR(o, 0.5, EPOCHS * unit)),
    "one_cycle, linear": (
        {"name": "one_cycle", "anneal": "linear", "pct_start": 0.4, "div_factor": 10, "final_div_factor": 100},
        lambda o, unit: pytorch.OneCycleLR(
            o, 0.5, EPOCHS * unit, pct_start=0.4, anneal_strategy="linear", div_factor=10, final_div_factor=100
        ),
    ),
    "warm-up": (
        {"name": "constant", "warmup": 3, "warmup_start": 0.1},
        lambda o, unit: pytorch.LinearLR(o, 0.1, 1.0, 3 * unit),
    ),
    "warm-up, then cosine": (
        {"name": "cosine", "warmup": 2, "warmup_start": 0.25},
        lambda o, unit: pytorch.SequentialLR(
            o,
            [pytorch.LinearLR(o, 0.25, 1.0, 2 * unit), pytorch.CosineAnnealingLR(o, (EPOCHS - 2) * unit)],
            [2 * unit],
        ),
    ),
}


@pytest.mark.parametrize("each", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_rates_are_pytorchs(name: str, each: str) -> None:
    schedule, make = SCHEDULES[name]
    schedule = {"name": schedule} if isinstance(schedule, str) else schedule
    settings = TrainSettings(epochs=EPOCHS, learning_rate=0.5, schedule={**schedule, "each": each})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5, momentum=0.9)
    scheduler = make(optimizer, STEPS if each == "step" else 1)
    for step in range(EPOCHS * STEPS):
        group = optimizer.param_groups[0]
        assert settings.rate(step, STEPS) == pytest.approx(group["lr"], rel=1e-6, abs=1e-12), step
        if settings.cycles_momentum:
            assert settings.momentum(step, STEPS) == pytest.approx(group["momentum"], rel=1e-6), step
        optimizer.step()
        if (each == "step" or step % STEPS == STEPS - 1) and step < EPOCHS * STEPS - 1:
            scheduler.step()


@pytest.mark.parametrize("total", [2, 3, 4, 5, 9, 10, 11])
@pytest.mark.parametrize("pct", [0.2, 0.3, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_short_cycles_are_pytorchs(total: int, pct: float) -> None:
    settings = TrainSettings(epochs=total, learning_rate=1.0, schedule={"name": "one_cycle", "pct_start": pct})  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0, momentum=0.9)
    try:
        scheduler = pytorch.OneCycleLR(optimizer, 1.0, total, pct_start=pct)
        for step in range(total):
            assert settings.rate(step, 1) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), step
            if step < total - 1:
                scheduler.step()
    except ZeroDivisionError:  # a rise of no step, which PyTorch does not take
        assert pct * total == pytest.approx(1)
        assert settings.rate(0, 1) > settings.rate(1, 1)


@given(
    schedule=st.one_of(
        st.fixed_dictionaries(
            {"name": st.just("cosine"), "restart_every": st.floats(1e-3, 20), "t_mult": st.floats(1, 3)}
        ),
        st.fixed_dictionaries({"name": st.just("sigmoid"), "middle": st.floats(0, 50), "gamma": st.floats(-1e3, 1e3)}),
        st.fixed_dictionaries({"name": st.just("one_cycle"), "pct_start": st.floats(0.01, 0.99)}),
        st.fixed_dictionaries({"name": st.just("polynomial"), "power": st.floats(0.1, 5)}),
        st.fixed_dictionaries({"name": st.just("step"), "every": st.floats(1e-3, 50)}),
    ),
    warmup=st.floats(0, 30),
    each=st.sampled_from(["step", "epoch"]),
    epochs=st.integers(1, 20),
    steps=st.integers(1, 9),
    accumulate=st.integers(1, 4),
)
def test_no_schedule_leaves_its_bounds(
    schedule: dict[str, Any], warmup: float, each: str, epochs: int, steps: int, accumulate: int
) -> None:
    how = schedule | {"warmup": warmup, "each": each}
    settings = TrainSettings(epochs=epochs, learning_rate=1.0, schedule=how, accumulate=accumulate)  # type: ignore[arg-type]
    for batch in range(epochs * steps):
        assert 0 <= settings.rate(batch, steps) <= 1 + 1e-9
        momentum = settings.momentum(batch, steps)
        assert momentum is None or 0.85 - 1e-9 <= momentum <= 0.95 + 1e-9


def test_the_rate_changes_with_updates_where_gradients_are_accumulated() -> None:
    """Seven batches in groups of three are three updates, which PyTorch's users step the scheduler after."""
    settings = TrainSettings(epochs=4, learning_rate=1.0, schedule="cosine", accumulate=3)  # type: ignore[arg-type]
    found = [settings.rate(batch, 7) for batch in range(28)]
    want = [0.5 * (1 + math.cos(math.pi * update / 12)) for update in range(12)]
    assert found == pytest.approx([want[3 * epoch + batch // 3] for epoch in range(4) for batch in range(7)])


def test_momentum_cycles_where_the_optimizer_has_one() -> None:
    def cycles(optimizer: Any, **more: Any) -> bool:
        return changed(
            TrainSettings(), {"optimizer": optimizer, "schedule": {"name": "one_cycle", **more}}
        ).cycles_momentum

    assert cycles("sgd")
    assert cycles("adamw")
    assert not cycles("sgd", cycle_momentum=False)
    assert not cycles("adagrad")
    with pytest.raises(SurgeryError, match="adagrad as it is set has no momentum"):
        cycles("adagrad", cycle_momentum=True)
    with pytest.raises(SurgeryError, match="t_mult needs restart_every"):
        changed(TrainSettings(), {"schedule": {"name": "cosine", "t_mult": 2}})


@pytest.mark.parametrize(
    "how",
    [
        {"patience": 2, "mode": "min"},
        {"patience": 0, "factor": 0.5, "cooldown": 2, "mode": "min"},
        {"patience": 1, "mode": "max", "threshold": 0.2},
        {"patience": 1, "mode": "max", "threshold": 0.1, "threshold_mode": "abs"},
        {"patience": 1, "mode": "min", "threshold": 0.05, "threshold_mode": "abs", "minimum": 0.02, "factor": 0.3},
    ],
)
def test_plateaus_are_pytorchs(how: dict[str, Any]) -> None:
    """On figures that improve, stall and jump; the state goes through JSON after each."""
    figures = np.random.default_rng(5).uniform(0.2, 1.0, 60) * np.linspace(1, 0.7, 60)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
    rest = {"min_lr": 0.5 * how["minimum"]} if "minimum" in how else {}
    scheduler = pytorch.ReduceLROnPlateau(
        optimizer, **{k: v for k, v in how.items() if k != "minimum"}, **rest, eps=0.0
    )
    schedule = {"name": "reduce_on_plateau", "monitor": "val_accuracy", **how}
    settings = TrainSettings(epochs=60, learning_rate=0.5, schedule=schedule)  # type: ignore[arg-type]
    rates = Rates(settings, 4)
    seen = set()
    for epoch, figure in enumerate(figures):
        assert rates.at(4 * epoch) == (pytest.approx(optimizer.param_groups[0]["lr"]), None)
        seen.add(optimizer.param_groups[0]["lr"])
        scheduler.step(figure)
        rates.epoch_ended({"epoch": epoch + 1, "val_accuracy": figure})
        fresh = Rates(settings, 4)
        fresh.load_state(json.loads(json.dumps(rates.state())))
        rates = fresh
    assert len(seen) > 2


@pytest.mark.parametrize(("figure", "rising"), [("val_accuracy", 1.0), ("val_loss", 0.1), ("mean_absolute_error", 0.1)])
def test_a_rising_score_is_no_plateau_and_a_rising_loss_is(figure: str, rising: float) -> None:
    """The rate went down while the accuracy rose, as its rising was taken for a loss's."""
    schedule = {"name": "reduce_on_plateau", "monitor": figure, "patience": 0}
    rates = Rates(TrainSettings(learning_rate=1.0, schedule=schedule), 1)  # type: ignore[arg-type]
    for value in (0.5, 0.6):
        rates.epoch_ended({"epoch": 1, figure: value})
    assert rates.at(0)[0] == pytest.approx(rising)


def test_what_is_watched_by_default_and_what_there_is_not() -> None:
    settings = TrainSettings(learning_rate=1.0, schedule={"name": "reduce_on_plateau", "patience": 0})  # type: ignore[arg-type]
    rates = Rates(settings, 1)
    records: list[Record] = [{"loss": 1.0, "val_loss": 1.0}, {"loss": 0.5, "val_loss": 1.0}]
    for record in records:
        rates.epoch_ended(record)
    assert rates.at(0)[0] == pytest.approx(0.1)
    other = TrainSettings(schedule={"name": "reduce_on_plateau", "monitor": "val_acuracy"})  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match=r"'val_acuracy'.*'val_accuracy'"):
        Rates(other, 1).epoch_ended({"epoch": 1, "loss": 1.0, "val_accuracy": 0.5})


@pytest.mark.training
def test_a_figure_that_there_is_not_is_told_before_the_first_step() -> None:
    class Steps(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            raise AssertionError

    ((examples, targets),) = batches(1, 16, (3, 8, 8), 4, 0)
    for monitor in ("val_loss", "acuracy"):  # nothing is watched
        schedule = {"name": "reduce_on_plateau", "monitor": monitor}
        with pytest.raises(SurgeryError, match=f"reduce_on_plateau: no figure is named '{monitor}'.*loss, accuracy"):
            surgery.train(residual(Residual()), (examples, targets), schedule=schedule, callbacks=[Steps()])


def test_a_training_slows_down_on_a_plateau_and_cycles() -> None:
    ((examples, targets),) = batches(1, 32, (3, 8, 8), 4)
    model = residual(Residual())
    how: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01}
    plateau = {"name": "reduce_on_plateau", "patience": 0, "threshold": 1e6, "threshold_mode": "abs"}
    history = surgery.train(model, (examples, targets), schedule=plateau, **how).history
    assert [r["learning_rate"] for r in history] == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    cycle = {"name": "one_cycle", "pct_start": 0.5}
    history = surgery.train(model, (examples, targets), schedule=cycle, **how).history
    assert history[1]["learning_rate"] > history[0]["learning_rate"]
    assert history[-1]["learning_rate"] == pytest.approx(0.01 / 25e4)
    assert history[-1]["loss"] < history[0]["loss"]
