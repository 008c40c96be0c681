"""Writes what a device trains from."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from surgery import runtime
from surgery.artifacts.graphs import (
    evaluation_model,
    move_frozen,
    optimizer_model,
    order_inputs,
    training_model,
    user_inputs,
)
from surgery.artifacts.plans import AdamW, Plan, Sgd, choose
from surgery.errors import SurgeryError
from surgery.io import save
from surgery.training.losses import Objective

__all__ = ["Artifacts", "artifacts"]


@dataclasses.dataclass(frozen=True)
class Artifacts:
    """What `artifacts` wrote.

    Attributes:
        training_model: Takes examples and targets; gives the loss.
        eval_model: Takes the same; gives the loss, the metric (of several trained outputs: those of each), and the
            model's own outputs.
        optimizer_model: Updates the parameters.
        checkpoint: Holds them.
        inputs: The names of the inputs for examples and targets, in the order that `Module` takes them.
        outputs: The names of what the evaluation model gives, in order.
        trained: The names of the trained parameters, in the checkpoint.
        notes: What is kept in another way than the model has it.
    """

    training_model: Path
    eval_model: Path
    optimizer_model: Path
    checkpoint: Path
    inputs: list[str]
    outputs: list[str]
    trained: list[str]
    notes: list[str]


def artifacts(
    model: ir.Model,
    folder: str | os.PathLike[str],
    *,
    optimizer: str | AdamW | Sgd = "adamw",
    loss: Objective = "auto",
    output: str | None = None,
    frozen: Literal["models", "checkpoint"] = "models",
    fused: bool = True,
    seed: int = 0,
) -> Artifacts:
    """Writes training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint into `folder`.

    Marks are kept: frozen parameters are not trained, and learning-rate and decay multipliers and constraints have the
    effect that they have in `surgery.train`. AdamW's decay cannot be had with every multiplier: that is an error.

    Args:
        model: A model with marks; it is left as it is.
        folder: Where to; it is made where it does not exist.
        optimizer: ``adamw``, ``sgd``, or one with settings.
        loss: As `surgery.training.step.training_step` takes it; ``auto`` goes by the last activation.
        output: The output to train; needed where there are several and `loss` names none.
        frozen: Where the frozen weights lie. In the two models, the runtime optimizes what it computes with them; in
            the checkpoint, they are stored once and not twice.
        fused: Use the training build's kernels (ConvGrad, …), which every device that trains has; without, the
            gradients are standard operators.
        seed: Of dropout.

    Raises:
        SurgeryError: Nothing is trainable, an operator has no gradient, the optimizer cannot do what a mark says, the
            runtime is not the onnxruntime-training build, or a file cannot be written.
    """
    chosen = choose(optimizer)
    if frozen not in ("models", "checkpoint"):
        raise SurgeryError(f"frozen is {frozen!r}: frozen weights lie in 'models' or in 'checkpoint'")
    save_checkpoint = _checkpoint_writer()
    plans: dict[str, Plan] = {}
    training = training_model(model, chosen, plans, loss=loss, output=output, fused=fused, seed=seed)
    evaluation = evaluation_model(model, training, plans, loss=loss, output=output)
    trained = {plan.stored: plan.divided(training.initial[name]) for name, plan in plans.items()}
    others = {name: training.initial[name] for name in training.weights if name not in plans}
    if frozen == "checkpoint":
        others |= move_frozen(model, training.model.graph, evaluation.graph)
    user = user_inputs(training)
    for graph in (training.model.graph, evaluation.graph):
        order_inputs(graph, [*user, *trained, *others])

    folder = Path(folder)
    models = {
        "training_model.onnx": training.model,
        "eval_model.onnx": evaluation,
        "optimizer_model.onnx": optimizer_model(chosen, training.model.opset_imports[""]),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".artifacts.", dir=folder) as made:
            temporary = Path(made)
            save_checkpoint(_protos(trained), _protos(others), os.fspath(temporary / "checkpoint"), False)
            for name, graph_model in models.items():
                save(graph_model, temporary / name)
            for path in temporary.iterdir():
                os.replace(path, folder / path.name)
    except OSError as error:
        raise SurgeryError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return Artifacts(
        training_model=folder / "training_model.onnx",
        eval_model=folder / "eval_model.onnx",
        optimizer_model=folder / "optimizer_model.onnx",
        checkpoint=folder / "checkpoint",
        inputs=user,
        outputs=[str(o.name) for o in evaluation.graph.outputs],
        trained=list(trained),
        notes=[note for plan in plans.values() for note in plan.notes()],
    )


def _checkpoint_writer() -> Callable[[list[bytes], list[bytes], str, bool], None]:
    """onnxruntime's own function: (trained tensors, other tensors, path, without their contents) → None."""
    runtime.load_runtime()
    from onnxruntime.capi import _pybind_state

    if not hasattr(_pybind_state, "save_checkpoint"):
        raise SurgeryError(
            f"checkpoints for devices need the onnxruntime-training build; {runtime.describe()} is installed; install "
            "the other in an environment of its own: pip install 'onnx-surgery[cpu]' (Linux, Python up to 3.12)"
        )
    write: Callable[[list[bytes], list[bytes], str, bool], None] = _pybind_state.save_checkpoint
    return write


def _protos(tensors: dict[str, np.ndarray]) -> list[bytes]:
    return [ir.to_proto(ir.tensor(array, name=name)).SerializeToString() for name, array in tensors.items()]
