"""`surgery apply` on many models at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from surgery.io import load, save
from tests.cli.test_cli import fails, run
from tests.graphs import cnn, mlp, squeezenet

PASSES = """passes:
  - replace_head: {units: 3}
  - freeze: all
  - unfreeze: head
  - insert_dropout: {hidden: 0.5}
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass.yaml").write_text(PASSES)
    for make in (cnn, mlp, squeezenet):
        save(make(), tmp_path / f"{make.__name__}.onnx")
    return [Path(f"{make.__name__}.onnx") for make in (cnn, mlp, squeezenet)]


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.slow
def test_the_same_bytes_whatever_the_number_of_processes(models: list[Path]) -> None:
    run("apply", "pass.yaml", *models, "-o", "one/")
    run("apply", "pass.yaml", *models, "-o", "two/", "-j", "2")
    for model in models:
        run("apply", "pass.yaml", model, "-o", f"alone/{model.name}")
    assert contents("one") == contents("two") == contents("alone")
    assert len(contents("one")) == 3


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_bytes_whatever_the_order_of_sets(models: list[Path], seed: str) -> None:
    run("apply", "pass.yaml", models[0], "-o", "here.onnx")
    command = [sys.executable, "-m", "surgery", "apply", "pass.yaml", str(models[0]), "-o", "there.onnx", "-q"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert Path("here.onnx").read_bytes() == Path("there.onnx").read_bytes()


def test_a_failure_does_not_stop_the_others(models: list[Path]) -> None:
    Path("bad.onnx").write_bytes(b"GIF89a" + bytes(50))
    done = run("apply", "pass.yaml", "bad.onnx", *models, "-o", "out/", code=2)
    assert "bad.onnx: is not a readable ONNX file" in done.stdout
    assert "3 of 4 models done, 1 failed" in done.stdout
    assert "2 layers with 75 parameters, 21 of them trainable" in done.stdout
    assert sorted(contents("out")) == ["cnn.onnx", "mlp.onnx", "squeezenet.onnx"]
    done = run("apply", "pass.yaml", "bad.onnx", *models, "-o", "out/", "-q", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("surgery: bad.onnx: is not")
    data = json.loads(run("apply", "pass.yaml", "bad.onnx", *models, "-o", "out/", "--json", code=2).stdout)
    assert data["failed"] == 1
    assert "is not a readable ONNX file" in data["models"][0]["error"]
    assert [m["output"] for m in data["models"][1:]] == [f"out/{m}" for m in models]


def test_a_fault_in_one_is_told_apart_from_bad_input(models: list[Path]) -> None:
    Path("own.py").write_text(
        "import os\nimport onnx_ir as ir\nclass Killed(ir.passes.InPlacePass):\n    def call(self, model):\n"
        "        if len(model.graph) == 4:\n            os._exit(9)\n"
        "        return ir.passes.PassResult(model, False)\n"
    )
    Path("pass.yaml").write_text("passes:\n  - run: own:Killed\n")
    assert len(load(models[1]).graph) == 4
    done = run("apply", "pass.yaml", *models, "-o", "out/", "-j", "2", code=1)
    assert "2 of 3 models done, 1 failed" in done.stdout
    assert sorted(contents("out")) == ["cnn.onnx", "squeezenet.onnx"]


def test_ctrl_c_ends_all_processes(models: list[Path]) -> None:
    Path("own.py").write_text(
        "import time\nimport onnx_ir as ir\nclass Slow(ir.passes.InPlacePass):\n    def call(self, model):\n"
        "        time.sleep(1)\n        return ir.passes.PassResult(model, False)\n"
    )
    Path("pass.yaml").write_text("passes:\n  - run: own:Slow\n")
    Path("in").mkdir()
    names = [f"in/{i}.onnx" for i in range(40)]
    for name in names:
        Path(name).write_bytes(models[1].read_bytes())
    command = [sys.executable, "-m", "surgery", "apply", "pass.yaml", *names, "-o", "out/", "-j", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not Path("out").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Traceback" not in errors
    done = list(Path("out").iterdir())
    assert len(done) < 20
    assert all(path.suffix == ".onnx" for path in done)


def test_name_clashes_are_refused_before_anything_is_written(models: list[Path]) -> None:
    Path("other").mkdir()
    save(mlp(), "other/mlp.onnx")
    assert "would both be saved as out/mlp.onnx" in fails(
        "apply", "pass.yaml", "mlp.onnx", "other/mlp.onnx", "-o", "out/"
    )
    assert not Path("out").exists()
    save(mlp(), "mlp-pass.onnx")
    assert "another of the models" in fails("apply", "pass.yaml", "mlp.onnx", "mlp-pass.onnx")
    assert "is a file" in fails("apply", "pass.yaml", *models, "-o", "mlp.onnx")


def test_in_place_and_into_a_folder_that_is_there(models: list[Path]) -> None:
    before = contents(".")
    run("apply", "pass.yaml", *models, "-o", ".")
    assert all(contents(".")[str(m)] != before[str(m)] for m in models)
    assert sorted(contents(".")) == sorted(before)
    Path("out").mkdir()
    run("apply", "pass.yaml", models[0], "-o", "out")
    assert list(contents("out")) == ["cnn.onnx"]


def test_link(models: list[Path], tmp_path: Path) -> None:
    import onnx
    import onnx_ir as ir

    (tmp_path / "in").mkdir()
    proto = ir.to_proto(cnn())
    onnx.save(proto, "in/m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    run("apply", "pass.yaml", "in/m.onnx", "-o", "out/m.onnx", "--link")
    one, two = load("in/m.onnx").graph.initializers, load("out/m.onnx").graph.initializers
    tensors = [one["w1"].const_value, two["w1"].const_value]
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    np.testing.assert_array_equal(tensors[0], tensors[1])
    assert "nothing to link" in fails("apply", "pass.yaml", models[0], "-o", "out/n.onnx", "--link")
