"""What `surgery train` says in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import surgery
from tests.cli.test_cli import run
from tests.nets import graph_with_input, model_of, parameter


@pytest.mark.training
def test_the_verdict_is_a_sentence(tmp_path: Path) -> None:
    op, x = graph_with_input("N", 3)
    model = model_of(op.graph, {"y": op.Gemm(x, parameter(op, "fc.weight", torch.zeros(3, 1)), _name="fc")})
    surgery.save(model, tmp_path / "line.onnx")
    examples = np.random.default_rng(0).normal(0, 1, (64, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=examples, y=examples.sum(1, keepdims=True))
    text = run("train", tmp_path / "line.onnx", tmp_path / "data.npz", "--epochs", "1", "-o", tmp_path / "out").stdout
    assert "\nthe training is too short to judge: 1 of the 3 epochs" in text
    assert "Verdict(" not in text
