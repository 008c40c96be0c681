"""Mutated model files load or are refused in one line, soon; what loads can be looked at."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.io import load
from surgery.layers import head, layers
from tests.graphs import cnn, mlp, squeezenet


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """`data` with some bytes changed, bits flipped, and pieces taken out or repeated."""
    result = bytearray(data)
    for _ in range(random.integers(1, 6)):
        kind, place = random.integers(4), int(random.integers(len(result)))
        if kind == 0:
            result[place] = int(random.integers(256))
        elif kind == 1:
            result[place] ^= 1 << int(random.integers(8))
        elif kind == 2:
            del result[place : place + int(random.integers(1, 20))]
        else:
            start = int(random.integers(len(result)))
            result[place:place] = result[start : start + int(random.integers(1, 40))]
        result = result or bytearray(1)
    return bytes(result)


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_files(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    files = [ir.to_proto(make()).SerializeToString() for make in (cnn, mlp, squeezenet)]
    path = tmp_path / "m.onnx"
    refused = 0
    for number in range(count):
        path.write_bytes(mutated(files[number % len(files)], random))
        start = time.process_time()
        try:
            model = load(path)
        except SurgeryError as error:
            refused += 1
            assert "\n" not in str(error), f"mutation {number}"  # noqa: PT017  (both ways are right)
        else:
            for layer in layers(model):
                assert layer.size >= 0
                assert layer.trainable in (True, False)
            with contextlib.suppress(SurgeryError):
                head(model)
        assert time.process_time() - start < 5, f"mutation {number}"
    assert 0.5 * count < refused < count
