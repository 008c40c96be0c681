"""The command line as a user meets it: output, exit codes, files left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from surgery.cli import main
from surgery.demo.digits import digits

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass
class Done:
    stdout: str
    stderr: str


def run(*words: str | Path, code: int = 0) -> Done:
    """Runs `surgery` with `words` in this process and checks its exit code."""
    out, err = io.StringIO(), io.StringIO()
    ended = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["surgery", *map(str, words)])
        patch.setenv("COLUMNS", "120")
        try:
            main()
        except SystemExit as end:
            ended = end.code if isinstance(end.code, int) else int(end.code is not None)
    assert ended == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Starts `surgery` with `words` as a process of its own."""
    command = [sys.executable, "-m", "surgery", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def fails(*words: str | Path, code: int = 2) -> str:
    """Runs `surgery`, expects one line of complaint and returns it."""
    done = run(*words, code=code)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lenet_files: tuple[Path, Path]) -> Path:
    """A folder with lenet.onnx, digits.npz and pass.yaml."""
    folder = tmp_path_factory.mktemp("work")
    run("convert", lenet_files[0], "-o", folder / "lenet.onnx")
    arrays = digits(100)
    np.savez(folder / "digits.npz", **{k: v[:200] for k, v in arrays.items()})  # type: ignore[arg-type]
    (folder / "pass.yaml").write_text(
        "passes:\n  - replace_head: {units: 10, seed: 0}\n  - freeze: {first: 2}\n  - max_norm: 3\n"
        "train:\n  epochs: 2\n  batch_size: 20\n"
    )
    return folder


def test_help_of_every_verb_has_an_example() -> None:
    text = run("--help").stdout
    for verb in ("convert", "inspect", "apply", "diff", "verify", "train", "evaluate", "view", "schema", "demo"):
        assert verb in text
        assert f"surgery {verb}" in " ".join(run(verb, "--help").stdout.split())


def test_version() -> None:
    assert run("--version").stdout.startswith("surgery 0.")


@pytest.mark.parametrize("words", [[], ["aply"], ["inspect"], ["inspect", "m.onnx", "--jsn"]])
def test_usage_errors_exit_with_2(words: list[str]) -> None:
    run(*words, code=2)


def test_convert_and_inspect(folder: Path, lenet_files: tuple[Path, Path]) -> None:
    text = run("convert", lenet_files[1], "-o", folder / "again.onnx").stdout
    assert "4 layers with 431,080 parameters" in text
    assert (folder / "again.onnx").read_bytes() == (folder / "lenet.onnx").read_bytes()
    table = run("inspect", folder / "lenet.onnx").stdout
    assert "conv1" in table
    assert "N×20×24×24" in table
    data = json.loads(run("inspect", folder / "lenet.onnx", "--json").stdout)
    assert data["parameters"] == 431_080
    assert [layer["name"] for layer in data["layers"] if layer["index"]] == ["conv1", "conv2", "ip1", "ip2"]
    assert data["outputs"][0]["labels"] == [str(d) for d in range(10)]
    assert data["layers"][0]["parameters"]["bias"]["learning_rate"] == 2.0


def test_apply_saves_next_to_the_model_and_says_what_it_did(folder: Path) -> None:
    done = run("apply", folder / "pass.yaml", folder / "lenet.onnx")
    assert (folder / "lenet-pass.onnx").is_file()
    for words in ("conv1: frozen", "max_norm", "before: 4 layers", "405,510 of them trainable"):
        assert words in done.stdout
    data = json.loads(run("inspect", folder / "lenet-pass.onnx", "--json").stdout)
    assert [layer["trainable"] for layer in data["layers"] if layer["index"]] == [False, False, True, True]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    done = run("apply", folder / "pass.yaml", folder / "lenet.onnx", "-o", folder / "dry.onnx", "--dry-run")
    assert "conv1: frozen" in done.stdout
    assert "nothing was written" in done.stdout
    assert not (folder / "dry.onnx").exists()


def test_set_changes_a_key_and_json_reports(folder: Path) -> None:
    done = run(
        "apply", folder / "pass.yaml", folder / "lenet.onnx", "-o", folder / "14.onnx",
        "--set", "replace_head.units=14", "--json",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert [item["pass"] for item in report["passes"]] == ["replace_head", "freeze", "max_norm"]
    assert json.loads(run("inspect", folder / "14.onnx", "--json").stdout)["outputs"][0]["shape"][1] == 14


def test_a_model_may_be_operated_on_in_place(folder: Path) -> None:
    copy = folder / "inplace.onnx"
    copy.write_bytes((folder / "lenet.onnx").read_bytes())
    run("apply", folder / "pass.yaml", copy, "-o", copy, "-q")
    assert json.loads(run("inspect", copy, "--json").stdout)["trainable"] == 405_510


def test_a_recipe_that_asks_for_what_the_model_lacks_leaves_the_old_file(folder: Path) -> None:
    (folder / "bad.yaml").write_text("passes:\n  - freeze: {until: pol2}\n")
    target = folder / "kept.onnx"
    target.write_bytes(b"old")
    message = fails("apply", folder / "bad.yaml", folder / "lenet.onnx", "-o", target)
    assert "'pol2'" in message
    assert "'pool2'" in message
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("passes:\n  - freze: all\n", ["bad.yaml, line 2", "freze", "'freeze'"]),
        ("passes:\n  - freeze: {layer: all}\n", ["bad.yaml, line 2", "layer", "layers"]),
        ("passes:\n  - max_norm: big\n", ["bad.yaml, line 2"]),
        ("pases: []\n", ["bad.yaml, line 1", "'passes'"]),
        ("passes: []\ntrain:\n  epoch: 3\n", ["bad.yaml, line 3", "epochs"]),
        ("passes: [\n", ["bad.yaml"]),
    ],
)
def test_faults_in_a_recipe_are_told_with_file_and_line(folder: Path, text: str, words: list[str]) -> None:
    (folder / "bad.yaml").write_text(text)
    message = fails("apply", folder / "bad.yaml", folder / "lenet.onnx")
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", [b"", b"\x08\x09 cut", b"not a model at all"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "m.onnx" in fails("inspect", tmp_path / "m.onnx")
    assert "no such file" in fails("inspect", tmp_path / "none.onnx")


@pytest.mark.training
def test_train_and_evaluate(folder: Path) -> None:
    run("apply", folder / "pass.yaml", folder / "lenet.onnx", "-o", folder / "operated.onnx", "-q")
    out = folder / "trained"
    done = run("train", folder / "operated.onnx", folder / "digits.npz", "-r", folder / "pass.yaml", "-o", out)
    assert "epoch 2/2" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["checkpoints", "curves.png", "history.jsonl", "model.onnx"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads(run("evaluate", out / "model.onnx", folder / "digits.npz", "--json").stdout)
    assert scores["accuracy"] > 0.9
    assert scores["examples"] == 200
    assert "accuracy" in run("evaluate", out / "model.onnx", folder / "digits.npz").stdout
    trained, before = (
        json.loads(run("inspect", m, "--json").stdout) for m in (out / "model.onnx", folder / "operated.onnx")
    )
    assert trained["layers"] == before["layers"]  # the marks are kept


@pytest.mark.training
def test_flags_override_the_recipe_and_json_is_for_scripts(folder: Path) -> None:
    done = run(
        "train", folder / "lenet.onnx", folder / "digits.npz", "-r", folder / "pass.yaml", "--apply",
        "-o", folder / "t2", "--epochs", "1", "--set", "train.batch_size=50", "--validation", "0.2", "--json",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["ending"] == "finished"
    assert len(report["history"]) == 1
    assert "val_accuracy" in report["history"][0]
    assert json.loads((folder / "t2" / "history.jsonl").read_text()) == report["history"][0]


@pytest.mark.training
def test_a_training_that_diverges_at_once_exits_with_1_and_saves_nothing(folder: Path) -> None:
    done = run("train", folder / "lenet.onnx", folder / "digits.npz", "--lr", "1e30", "-o", folder / "t3", code=1)
    assert "the loss became" in done.stderr
    assert "nothing was saved" in done.stderr
    assert not (folder / "t3" / "model.onnx").exists()


@pytest.mark.training
def test_a_failed_training_leaves_an_earlier_result_alone(folder: Path) -> None:
    out = folder / "t5"
    words = ["train", folder / "lenet.onnx", folder / "digits.npz", "-o", out, "--epochs", "2"]
    run(*words, "--lr", "1e-3", "-q")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    run(*words, "--lr", "1e30", code=1)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.training
def test_training_without_matplotlib_leaves_the_curves_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    done = run(
        "train", folder / "lenet.onnx", folder / "digits.npz", "-o", folder / "t6", "--epochs", "1", "--lr", "1e-4"
    )
    assert "matplotlib" in done.stderr
    assert "kept the weights of epoch 1" in done.stdout
    assert sorted(p.name for p in (folder / "t6").iterdir()) == ["checkpoints", "history.jsonl", "model.onnx"]


@pytest.mark.training
def test_ctrl_c_finishes_cleanly(folder: Path) -> None:
    out = folder / "t4"
    words = ["train", folder / "lenet.onnx", folder / "digits.npz", "--epochs", "100000", "--lr", "1e-4", "-o", out]
    process = start(*words)
    for _ in range(600):
        if (out / "history.jsonl").is_file() and (out / "history.jsonl").read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted in epoch" in complaint
    assert (out / "model.onnx").is_file()
    assert (out / "curves.png").is_file()


@pytest.mark.training
def test_a_killed_training_goes_on_with_resume(folder: Path) -> None:
    out, alone = folder / "t7", folder / "t8"
    words = ["train", folder / "lenet.onnx", folder / "digits.npz", "--epochs", "6", "--lr", "1e-4"]
    process = start(*words, "-o", out, "--checkpoint-steps", "2")
    while process.poll() is None and not list((out / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    complaint = fails(*words, "-o", out)
    assert "unfinished training" in complaint
    assert "--resume" in complaint
    run(*words, "-o", out, "--resume", "-q")
    run(*words, "-o", alone, "--no-checkpoints", "-q")
    assert not (alone / "checkpoints").exists()
    assert (out / "model.onnx").read_bytes() == (alone / "model.onnx").read_bytes()
    done, wanted = ([json.loads(line) for line in (f / "history.jsonl").open()] for f in (out, alone))
    assert [{**r, "seconds": 0} for r in done] == [{**r, "seconds": 0} for r in wanted]
    assert "epochs was 6 and is 7" in fails("train", *words[1:3], "--epochs", "7", "-o", out, "--resume")


def test_training_faults_name_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    model, data = folder / "lenet.onnx", folder / "digits.npz"
    assert "epochs" in fails("train", model, data, "--epochs", "0", "-o", tmp_path)
    assert "--recipe" in fails("train", model, data, "--set", "train.epochs=1", "-o", tmp_path)
    assert "no such file" in fails("train", model, tmp_path / "none.npz", "-o", tmp_path)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 28, 28), np.uint8), y=np.arange(4) + 8)
    assert "labels go from 8 to 11" in fails("train", model, tmp_path / "d.npz", "-o", tmp_path)


@pytest.mark.skipif("CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers(), reason="has CUDA")
def test_cuda_that_cannot_start_says_what_to_install(folder: Path) -> None:
    message = fails("evaluate", folder / "lenet.onnx", folder / "digits.npz", "--device", "cuda")
    assert "onnx-surgery[cuda]" in message


def test_view_serves_the_graph_with_its_marks(folder: Path) -> None:
    process = start("view", folder / "lenet.onnx", "--no-browser")
    try:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        page = urllib.request.urlopen(address, timeout=20).read().decode()
        (file,) = re.findall(r'content="/(data/[^"]*)"', page)
        assert b"surgery bias" in urllib.request.urlopen(f"{address}/{file}", timeout=20).read()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_the_schema_accepts_the_demos_recipes_and_refuses_a_wrong_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    schema = json.loads(run("schema").stdout)
    recipes = Path(__file__).resolve().parents[2] / "surgery" / "demo"
    for recipe in recipes.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(recipe.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"passes": [{"freeze": {"layer": "all"}}]}, schema)


@pytest.mark.training
@pytest.mark.slow
def test_the_demo_fine_tunes_better_than_from_random_weights(tmp_path: Path) -> None:
    text, _ = start("demo", "-o", tmp_path / "out").communicate(timeout=300)
    accuracy = [float(line.split()[-1].rstrip("%")) for line in text.splitlines() if line.startswith("accuracy ")]
    assert accuracy[0] > 95
    assert accuracy[0] > accuracy[1] + 1
    for file in ("model.onnx", "history.jsonl", "curves.png"):
        assert (tmp_path / "out" / "finetuned" / file).is_file()
    assert "surgery view" in text


def test_the_demo_ends_with_the_fault_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("raise ImportError('not installed')")
    command = [sys.executable, "-m", "surgery", "demo", "-o", str(tmp_path / "out")]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("surgery: the digits come with scikit-learn")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["evaluate", "lenet.onnx", "digits.npz"], ["train", "lenet.onnx", "digits.npz"]])
def test_no_runtime_installed_names_the_extras(folder: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "surgery", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120)
    assert done.returncode == 2
    for extra in ("[cpu]", "[cuda]", "[stock]", "[stock-cuda]"):
        assert extra in done.stderr
    assert len(done.stderr.splitlines()) == 1
