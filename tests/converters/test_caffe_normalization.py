"""Caffe's BatchNorm with and without its Scale, and Normalize, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters import convert
from surgery.marks import marks
from tests.converters.caffe_checks import (
    Array,
    check,
    one,
    run,
    write_net,
)


def batch_norm_blobs(rng: np.random.Generator, total: float = 4.0) -> tuple[list[Array], Array, Array]:
    """The blobs of a BatchNorm of 3 channels, and the mean and variance that they stand for."""
    mean, variance = rng.normal(size=3).astype(np.float32), rng.random(3).astype(np.float32) + 0.5
    return [mean * total, variance * total, np.array([total], np.float32)], mean, variance


def test_batch_norm_divides_by_its_scale_factor(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    expected = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 0.01)
    check(tmp_path, one("BatchNorm", "batch_norm_param { eps: 0.01 }"), [x], [expected], {"it": blobs})


@pytest.mark.parametrize("in_place", [True, False])
def test_batch_norm_and_scale_become_one(tmp_path: Path, in_place: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma, beta = (rng.normal(size=3).astype(np.float32) for _ in range(2))
    first, second = ("n", "n") if in_place else ("n", "out")
    text = f"""
        layer {{ name: "norm" type: "BatchNorm" bottom: "x" top: "{first}" batch_norm_param {{ use_global_stats: true }}
                 param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} }}
        layer {{ name: "scale" type: "Scale" bottom: "{first}" top: "{second}" scale_param {{ bias_term: true }}
                 param {{ lr_mult: 3 }} param {{ decay_mult: 0 }} }}"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    definition, _ = write_net(tmp_path, text, {"x": x.shape}, {"norm": blobs, "scale": [gamma, beta]})
    model = convert(definition)
    assert [n.op_type for n in model.graph] == ["BatchNormalization"]
    assert set(model.graph.initializers) == {"norm.mean", "norm.var", "scale.scale", "scale.bias"}
    table = {name: marks(value) for name, value in model.graph.initializers.items()}
    assert table["scale.scale"].learning_rate == 3
    assert table["scale.bias"].decay == 0
    assert not table["norm.mean"].trainable
    found = run(model, x)[second]
    np.testing.assert_allclose(found, normal * gamma[:, None, None] + beta[:, None, None], rtol=1e-5, atol=1e-5)


def test_batch_norm_that_others_read_keeps_its_scale_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma = rng.normal(size=3).astype(np.float32)
    text = """layer { name: "norm" type: "BatchNorm" bottom: "x" top: "n" }
              layer { name: "scale" type: "Scale" bottom: "n" top: "s" }
              layer { name: "relu" type: "ReLU" bottom: "n" top: "r" }"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    expected = [normal * gamma[:, None, None], np.maximum(normal, 0)]
    check(tmp_path, text, [x], expected, {"norm": blobs, "scale": [gamma]})


def test_batch_norm_behind_a_split_keeps_its_scale_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    blobs, mean, variance = batch_norm_blobs(rng)
    gamma = rng.normal(size=3).astype(np.float32)
    text = """layer { name: "norm" type: "BatchNorm" bottom: "x" top: "n" }
              layer { name: "split" type: "Split" bottom: "n" top: "n1" top: "n2" }
              layer { name: "scale" type: "Scale" bottom: "n1" top: "s" }
              layer { name: "relu" type: "ReLU" bottom: "n2" top: "r" }"""
    normal = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    expected = [normal * gamma[:, None, None], np.maximum(normal, 0)]
    check(tmp_path, text, [x], expected, {"norm": blobs, "scale": [gamma]})


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_normalize(tmp_path: Path, across: bool, shared: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale = rng.normal(size=() if shared else 3).astype(np.float32)
    norm = np.sqrt((x * x).sum((1, 2, 3) if across else 1, keepdims=True) + 1e-10)
    params = f"norm_param {{ across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} }}"
    expected = x / norm * (scale if shared else scale[:, None, None])
    check(tmp_path, one("Normalize", params), [x], [expected], {"it": [scale]})
