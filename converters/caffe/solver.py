"""Caffe's solvers as the `train:` part of a recipe (caffe.proto, SolverParameter)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters.caffe.caffe_pb2 import NetParameter, SolverParameter
from converters.caffe.phases import DATA_LAYERS
from converters.caffe.read import parse_text
from converters.caffe.upgrade import upgrade
from surgery.errors import SurgeryError, nearest

__all__ = ["read_solver"]

# Caffe's words and ours. A schedule's times are in iterations here; `_in_epochs` turns them into epochs.
_OPTIMIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "SGD": ("sgd", {"momentum": "momentum"}),
    "Nesterov": ("sgd", {"momentum": "momentum"}),
    "AdaGrad": ("adagrad", {"delta": "epsilon"}),
    "RMSProp": ("rmsprop", {"rms_decay": "rho", "delta": "epsilon"}),
    "AdaDelta": ("adadelta", {"momentum": "rho", "delta": "epsilon"}),
    "Adam": ("adam", {"momentum": "beta1", "momentum2": "beta2", "delta": "epsilon"}),
}
_SCHEDULES: dict[str, tuple[str, dict[str, str]]] = {
    "fixed": ("constant", {}),
    "step": ("step", {"stepsize": "every", "gamma": "gamma"}),
    "multistep": ("multi_step", {"stepvalue": "milestones", "gamma": "gamma"}),
    "exp": ("exponential", {"gamma": "gamma"}),
    "inv": ("inverse_time", {"gamma": "gamma", "power": "power"}),
    "poly": ("polynomial", {"power": "power"}),
    "sigmoid": ("sigmoid", {"stepsize": "middle", "gamma": "gamma"}),
}
_OLD_TYPES = dict(enumerate(("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")))  # solver_type
_IN_EPOCHS: dict[tuple[str, str], Callable[[float, float], float]] = {  # value, iterations in an epoch
    ("step", "every"): lambda value, epoch: value / epoch,
    ("exponential", "gamma"): lambda value, epoch: value**epoch,
    ("inverse_time", "gamma"): lambda value, epoch: value * epoch,
    ("sigmoid", "middle"): lambda value, epoch: value / epoch,
    ("sigmoid", "gamma"): lambda value, epoch: value * epoch,
}


def read_solver(
    path: str | os.PathLike[str], *, examples: int | None = None, batch_size: int | None = None
) -> dict[str, Any]:
    """Reads a solver as the `train:` part of a recipe.

    What it gives: `optimizer`, `learning_rate`, `schedule`, `weight_decay`, `batch_size`, and where the solver has
    them `regularization` ("l1"), `clip_norm` (of all gradients together), `accumulate` (batches to an update) and
    `seed`. Caffe counts in iterations, updates that is; so does the result (`steps` in all) unless `examples` says how
    many iterations an epoch has: then it has `epochs`, and the schedule's times are in epochs. What Caffe logs, saves
    and tests while it trains is left out.

    Args:
        path: The solver's ``.prototxt``.
        examples: How many examples an epoch has.
        batch_size: Examples in a batch; by default what the data layer of the solver's net says, if the net is found.

    Raises:
        SurgeryError: The file is not a solver, or one that Caffe would refuse.
    """
    path = Path(path)
    if not path.is_file():
        raise SurgeryError(f"{path}: no such file")
    solver = parse_text(path, SolverParameter)
    optimizer = _optimizer(solver, path)
    if not solver.HasField("base_lr"):
        raise SurgeryError(f"{path}: has no base_lr; a solver needs one")
    batch_size = batch_size or _batch_size(solver, path)
    train: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": _decimal(solver.base_lr),
        "schedule": _schedule(solver, path),
        "weight_decay": _decimal(solver.weight_decay),
    }
    if batch_size:
        train["batch_size"] = batch_size
    if solver.HasField("max_iter"):
        train["steps"] = solver.max_iter
    if solver.regularization_type not in ("L1", "L2"):
        raise SurgeryError(f"{path}: regularization_type is {solver.regularization_type!r} and must be L1 or L2")
    if solver.regularization_type == "L1" and solver.weight_decay:
        train["regularization"] = "l1"
    if solver.clip_gradients >= 0:
        train["clip_norm"] = _decimal(solver.clip_gradients) / max(solver.iter_size, 1)  # Caffe clips the sum
    if solver.iter_size > 1:
        train["accumulate"] = solver.iter_size
    if solver.random_seed >= 0:
        train["seed"] = solver.random_seed
    if "momentum" in optimizer and optimizer["name"] == "sgd" and train["schedule"]["name"] != "constant":
        optimizer["rate_in_momentum"] = True
    return _in_epochs(train, examples, path) if examples else train


def _optimizer(solver: SolverParameter, path: Path) -> dict[str, Any]:
    if solver.HasField("type") and solver.HasField("solver_type"):
        raise SurgeryError(f"{path}: has both type and solver_type, its old form; keep type")
    kind = _OLD_TYPES[solver.solver_type] if solver.HasField("solver_type") else solver.type
    if kind not in _OPTIMIZERS:
        raise SurgeryError(f"{path}: no solver type {kind!r} is known{nearest(kind, _OPTIMIZERS)}")
    name, fields = _OPTIMIZERS[kind]
    result: dict[str, Any] = {"name": name}
    for theirs, ours in fields.items():
        result[ours] = _decimal(getattr(solver, theirs))
    if kind == "Nesterov":
        result["nesterov"] = True
    if kind == "Adam":
        result["epsilon_hat"] = True
    if kind in ("AdaGrad", "RMSProp") and solver.momentum:
        raise SurgeryError(f"{path}: momentum cannot be used with {kind}; take it out, as Caffe demands")
    if kind == "RMSProp" and not 0 <= solver.rms_decay < 1:
        raise SurgeryError(f"{path}: rms_decay is {solver.rms_decay:g} and must be from 0 to below 1")
    return result


def _schedule(solver: SolverParameter, path: Path) -> dict[str, Any]:
    policy = solver.lr_policy
    if policy not in _SCHEDULES:
        raise SurgeryError(f"{path}: no lr_policy {policy!r} is known{nearest(policy, _SCHEDULES)}")
    name, fields = _SCHEDULES[policy]
    result: dict[str, Any] = {"name": name}
    for theirs, ours in fields.items():
        if theirs == "stepvalue":
            result[ours] = list(solver.stepvalue)
            continue
        if not solver.HasField(theirs):
            raise SurgeryError(f"{path}: lr_policy {policy!r} needs {theirs}")
        value = getattr(solver, theirs)
        result[ours] = _decimal(value) if isinstance(value, float) else value
    if result.get("every", 1) < 1:
        raise SurgeryError(f"{path}: stepsize is {result['every']} and must be 1 or more")
    if name == "multi_step" and not result["milestones"]:
        raise SurgeryError(f"{path}: lr_policy 'multistep' needs stepvalue, once for each step")
    return result


def _in_epochs(train: dict[str, Any], examples: int, path: Path) -> dict[str, Any]:
    if "batch_size" not in train:
        raise SurgeryError(
            f"{path}: the net that it names, and with it the batch's size, is not found: say --batch-size (batch_size= "
            "in Python)"
        )
    epoch = examples / (train["batch_size"] * train.get("accumulate", 1))
    schedule = train["schedule"]
    for key, value in schedule.items():
        if key == "milestones":
            schedule[key] = [step / epoch for step in value]
        elif (change := _IN_EPOCHS.get((schedule["name"], key))) is not None:
            schedule[key] = change(value, epoch)
    if "steps" in train:
        train["epochs"] = max(1, round(train.pop("steps") / epoch))
    return train


def _batch_size(solver: SolverParameter, path: Path) -> int | None:
    """The batch of the training net's data layer, where the net is in the solver or next to it."""
    net = next((getattr(solver, n) for n in ("train_net_param", "net_param") if solver.HasField(n)), None)
    name = solver.train_net or solver.net
    if net is None and name:
        found = [p for p in (path.parent / name, path.parent / Path(name).name, Path(name)) if p.is_file()]
        net = parse_text(found[0], NetParameter) if found else None
    if net is None:
        return None
    for layer in upgrade(net, path).layer:
        if layer.type in DATA_LAYERS and not any(rule.phase for rule in layer.include):  # TRAIN is 0
            for message in ("data_param", "image_data_param", "window_data_param", "memory_data_param"):
                if layer.HasField(message) and (size := getattr(layer, message).batch_size):
                    return int(size)
    return None


def _decimal(number: float) -> float:
    """A float32 as the decimal that the file has."""
    return float(np.format_float_positional(np.float32(number)))
