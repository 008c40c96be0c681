"""The runtime, and sessions of models whose weights are in files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from surgery.errors import SurgeryError
from surgery.io import load
from surgery.runtime import providers, session


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_in_files_are_found(
    tmp_path: Path, rng: np.random.Generator, external: bool, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,200] x) => (float[N,201] y) '
        "{ c = Cast<to = 1>(w) y = MatMul(x, c) }"
    )
    weight = rng.normal(size=(200, 201)).astype(dtype)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=external, location="w.bin")
    monkeypatch.chdir(tmp_path.parent)
    x = rng.normal(size=(3, 200)).astype(np.float32)
    (y,) = session(load(tmp_path / "m.onnx"), ["CPUExecutionProvider"], threads=1).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_weights_of_subgraphs_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[3] x) => (float[3] y) { y = If(c) <then_branch = t () => (float[3] a)
        <float[3] w = {1, 2, 3}> { a = Add(x, w) }, else_branch = e () => (float[3] b) { b = Neg(x) }> }""")
    branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch")
    tensor = branch.initializer[0]
    tensor.ClearField("float_data")
    (tmp_path / "w.bin").write_bytes(np.array([10, 20, 30], np.float32).tobytes())
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    monkeypatch.chdir(tmp_path.parent)
    run = session(load(tmp_path / "m.onnx"), ["CPUExecutionProvider"], threads=1)
    (y,) = run.run(None, {"c": np.array(True), "x": np.ones(3, np.float32)})
    assert y.tolist() == [11, 21, 31]


@pytest.mark.training
def test_dropout_stays_on_where_nobody_reads_its_mask(tmp_path: Path) -> None:
    """Stock ONNX Runtime would take it out, though it is in training mode."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,1000] x) => (float[N,1000] y) <float ratio = {0.5}, bool on = {1}>
        { a = Relu(x) d = Dropout(a, ratio, on) y = Mul(d, a) }""")
    onnx.save(proto, tmp_path / "m.onnx")
    run = session(load(tmp_path / "m.onnx"), ["CPUExecutionProvider"], threads=1)
    (y,) = run.run(None, {"x": np.ones((2, 1000), np.float32)})
    assert 0.4 < (y == 0).mean() < 0.6


def test_the_runtime_leaves_messages_as_they_are() -> None:
    """The training build, when imported, puts the time before everybody's messages."""
    code = "import logging; from surgery.runtime import load_runtime; load_runtime(); logging.warning('plain')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "WARNING:root:plain"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(SurgeryError, match="no device is called 'gpu'; there are cpu, cuda, auto"):
        providers("gpu")  # type: ignore[arg-type]
