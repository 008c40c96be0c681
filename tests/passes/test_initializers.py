"""First values: their range, mean and variance are those of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from surgery.passes.initializers import Initializer, initialize

SHAPE = (64, 32, 5, 5)
FAN_IN, FAN_OUT = 32 * 25, 64 * 25


@pytest.mark.parametrize(
    ("kind", "limit", "deviation"),
    [
        # Glorot and Bengio 2010, equation 16: U[-√6/√(n_j + n_{j+1}), …], whose deviation is the limit over √3.
        ("glorot", math.sqrt(6 / (FAN_IN + FAN_OUT)), math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("glorot_uniform", math.sqrt(6 / (FAN_IN + FAN_OUT)), math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("glorot_normal", None, math.sqrt(2 / (FAN_IN + FAN_OUT))),
        # He et al. 2015, equation 10: a standard deviation of √(2 / n_l).
        ("he", None, math.sqrt(2 / FAN_IN)),
        ("he_normal", None, math.sqrt(2 / FAN_IN)),
        ("he_uniform", math.sqrt(6 / FAN_IN), math.sqrt(2 / FAN_IN)),
    ],
)
def test_distribution(kind: Initializer, limit: float | None, deviation: float) -> None:
    values = initialize(kind, SHAPE, 0, "w")
    count = values.size
    assert abs(values.mean()) < 5 * deviation / math.sqrt(count)
    assert values.std() == pytest.approx(deviation, rel=0.02)
    kurtosis = ((values / values.std()) ** 4).mean()  # 1.8 of a uniform distribution, 3 of a normal one
    if limit is None:
        assert kurtosis == pytest.approx(3, abs=0.2)
    else:
        assert kurtosis == pytest.approx(1.8, abs=0.05)
        assert 0.999 * limit < np.abs(values).max() <= limit


def test_zeros() -> None:
    assert not initialize("zeros", SHAPE, 0, "w").any()


def test_parameters_of_one_seed_differ() -> None:
    first, same, other = (initialize("he", (4, 4), 0, name) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(first, same)
    assert not np.isclose(first, other).any()
