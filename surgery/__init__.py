"""Surgery: convert a pretrained network to ONNX, operate on its graph, fine-tune it with ONNX Runtime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from surgery.autodiff.api import gradient as gradient
    from surgery.errors import SurgeryError as SurgeryError
    from surgery.estimator import FineTuneClassifier as FineTuneClassifier
    from surgery.estimator import FineTuneRegressor as FineTuneRegressor
    from surgery.io import load as load
    from surgery.io import save as save
    from surgery.recipe import apply as apply
    from surgery.training.callbacks import Callback as Callback
    from surgery.training.checkpoint import Checkpoints as Checkpoints
    from surgery.training.find_lr import find_learning_rate as find_learning_rate
    from surgery.training.trainer import evaluate as evaluate
    from surgery.training.trainer import predict as predict
    from surgery.training.trainer import train as train

# Where each public name lives; a name is imported when it is first used, so that `import surgery` is instant.
_NAMES = {
    "Callback": "surgery.training.callbacks",
    "Checkpoints": "surgery.training.checkpoint",
    "FineTuneClassifier": "surgery.estimator",
    "FineTuneRegressor": "surgery.estimator",
    "SurgeryError": "surgery.errors",
    "apply": "surgery.recipe",
    "evaluate": "surgery.training.trainer",
    "find_learning_rate": "surgery.training.find_lr",
    "gradient": "surgery.autodiff.api",
    "load": "surgery.io",
    "predict": "surgery.training.trainer",
    "save": "surgery.io",
    "train": "surgery.training.trainer",
}
__all__ = [
    "Callback",
    "Checkpoints",
    "FineTuneClassifier",
    "FineTuneRegressor",
    "SurgeryError",
    "apply",
    "evaluate",
    "find_learning_rate",
    "gradient",
    "load",
    "predict",
    "save",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
