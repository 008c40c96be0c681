"""Convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F

from tests.autodiff.checks import Operator, check

pytestmark = pytest.mark.training


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_conv(rng: np.random.Generator) -> None:
    x, w, b = _normal(rng, 2, 3, 7, 6), _normal(rng, 4, 3, 3, 2), _normal(rng, 4)
    check(
        Operator("Conv", [x, w, b], {"strides": [2, 1], "pads": [1, 0, 1, 1]}),
        lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 1, 1)), w, b, stride=(2, 1)),
    )
