"""Training a model: from its data and settings to the trained model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery import __version__, runtime
from surgery.data import Dataset, Source, as_dataset
from surgery.errors import SurgeryError
from surgery.marks import set_labels, set_preprocessing
from surgery.training.batchnorm import reestimated
from surgery.training.callbacks import Callback, EarlyStopping
from surgery.training.checkpoint import Checkpoints
from surgery.training.fingerprint import data_digest, model_digests
from surgery.training.history import History
from surgery.training.loop import Ending, Loop
from surgery.training.measure import Scores, evaluate, predict
from surgery.training.settings import TrainSettings, changed
from surgery.training.stages import Stages, with_weights
from surgery.training.targets import objective_of, soft
from surgery.training.verdict import Verdict, verdict

__all__ = ["Scores", "Trained", "evaluate", "predict", "train"]


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
        validation: What was watched; None where nothing was.
    """

    model: ir.Model
    history: History
    kept_epoch: int
    ending: Ending = "finished"
    message: str = ""
    validation: Dataset | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it converges, overfits, diverges or should go on, and why."""
        return verdict(self.history, self.message if self.ending == "diverged" else "")


def train(
    model: ir.Model,
    data: Source,
    settings: TrainSettings | None = None,
    *,
    validation: Source | float | None = None,
    device: runtime.Device = "auto",
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
    resume: bool = False,
    **changes: Any,
) -> Trained:
    """Fine-tunes `model`, which is left as it is.

    Args:
        model: A model with marks.
        data: What to train on: a path (see `surgery.data.open_data`), ``(examples, targets)``, a data set as PyTorch's
            or anything that gives ``(example, target)`` pairs (see `surgery.data.from_items`), or a `Dataset`.
        settings: How to train.
        validation: What to watch, or the share of `data` to split off for it; by default the validation part that
            `data` has, or the share that the settings say.
        device: Where to run; ``auto`` takes CUDA where it starts.
        callbacks: What to tell how it goes.
        checkpoints: Where to leave a checkpoint after each epoch, and how often in between.
        resume: Go on from the last of `checkpoints`, where there is one, to the same numbers as without interruption
            (on the CPU). Model, data and settings must be what they were.
        **changes: Fields of `TrainSettings` that differ from `settings`, such as ``epochs=20``.

    Returns:
        The trained model, with the class names that the data have, the preprocessing that was
        assumed for raw images where `model` says nothing of it, and its history. Ctrl-C and a loss that is not a
        number end the training early; the model then has the best weights so far.

    Raises:
        SurgeryError: The data do not fit the model, nothing is trainable, an operator has no gradient, or checkpoints
            cannot be written or are of another training.
    """
    if isinstance(validation, int | float | np.floating):
        changes["validation"] = validation = float(validation)
    settings = changed(settings or TrainSettings(), changes)
    providers = runtime.providers(device)
    examples, held = as_dataset(data, model)
    if isinstance(validation, float):  # which goes before what the data have
        held = None
    elif validation is not None:
        held = as_dataset(validation, model)[0].numbered_as(examples)
    if held is None and settings.validation:
        examples, held = examples.split(settings.validation, settings.seed)
        if not len(held) or not len(examples):
            raise SurgeryError(
                f"a validation share of {settings.validation:g} leaves {len(examples)} examples to train on and "
                f"{len(held)} to watch; change it or bring more data"
            )
    watched = held
    examples = examples.augmented(settings.augment, settings.sampling)
    objective = objective_of(model, settings.objective, settings.output, examples.targets)
    if examples.augment is not None and examples.augment.mixes:
        examples = soft(examples, model, objective, settings.output)
        held = soft(held, model, objective, settings.output) if held is not None else None
        objective = objective_of(model, objective, settings.output, examples.targets)
    if resume and checkpoints is None:
        raise SurgeryError("resume needs `checkpoints`, the folder that they are in")
    if isinstance(checkpoints, str | os.PathLike):
        checkpoints = Checkpoints(checkpoints)
    given = model
    if settings.reestimate_batchnorm:
        model = reestimated(model, examples, providers)
    stages = Stages(model, settings, objective, providers, examples, held, callbacks)
    state = checkpoints.begin(_identity(given, settings, examples, held), resume) if checkpoints is not None else None
    if settings.early_stopping is not None:
        callbacks = [*callbacks, EarlyStopping(**settings.early_stopping.model_dump())]
    loop = Loop(settings, stages, stages.data, checkpoints, state, callbacks)
    ending, message = loop.run()
    trained = with_weights(model, loop.state.best)
    for term in stages.terms:
        names = examples.labels_of(term.output)
        if names is not None and term.units[:1] == (len(names),):
            set_labels(trained, term.output, list(names))
    for name, how in examples.assumed.items():
        set_preprocessing(trained, name, how)
    return Trained(trained, loop.state.history, loop.state.best_epoch, ending, message, watched)


def _identity(model: ir.Model, settings: TrainSettings, data: Dataset, held: Dataset | None) -> dict[str, Any]:
    """What a training that goes on must have in common with the one that was interrupted."""
    digests = model_digests(model)
    return {
        "settings": settings.model_dump(mode="json"),
        "the model's graph or marks": digests["graph"],
        "the model's weights": digests["weights"],
        "the data": data_digest(data),
        "the validation data": None if held is None else data_digest(held),
        "versions": {"surgery": __version__, "runtime": runtime.describe(), "numpy": np.__version__},
    }
