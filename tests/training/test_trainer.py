from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import surgery
from surgery import runtime
from surgery.data import Dataset
from surgery.errors import SurgeryError
from surgery.marks import labels, set_marks
from surgery.training.callbacks import Callback, JsonLines, Plan
from surgery.training.forward import trainable_parameters
from surgery.training.history import Record, read_history
from surgery.training.losses import strip_activation
from surgery.training.settings import TrainSettings
from surgery.training.step import training_step
from tests.nets import Residual, batches, graph_with_input, model_of, parameter, residual

pytestmark = pytest.mark.training


def data(count: int = 64, seed: int = 0, classes: int = 4) -> Dataset:
    ((examples, targets),) = batches(1, count, (3, 8, 8), classes, seed)
    return Dataset(examples, targets)


@pytest.fixture
def model() -> ir.Model:
    return residual(Residual())


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.plan: Plan | None = None

    def on_train_begin(self, plan: Plan) -> None:
        self.plan = plan
        self.events.append("begin")

    def on_step_end(self, epoch: int, step: int, loss: float) -> None:
        self.events.append(f"{epoch}.{step}")

    def on_epoch_end(self, record: Record) -> None:
        self.events.append(f"epoch {record['epoch']}")

    def on_train_end(self) -> None:
        self.events.append("end")


def test_training_learns_and_leaves_the_given_model_alone(model: ir.Model) -> None:
    before = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    start = surgery.evaluate(model, data(seed=1))
    result = surgery.train(model, data(), epochs=15, batch_size=16, learning_rate=0.05, validation=data(seed=1))
    assert result.ending == "finished"
    assert [r["epoch"] for r in result.history] == list(range(1, 16))
    end = surgery.evaluate(result.model, data(seed=1))
    assert end.loss < start.loss / 2
    assert end.value > 0.8
    assert end.loss == pytest.approx(min(r["val_loss"] for r in result.history), rel=1e-4)
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_weights(model: ir.Model) -> None:
    runs = [surgery.train(model, data(), epochs=2, batch_size=16, seed=seed).model for seed in (7, 7, 8)]
    first, again, other = (m.graph.initializers["fc.weight"].const_value.numpy() for m in runs)  # type: ignore[union-attr]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_last_batch_may_be_smaller(model: ir.Model) -> None:
    recorder = Recorder()
    surgery.train(model, data(37), epochs=1, batch_size=16, callbacks=[recorder])
    assert recorder.events == ["begin", "1.1", "1.2", "1.3", "epoch 1", "end"]
    assert recorder.plan is not None
    assert (recorder.plan.steps, recorder.plan.examples, recorder.plan.metrics) == (3, 37, ["accuracy"])


def test_running_statistics_are_not_counted_as_parameters(model: ir.Model) -> None:
    recorder, notes = Recorder(), []
    recorder.on_note = notes.append  # type: ignore[method-assign]
    trained = sum(p.const_value.numpy().size for p in trainable_parameters(model))  # type: ignore[union-attr]
    everything = sum(v.const_value.numpy().size for v in model.graph.initializers.values())  # type: ignore[union-attr]
    phases = [{"epochs": 1}, {"epochs": 1}]
    for accumulate in (1, 2):
        surgery.train(model, data(8), phases=phases, callbacks=[recorder], accumulate=accumulate)
        assert recorder.plan is not None
        assert recorder.plan.parameters == trained < everything
        assert f"phase 2 of 2: 1 epoch, {trained:,} parameters" in notes[-1]


def test_a_validation_share_is_watched_and_the_best_epoch_kept(model: ir.Model) -> None:
    result = surgery.train(model, data(), epochs=6, learning_rate=0.2, validation=0.25)
    losses = [r["val_loss"] for r in result.history]
    assert result.kept_epoch == int(np.argmin(losses)) + 1


def test_a_share_goes_before_the_validation_part_that_the_data_have(model: ir.Model, tmp_path: Path) -> None:
    """As on the command line; it was left out silently."""
    (x, y), (val_x, val_y) = ((d.examples, d.targets) for d in (data(40), data(8, seed=1)))
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_val=val_x, y_val=val_y)  # type: ignore[arg-type]
    for given, watched in ((None, 8), (0.25, 10), (np.float32(0.25), 10), (0, 0)):
        recorder = Recorder()
        surgery.train(model, tmp_path / "d.npz", epochs=1, validation=given, callbacks=[recorder])
        assert recorder.plan is not None
        assert recorder.plan.validation == watched


def test_keep_last_keeps_the_last_epoch(model: ir.Model) -> None:
    result = surgery.train(model, data(), epochs=4, keep="last", validation=data(seed=1))
    assert result.kept_epoch == 4
    assert surgery.evaluate(result.model, data(seed=1)).loss == pytest.approx(result.history[-1]["val_loss"], rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_training_with_the_last_good_weights(model: ir.Model) -> None:
    result = surgery.train(model, data(), epochs=5, batch_size=16, learning_rate=1e30)
    assert result.ending == "diverged"
    assert "step" in result.message
    assert "lower the learning rate" in result.message
    assert all(np.isfinite(v.const_value.numpy()).all() for v in result.model.graph.initializers.values())  # type: ignore[union-attr]
    assert np.isfinite(surgery.evaluate(result.model, data()).loss)


def test_ctrl_c_ends_the_training_with_the_best_weights(model: ir.Model) -> None:
    class Impatient(Recorder):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            if epoch == 3:
                raise KeyboardInterrupt

    impatient = Impatient()
    result = surgery.train(model, data(), epochs=10, batch_size=16, callbacks=[impatient])
    assert result.ending == "interrupted"
    assert result.kept_epoch == 2
    assert "epoch 3" in result.message
    assert impatient.events[-1] == "end"


def test_max_norm_bounds_the_weights_after_every_update() -> None:
    model = residual(Residual())
    from surgery.passes import MaxNorm

    MaxNorm(value=0.4, layers="all")(model)
    result = surgery.train(model, data(), epochs=3, learning_rate=0.1)
    norms = {
        name: np.sqrt((result.model.graph.initializers[name].const_value.numpy() ** 2).sum(axes))  # type: ignore[union-attr]
        for name, axes in (("conv1.weight", (1, 2, 3)), ("fc.weight", (1,)))
    }
    for norm in norms.values():
        assert norm.max() <= 0.4 * (1 + 1e-5)
        assert norm.max() > 0.399  # the bound is reached, so it is it that holds them


def test_dropout_drops_while_training_and_not_while_watching() -> None:
    op, x = graph_with_input("N", 1000)
    weight = parameter(op, "w", torch.ones(1, 1000) / 1000)
    dropped = op.Dropout(x, op.constant(0.5, ir.DataType.FLOAT), _name="drop")
    model = model_of(op.graph, {"y": op.Gemm(dropped, weight, transB=1, _name="fc")})
    ones = Dataset(np.ones((8, 1000), np.float32), np.ones(8, np.float32))
    recorder: list[float] = []

    class Losses(Callback):
        def on_step_end(self, epoch: int, step: int, loss: float) -> None:
            recorder.append(loss)

    surgery.train(model, ones, epochs=3, batch_size=8, learning_rate=1e-9, callbacks=[Losses()])
    # A mean of 1000 values that are 0 or 2: variance 1/1000.
    assert all(1e-4 < loss < 5e-3 for loss in recorder)
    assert len(set(recorder)) == 3  # other masks each time
    assert surgery.evaluate(model, ones).loss < 1e-9


def test_no_two_dropouts_and_no_two_steps_share_a_mask() -> None:
    op, x = graph_with_input("N", 64)
    half = op.constant(0.5, ir.DataType.FLOAT)
    masks = [op.Dropout(x, half, _name=f"drop{i}") for i in range(3)]
    weight = parameter(op, "w", torch.ones(1, 64))
    model = model_of(op.graph, {"y": op.Gemm(op.Sum(*masks), weight, transB=1, _name="fc")})
    for seed in (0, 1):
        step = training_step(model, [], seed=seed)
        dropped = [node.outputs[0] for node in step.model.graph if node.op_type == "Dropout"]
        step.model.graph.outputs.extend(dropped)
        session = runtime.session(step.model, ["CPUExecutionProvider"])
        feed = {
            "data": np.ones((1, 64), np.float32),
            "target": np.ones((1, 1), np.float32),
            "w": np.ones((1, 64), np.float32),
        }
        feed["learning_rate"] = np.array(0, np.float32)
        seen = [m.tobytes() for _ in range(5) for m in session.run([d.name for d in dropped], feed)]
        assert len(set(seen)) == 15


def test_marks_survive_training(model: ir.Model) -> None:
    set_marks(model.graph.initializers["fc.weight"], learning_rate=0.5)
    result = surgery.train(model, data(), epochs=1)
    assert result.model.graph.initializers["fc.weight"].metadata_props["surgery.learning_rate"] == "0.5"


def test_class_names_of_the_data_are_kept_in_the_model(model: ir.Model) -> None:
    named = dataclasses.replace(data(), labels=("a", "b", "c", "d"))
    assert labels(surgery.train(model, named, epochs=1).model, "prob") == ["a", "b", "c", "d"]


def test_history_lines_can_be_read_back(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "out" / "history.jsonl"
    result = surgery.train(model, data(), epochs=2, callbacks=[JsonLines(path)], validation=data(seed=1))
    assert read_history(path) == json.loads(json.dumps(result.history))
    assert {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"} == set(
        result.history[0]
    )
    path.write_text('{"epoch": 1, "loss": 0.5}\nnot json\n')
    with pytest.raises(SurgeryError, match="line 2"):
        read_history(path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1, 2, 4] * 4), r"labels go from 0 to 4.*takes 0 to 3.*units: 5"),
        (np.array([-1, 1, 2, 3] * 4), "labels go from -1"),
        (np.linspace(0, 1, 16, dtype=np.float32), "needs class numbers"),
    ],
)
def test_targets_that_do_not_fit_are_an_error(model: ir.Model, targets: np.ndarray, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        surgery.train(model, Dataset(data(16).examples, targets), epochs=1)


def test_nothing_to_train_is_an_error(model: ir.Model) -> None:
    from surgery.passes import Freeze

    Freeze(layers="all")(model)
    with pytest.raises(SurgeryError, match="every parameter is frozen"):
        surgery.train(model, data(), epochs=1)
    assert surgery.evaluate(model, data()).examples == 64  # which needs none


def test_a_sigmoid_output_is_trained_by_binary_cross_entropy_on_its_logits() -> None:
    op, x = graph_with_input("N", 6)
    layer = torch.nn.Linear(6, 3)
    gemm = op.Gemm(x, parameter(op, "w", layer.weight), parameter(op, "b", layer.bias), transB=1, _name="fc")
    model = model_of(op.graph, {"p": op.Sigmoid(gemm, _name="sigmoid")})
    rng = np.random.default_rng(0)
    examples = rng.normal(size=(32, 6)).astype(np.float32) * 100  # the sigmoid saturates: its logarithm would overflow
    targets = rng.integers(0, 2, (32, 3)).astype(np.float32)
    scores = surgery.evaluate(model, Dataset(examples, targets))
    logits = layer(torch.from_numpy(examples))
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets))
    assert scores.loss == pytest.approx(float(want.detach()), rel=1e-5)
    assert scores.value == pytest.approx(float(((logits > 0).numpy() == (targets > 0.5)).mean()))


def test_mean_squared_error_keeps_the_softmax() -> None:
    net = Residual()
    model = residual(net).clone()
    assert strip_activation(model.graph, model.graph.outputs[0], "mean_squared_error") is None
    net.eval()
    examples = data(16).examples
    targets = np.eye(4, dtype=np.float32)[data(16).targets]
    got = surgery.evaluate(residual(net), Dataset(examples, targets), loss="mean_squared_error").loss
    want = torch.nn.functional.mse_loss(net(torch.from_numpy(examples)).softmax(1), torch.from_numpy(targets))
    assert got == pytest.approx(float(want.detach()), rel=1e-4)


def test_predictions_are_the_models_output() -> None:
    net = Residual()
    net.eval()
    examples = data(10).examples
    want = net(torch.from_numpy(examples)).softmax(1).detach().numpy()
    np.testing.assert_allclose(surgery.predict(residual(net), examples, batch_size=3), want, rtol=1e-4, atol=1e-6)


def test_a_model_of_one_batch_size_is_refused_with_a_reason() -> None:
    op, x = graph_with_input(1, 12)
    flat = op.Reshape(x, op.constant([1, 12]), _name="flat")
    layer = torch.nn.Linear(12, 2)
    out = op.Gemm(flat, parameter(op, "w", layer.weight), parameter(op, "b", layer.bias), transB=1, _name="fc")
    with pytest.raises(SurgeryError, match="one batch size"):
        training_step(model_of(op.graph, {"y": out}), [])


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ({"name": "step", "every": 2, "gamma": 0.1}, [1, 1, 0.1, 0.1]),
        ({"name": "multi_step", "milestones": [1, 3], "gamma": 0.5}, [1, 0.5, 0.5, 0.25]),
        ({"name": "exponential", "gamma": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"name": "inverse_time", "gamma": 1.0}, [1, 1 / 2, 1 / 3, 1 / 4]),
        ({"name": "polynomial", "power": 2}, [1, 9 / 16, 4 / 16, 1 / 16]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ({"name": "constant", "warmup": 2}, [0.001, 0.5005, 1, 1]),
    ],
)
def test_schedules(schedule: object, factors: list[float]) -> None:
    settings = TrainSettings(epochs=4, learning_rate=2.0, schedule=schedule)  # type: ignore[arg-type]
    assert [settings.rate(step, 10) for step in (0, 10, 20, 30)] == pytest.approx([2 * f for f in factors], rel=1e-5)


def test_names_of_classes_mean_the_same_in_the_examples_to_watch(model: ir.Model) -> None:
    some = data(seed=1)
    pairs = [(x, "abcd"[y]) for x, y in zip(np.asarray(some.examples), np.asarray(some.targets), strict=True)]
    few = [pair for pair in pairs if pair[1] != "a"]
    watched = Dataset(np.stack([x for x, _ in few]), np.array(["abcd".index(name) for _, name in few]))
    how = {"epochs": 1, "batch_size": 16, "learning_rate": 0.05, "seed": 0}
    by_name, by_number = (surgery.train(model, pairs, validation=held, **how) for held in (few, watched))
    assert by_name.history[0]["val_loss"] == pytest.approx(by_number.history[0]["val_loss"])
    again = surgery.evaluate(by_name.model, few)
    assert again.measures["accuracy"] == surgery.evaluate(by_name.model, watched).measures["accuracy"]


def test_class_numbers_for_a_single_unit_say_which_losses_there_are() -> None:
    op, x = graph_with_input("N", 3)
    model = model_of(op.graph, {"y": op.Gemm(x, parameter(op, "fc.weight", torch.zeros(3, 1)), _name="fc")})
    examples, targets = np.random.default_rng(0).normal(0, 1, (8, 3)).astype(np.float32), np.arange(8) % 2
    with pytest.raises(SurgeryError, match=r"knows one class; .*units: 2.*binary_cross_entropy.*mean_squared_error"):
        surgery.train(model, (examples, targets), epochs=1)
    for loss in ("binary_cross_entropy", "mean_squared_error"):
        assert surgery.train(model, (examples, targets), epochs=1, loss=loss).ending == "finished"
