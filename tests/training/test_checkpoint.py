from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import surgery
from surgery.errors import SurgeryError
from surgery.passes import InsertDropout
from surgery.training.callbacks import Callback, Csv, JsonLines
from surgery.training.checkpoint import Checkpoints, read_state, write_state
from surgery.training.history import Record, read_history
from surgery.training.tensors_file import read_tensors, write_tensors
from surgery.training.trainer import Trained
from tests.conftest import ROOT
from tests.nets import Residual, batches, residual

pytestmark = pytest.mark.training

CASES: dict[str, dict[str, Any]] = {
    "momentum": {},
    "adam": {"optimizer": "adam", "schedule": "cosine"},
    "plateau": {"schedule": {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.5}},
    "accumulated": {"accumulate": 3, "ema": 0.9},
    "phases": {
        "epochs": 4,
        "optimizer": "adam",
        "phases": [{"epochs": 2, "train": "head"}, {"epochs": 2, "learning_rate": "×0.1"}],
    },
    "augmented": {"augment": {"mixup": 0.4}},
}


class Killed(Exception):
    """Stands for what ends a training without a word."""


class Kill(Callback):
    def __init__(self, epoch: int, step: int) -> None:
        self._when = epoch, step

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == self._when:
            raise Killed


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], float] = {}
        self.notes: list[str] = []

    def on_note(self, note: str) -> None:
        self.notes.append(note)

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        self.seen[epoch, step] = loss


def network() -> ir.Model:
    model = residual(Residual())
    InsertDropout(hidden=0.3)(model)
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    ((examples, targets),) = batches(1, 50, (3, 8, 8), 4, 0)
    return examples, targets


def held() -> tuple[np.ndarray, np.ndarray]:
    ((examples, targets),) = batches(1, 20, (3, 8, 8), 4, 1)
    return examples, targets


def train(**how: Any) -> Trained:
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 8, "seed": 3, "validation": held()} | how
    return surgery.train(network(), data(), **settings)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}


def without_time(history: list[Record]) -> list[Record]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("when", [(2, 5), (3, 1), (4, 7)])
def test_a_training_goes_on_to_the_same_numbers(case: str, when: tuple[int, int], tmp_path: Path) -> None:
    """Every loss and every weight to the last bit: masks, order, optimizer and rates go on where they were."""
    whole, before, after = Losses(), Losses(), Losses()
    want = train(**CASES[case], callbacks=[whole])
    with pytest.raises(Killed):
        train(**CASES[case], callbacks=[before, Kill(*when)], checkpoints=Checkpoints(tmp_path, steps=3))
    got = train(**CASES[case], callbacks=[after], checkpoints=Checkpoints(tmp_path, steps=3), resume=True)
    first = min(after.seen)
    assert (1, 1) < first <= when
    done = f", after step {first[1] - 1}" if first[1] > 1 else ""
    assert after.notes[0] == f"going on in epoch {first[0]}{done}"
    assert when[1] - first[1] < 3 or first[0] < when[0]
    assert {**before.seen, **after.seen} == whole.seen
    assert {key: before.seen[key] for key in before.seen.keys() & after.seen.keys()} == {
        key: after.seen[key] for key in before.seen.keys() & after.seen.keys()
    }
    assert without_time(got.history) == without_time(want.history)
    assert got.kept_epoch == want.kept_epoch
    for name, array in weights(want.model).items():
        np.testing.assert_array_equal(weights(got.model)[name], array, err_msg=name)


def test_dropout_and_order_are_those_of_the_seed_not_of_the_place_gone_on_from(tmp_path: Path) -> None:
    """So the test above compares what does change: another seed gives other losses from the first step on."""
    one, other = Losses(), Losses()
    train(callbacks=[one], epochs=1)
    train(callbacks=[other], epochs=1, seed=4)
    assert one.seen[1, 1] != other.seen[1, 1]


def test_every_epoch_leaves_a_checkpoint_and_old_ones_go(tmp_path: Path) -> None:
    result = train(checkpoints=Checkpoints(tmp_path, keep=3))
    names = [path.name for path in Checkpoints(tmp_path).files()]
    assert names == [f"step-{7 * epoch:08}.safetensors" for epoch in (2, 3, 4)]
    best, metadata = read_tensors(tmp_path / "best.safetensors")
    assert json.loads(metadata["record"])["epoch"] == result.kept_epoch
    for name, array in best.items():
        np.testing.assert_array_equal(weights(result.model)[name], array)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "best.safetensors"}


def test_settings_that_another_version_lacks_are_no_difference(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    path = Checkpoints(tmp_path).files()[-1]
    state, identity = read_state(path)
    del identity["settings"]["cache"], identity["settings"]["optimizer"]["nesterov"]
    write_state(path, state, identity)
    assert len(train(checkpoints=tmp_path, resume=True).history) == 4


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    want, again = train(checkpoints=tmp_path), Losses()
    got = train(checkpoints=tmp_path, resume=True, callbacks=[again])
    assert not again.seen
    assert again.notes == ["the training had finished before: nothing is left to do"]
    assert got.ending == "finished"
    assert got.history == want.history
    np.testing.assert_array_equal(weights(got.model)["fc.weight"], weights(want.model)["fc.weight"])


def test_one_that_stopped_early_is_not_either(tmp_path: Path) -> None:
    how: dict[str, Any] = {"early_stopping": {"patience": 1, "min_delta": 10.0}, "checkpoints": tmp_path}
    want = train(**how)
    assert want.ending == "stopped"
    got = train(**how, resume=True)
    assert (got.ending, got.history) == (want.ending, want.history)


def test_the_history_file_has_the_epochs_from_before(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "history.jsonl")
    with pytest.raises(Killed):
        train(checkpoints=tmp_path / "c", callbacks=[lines, Kill(3, 2)])
    train(checkpoints=tmp_path / "c", callbacks=[JsonLines(tmp_path / "history.jsonl")], resume=True)
    assert [record["epoch"] for record in read_history(tmp_path / "history.jsonl")] == [1, 2, 3, 4]


def test_a_finished_training_leaves_the_files_that_are_asked_for_later(tmp_path: Path) -> None:
    phases = {"epochs": 2, "phases": [{"epochs": 1, "train": "head"}, {"epochs": 1}]}
    done = train(checkpoints=tmp_path / "c", **phases)
    seen = Losses()
    files = [JsonLines(tmp_path / "history.jsonl"), Csv(tmp_path / "history.csv")]
    train(checkpoints=tmp_path / "c", resume=True, callbacks=[seen, *files], **phases)
    assert read_history(tmp_path / "history.jsonl") == done.history
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    assert seen.notes == ["the training had finished before: nothing is left to do"]


def test_nothing_to_go_on_from_begins_anew(tmp_path: Path) -> None:
    assert len(train(checkpoints=tmp_path, resume=True).history) == 4
    with pytest.raises(SurgeryError, match="needs `checkpoints`"):
        train(resume=True)


def test_ctrl_c_can_be_gone_on_from(tmp_path: Path) -> None:
    class Impatient(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            if (epoch, step) == (3, 4):
                raise KeyboardInterrupt

    want = train()
    assert train(checkpoints=tmp_path, callbacks=[Impatient()]).ending == "interrupted"
    got = train(checkpoints=tmp_path, resume=True)
    assert got.ending == "finished"
    assert without_time(got.history) == without_time(want.history)
    assert read_state(Checkpoints(tmp_path).files()[-1])[0].ending == "finished"


def _interrupted(folder: Path) -> None:
    with pytest.raises(Killed):
        train(checkpoints=folder, callbacks=[Kill(3, 2)])


def _other_weights() -> ir.Model:
    return _with_dropout(residual(Residual(seed=1)))


def _with_dropout(model: ir.Model) -> ir.Model:
    InsertDropout(hidden=0.3)(model)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: train_on(learning_rate=0.5), "learning_rate was null and is 0.5"),
        (lambda: train_on(model=_other_weights()), "the model's weights differ"),
        (lambda: train_on(model=residual(Residual())), "the model's graph or marks differ"),
        (lambda: train_on(examples=(data()[0] + 1, data()[1])), "the data differ"),
        (lambda: train_on(examples=(data()[0], 3 - data()[1])), "the data differ"),
        (lambda: train_on(validation=data()), "the validation data differ"),
    ],
)
def test_another_training_is_not_gone_on_with(
    change: Callable[[], Callable[[Path], Any]], message: str, tmp_path: Path
) -> None:
    _interrupted(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SurgeryError, match=message):
        change()(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def train_on(**other: Any) -> Callable[[Path], Any]:
    model, examples = other.pop("model", None) or network(), other.pop("examples", None) or data()
    how: dict[str, Any] = {"epochs": 4, "batch_size": 8, "seed": 3, "validation": held()} | other
    return lambda folder: surgery.train(model, examples, checkpoints=folder, resume=True, **how)


@pytest.mark.parametrize("restart", [False, True])
def test_the_best_weights_of_a_training_before_go_with_its_checkpoints(restart: bool, tmp_path: Path) -> None:
    """They stayed until the new one's first epoch ended, as if they were its."""
    train(epochs=1, checkpoints=tmp_path)
    assert (tmp_path / "best.safetensors").exists()
    with pytest.raises(Killed):
        train(checkpoints=Checkpoints(tmp_path, steps=2, restart=restart), callbacks=[Kill(1, 3)])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.safetensors"]


def test_one_that_was_interrupted_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """Ctrl-C says that --resume goes on; a forgotten one removed all that there was."""

    class Press(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            if (epoch, step) == (2, 2):
                raise KeyboardInterrupt

    assert train(checkpoints=tmp_path, callbacks=[Press()]).ending == "interrupted"
    with pytest.raises(SurgeryError, match=r"unfinished training \(epoch 2, step 0\); --resume"):
        train(checkpoints=tmp_path)
    assert train(checkpoints=Checkpoints(tmp_path, restart=True)).ending == "finished"


def test_an_unfinished_training_is_not_overwritten_unasked(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    with pytest.raises(SurgeryError, match=r"unfinished training \(epoch 3, step 0\).*--resume.*--restart"):
        train(checkpoints=tmp_path)
    assert train(checkpoints=Checkpoints(tmp_path, restart=True), epochs=1).ending == "finished"
    assert [path.name for path in Checkpoints(tmp_path).files()] == ["step-00000007.safetensors"]


def test_one_that_diverged_is_not_gone_on_with(tmp_path: Path) -> None:
    diverging = {"learning_rate": 1e30, "checkpoints": Checkpoints(tmp_path, steps=1)}
    assert train(**diverging).ending == "diverged"
    with pytest.raises(SurgeryError, match="lower learning rate"):
        train(**diverging, resume=True)
    assert train(checkpoints=tmp_path).ending == "finished"


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen = Losses()
    with pytest.raises(SurgeryError, match="cannot be written"):
        train(checkpoints=tmp_path / "file" / "checkpoints", callbacks=[seen])
    assert not seen.seen


@contextlib.contextmanager
def _files_up_to(size: int) -> Any:
    """Makes writing past `size` bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_hidden_files_of_the_user_in_the_folder_stay(tmp_path: Path) -> None:
    """All of them were removed: also where the folder is one's home."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".profile").write_text("mine")
    leftover = tmp_path / ".step-00000001.safetensors.x.tmp"
    leftover.write_text("half")
    train(epochs=1, checkpoints=tmp_path)
    assert (tmp_path / ".git").is_dir()
    assert (tmp_path / ".profile").read_text() == "mine"
    assert not leftover.exists()
    assert not (tmp_path / ".writable").exists()


def test_a_history_that_a_full_disk_cuts_off_is_told_in_a_line(tmp_path: Path) -> None:
    """Closing the file failed as writing had, and that was what came out, with a traceback."""
    with _files_up_to(150), pytest.raises(SurgeryError, match=r"h\.jsonl: cannot be written"):
        train(callbacks=[JsonLines(tmp_path / "h.jsonl")])


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Fill(Callback):
        def __init__(self, stack: contextlib.ExitStack) -> None:
            self._stack = stack

        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            if (epoch, step) == (3, 2):
                self._stack.enter_context(_files_up_to(1000))

    want = train()
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(SurgeryError, match=r"step-\d+\.safetensors: cannot be written"),
    ):
        train(checkpoints=tmp_path, callbacks=[Fill(stack)])
    assert [path.name for path in sorted(tmp_path.glob("step*"))] == [
        "step-00000007.safetensors",
        "step-00000014.safetensors",
    ]
    assert not list(tmp_path.glob(".*"))
    got = train(checkpoints=tmp_path, resume=True)
    assert without_time(got.history) == without_time(want.history)


@pytest.mark.parametrize("harm", ["cut", "garbage", "header", "empty"])
def test_a_damaged_checkpoint_is_named(harm: str, tmp_path: Path) -> None:
    _interrupted(tmp_path)
    path = Checkpoints(tmp_path).files()[-1]
    whole = path.read_bytes()
    damaged = {"cut": whole[:-10], "garbage": b"x" * 100, "header": whole[:40], "empty": b""}
    path.write_bytes(damaged[harm])
    with pytest.raises(SurgeryError, match=f"{path.name}: is not a whole safetensors file"):
        train(checkpoints=tmp_path, resume=True)


def test_the_format_is_that_of_safetensors(tmp_path: Path) -> None:
    """By hand, from the format's description: length, header, little-endian data without gaps."""
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.int64),
        "c": np.zeros((0, 2)),
    }
    write_tensors(tmp_path / "x.safetensors", arrays, {"k": "v"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header["__metadata__"] == {"k": "v"}
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert header["b"] == {"dtype": "I64", "shape": [], "data_offsets": [24, 32]}
    assert raw[8 + length :] == arrays["a"].tobytes() + (7).to_bytes(8, "little")
    found, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"k": "v"}
    assert {n: (a.dtype, a.shape) for n, a in found.items()} == {n: (a.dtype, a.shape) for n, a in arrays.items()}


def drill(folder: str, kill: bool) -> None:
    """Trains in a process of its own, again and again if `kill`: until one gets to the end before it is killed.

    Prints each process's steps.
    """
    rng = random.Random(0)
    code = -1
    while code != 0:
        print("process", flush=True)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _run(folder, writing)
        os.close(writing)
        with open(reading) as lines:
            for line in itertools.islice(lines, rng.randrange(40) if kill else None):
                print(line, end="", flush=True)
            if kill:
                time.sleep(rng.uniform(0, 0.01))
                os.kill(child, signal.SIGKILL)
            print(lines.read(), end="", flush=True)
        code = os.waitpid(child, 0)[1]
        if code not in (0, signal.SIGKILL):
            raise SystemExit(1)


def _run(folder: str, writing: int) -> None:
    class Tell(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            os.write(writing, f"{7 * (epoch - 1) + step} {loss!r}\n".encode())

    try:
        checkpoints = Checkpoints(folder, steps=3)
        how: dict[str, Any] = {"epochs": 40, "batch_size": 8, "callbacks": [Tell()]}
        result = surgery.train(network(), data(), checkpoints=checkpoints, resume=True, **how)
        surgery.save(result.model, f"{folder}/model.onnx")
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def _drilled(folder: Path, kill: bool) -> list[list[tuple[int, str]]]:
    """The steps of each process, as number and loss."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = f"from tests.training.test_checkpoint import drill; drill({str(folder)!r}, {kill})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code]
    output = subprocess.run(words, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    parts = [part.split() for part in output.split("process\n")[1:]]
    return [list(zip(map(int, part[::2]), part[1::2], strict=True)) for part in parts]


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_at_most_one_interval(tmp_path: Path) -> None:
    """Kills the process again and again, and compares with one that was left alone."""
    (alone,) = _drilled(tmp_path / "alone", kill=False)
    losses = dict(alone)
    assert list(losses) == list(range(1, 281))
    reached, moments = 0, set()
    processes = _drilled(tmp_path / "killed", kill=True)
    assert len(processes) > 5
    for done in processes:
        assert all(losses[step] == loss for step, loss in done)
        if done:
            assert reached - 3 < done[0][0] <= reached + 1  # the first step after the last checkpoint
            reached = done[-1][0]
            moments.add(reached % 3)
    assert reached == 280
    assert len(moments) > 1  # it was killed between checkpoints
    want, got = (weights(surgery.load(tmp_path / name / "model.onnx")) for name in ("alone", "killed"))
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
