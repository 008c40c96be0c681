"""Targets: which loss they ask for, and whether they fit the network's outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.data import Arrays, Dataset
from surgery.errors import SurgeryError
from surgery.layers import find_output
from surgery.training.losses import CrossEntropy, activation_loss, loss_of
from surgery.training.step import Step, Term

__all__ = ["count", "fit", "objective_of", "soft"]


def objective_of(model: ir.Model, objective: Any, output: str | None, targets: Arrays) -> Any:
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
    if isinstance(chosen, CrossEntropy):
        if chosen.class_weights == "balanced":
            chosen = chosen.balanced(targets, _classes(model, output))
        if not classes and targets.ndim > 1:
            return chosen.model_copy(update={"soft_labels": True})
    return chosen


def _classes(model: ir.Model, output: str | None) -> int:
    """The number of classes that an output has a unit for."""
    shape = find_output(model, output).shape
    units = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(units, int):
        raise SurgeryError(f"cross_entropy needs an output of shape [N, classes, …]; it has {shape}")
    return units


def soft(data: Dataset, model: ir.Model, objective: Any, output: str | None) -> Dataset:
    """`data` with class numbers as probabilities where the loss is cross-entropy, as mixing examples needs them.

    Args:
        data: Examples and targets.
        model: The model.
        objective: From `objective_of`.
        output: The output, where `objective` is a single loss.
    """
    if isinstance(objective, Mapping):
        names = {n: _classes(model, n) if isinstance(x, CrossEntropy) else None for n, x in objective.items()}
        return data.one_hot(names)
    return data.one_hot(_classes(model, output)) if isinstance(objective, CrossEntropy) else data


def fit(data: Dataset, step: Step) -> Dataset:
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
            head = f"give the network a head for them (replace_head: {{units: {high + 1}}})"
            if classes == 1:
                raise SurgeryError(
                    f"the labels go from {low} to {high}, but the {name} knows one class; {head}, or say what its "
                    "number is: `loss: binary_cross_entropy` for yes or no, `loss: mean_squared_error` for a quantity"
                )
            raise SurgeryError(
                f"the labels go from {low} to {high}, but the {name} takes 0 to {classes - 1}; number them from 0, or "
                f"{head}"
            )
        return targets
    targets = targets.astype(np.float32)
    if not np.isfinite(targets).all():
        raise SurgeryError("some targets are not finite numbers; leave those examples out")
    known = [u for u in units if u is not None]
    if len(known) == len(units) and targets.size == len(targets) * math.prod(known):
        return targets.reshape(len(targets), *known)
    if targets.ndim != len(units) + 1 or any(u not in (None, d) for u, d in zip(units, targets.shape[1:], strict=True)):
        raise SurgeryError(f"targets of shape {list(targets.shape[1:])} do not fit the {name}")
    return targets


def count(targets: Arrays) -> int:
    """How many examples there are in a batch."""
    return len(next(iter(targets.values())) if isinstance(targets, dict) else targets)
