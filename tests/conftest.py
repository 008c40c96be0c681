"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and data made by others; they are not part of this project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: real models and data for comparison are not part of the project")
    return folder


@pytest.fixture(scope="session")
def lenet_files() -> tuple[Path, Path]:
    """Definition and weights of the pretrained LeNet that the project ships."""
    folder = ROOT / "models" / "lenet_mnist"
    return folder / "lenet_mnist.prototxt", folder / "lenet_mnist.caffemodel"


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
