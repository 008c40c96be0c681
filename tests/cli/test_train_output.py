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


@pytest.mark.training
def test_metrics_that_nothing_is_watched_for_are_told(tmp_path: Path) -> None:
    op, x = graph_with_input("N", 3)
    model = model_of(op.graph, {"y": op.Gemm(x, parameter(op, "fc.weight", torch.zeros(3, 1)), _name="fc")})
    surgery.save(model, tmp_path / "line.onnx")
    examples = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=examples, y=examples.sum(1, keepdims=True))
    (tmp_path / "r.yaml").write_text("train: {epochs: 1, metrics: [r2]}\n")
    command = "train", tmp_path / "line.onnx", tmp_path / "data.npz", "-r", tmp_path / "r.yaml", "-o", tmp_path / "out"
    assert "metrics: r2 left out, as they are of examples to watch" in run(*command).stdout
    text = run(*command, "--validation", "0.2").stdout
    assert "left out" not in text
    assert "r2" in (tmp_path / "out" / "history.jsonl").read_text()
