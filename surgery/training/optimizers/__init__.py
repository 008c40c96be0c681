"""Optimizers: chains of small transformations from a gradient to an update, written into the step graph.

As in optax: SGD, Adam and the rest are a few links each. A link gets the gradient, may keep state of the parameter's
shape, and returns what takes the gradient's place; what is behind the last link is subtracted, times the learning rate,
and the result projected onto the parameter's constraint.
"""

from __future__ import annotations

from surgery.training.optimizers.constraints import project
from surgery.training.optimizers.kinds import (
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    Optimizer,
    RmsProp,
    Sgd,
    chain,
)
from surgery.training.optimizers.updating import Link, MovingAverage, Updates, Updating, write_updates

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Link",
    "Lion",
    "MovingAverage",
    "NAdam",
    "Optimizer",
    "RmsProp",
    "Sgd",
    "Updates",
    "Updating",
    "chain",
    "project",
    "write_updates",
]
