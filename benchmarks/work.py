"""The work that is timed: which networks, on which batches, and what of them is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CASES", "LEARNING_RATE", "MOMENTUM", "NETS", "Build", "Net", "Run", "Task", "load_batch"]

LEARNING_RATE, MOMENTUM = 0.01, 0.9
CASES = {"all": "all weights", "head": "head only"}


@dataclasses.dataclass(frozen=True)
class Net:
    """A network and the work it is given.

    Attributes:
        title: Its name in tables.
        head: The name of its last layer.
        shape: One example, ``(C, H, W)``.
        classes: How many there are.
        batch: Examples in a step.
    """

    title: str
    head: str
    shape: tuple[int, ...]
    classes: int
    batch: int


_IMAGE = (3, 224, 224)
NETS = {
    "lenet": Net("LeNet", "7", (1, 28, 28), 10, 64),
    "resnet18": Net("ResNet-18", "14", _IMAGE, 1000, 8),
    "resnet50": Net("ResNet-50", "22", _IMAGE, 1000, 8),
    "mobilenet_v2": Net("MobileNetV2", "26", _IMAGE, 1000, 8),
    "vgg11": Net("VGG-11", "28", _IMAGE, 1000, 8),
    "vit_tiny": Net("ViT-tiny", "head", _IMAGE, 1000, 8),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What to train.

    Attributes:
        net: A name of `nets.NETS`.
        case: ``all``, BatchNormalization by the batch's statistics; or ``head``, all else as it infers.
        model: The path of the network exported to ONNX.
        dropout: False where its ratios are 0, so that losses can be compared.
    """

    net: str
    case: str
    model: str
    dropout: bool = True


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that is ready: the software, what a step is, what it does not do."""

    runtime: str
    step: Callable[[], float]
    note: str = ""


Build = Callable[[Task], Run]


def load_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Examples, `[N, C, H, W]`, and their class numbers, `[N]`."""
    import numpy as np

    examples, targets = np.load(Path(task.model).with_name(f"{task.net}.npz")).values()
    return examples, targets
