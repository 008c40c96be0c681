"""More than 20,000 changed files of all that Surgery reads: none ends the process, hangs, or takes much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COUNTS = {"onnx": 8000, "prototxt": 3000, "caffemodel": 3000, "t7": 3500, "h5": 1500, "yaml": 2500}
NEEDS = {"h5": "h5py"}


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("share", [0.01, pytest.param(1.0, marks=pytest.mark.slow)])
def test_changed_files(tmp_path: Path, kind: str, share: float) -> None:
    pytest.importorskip(NEEDS.get(kind, "onnx"))
    count, seed = round(COUNTS[kind] * share), "1" if share == 1 else "2"
    command = [sys.executable, "-m", "tests.fuzzing", kind, str(count), seed, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.3 * count < found["refused"] < count  # some changes do no harm
    assert found["megabytes"] < 1000


def test_there_are_enough() -> None:
    assert sum(COUNTS.values()) > 20_000
