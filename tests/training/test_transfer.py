from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import surgery
from surgery.data import Dataset
from surgery.errors import SurgeryError
from surgery.layers import layers
from surgery.marks import marks, set_marks
from surgery.passes import BatchNormalization, DiscriminativeLearningRates, Freeze, LearningRate
from surgery.recipe import apply
from surgery.training.batchnorm import reestimated
from surgery.training.callbacks import Callback
from surgery.training.phases import restrict
from surgery.training.settings import TrainSettings, changed
from tests.graphs import cnn, parse, run
from tests.nets import Residual, batches, lenet, residual, torch_lenet

pytestmark = pytest.mark.training


def data(count: int = 48, seed: int = 0) -> Dataset:
    ((examples, targets),) = batches(1, count, (3, 8, 8), 4, seed)
    return Dataset(examples, targets)


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}


class Watch(Callback):
    """The weights after each epoch, and what is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, note: str) -> None:
        self.notes.append(note)


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "sgd": ({"name": "sgd", "momentum": 0.9}, lambda groups: torch.optim.SGD(groups, momentum=0.9)),
    "adam": ("adam", torch.optim.Adam),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_phases_are_those_of_pytorch(name: str) -> None:
    """Head, then the last layers at a third of the rate, then all at a tenth; against one PyTorch optimizer to which
    each phase adds its new parameters as a group, so that momentum and Adam's step counts of the old ones go on."""
    optimizer, make = OPTIMIZERS[name]
    net, rate = torch_lenet(), 0.002
    examples, targets = batches(1, 64, (1, 28, 28), 10, 0)[0]
    phases = [
        {"epochs": 2, "train": "head"},
        {"epochs": 2, "train": {"last": 2}, "learning_rate": "×0.3"},
        {"epochs": 2, "learning_rate": 0.0002},
    ]
    result = surgery.train(
        lenet(net), (examples, targets), phases=phases, optimizer=optimizer, learning_rate=rate, batch_size=16, seed=5
    )
    order = Dataset(examples, targets)
    groups = [["ip2"], ["ip1"], ["conv1", "conv2"]]
    used: torch.optim.Optimizer | None = None
    for number, (names, phase_rate) in enumerate(zip(groups, (rate, 0.3 * rate, 0.0002), strict=True)):
        group = {"params": [p for n in names for p in net.get_submodule(n).parameters()], "lr": phase_rate}
        if used is None:
            used = make([group])
        else:
            used.add_param_group(group)
        for each in used.param_groups:
            each["lr"] = phase_rate
        for epoch in (2 * number + 1, 2 * number + 2):
            for x, t in order.batches(16, seed=5, epoch=epoch):
                loss = nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(t))
                net.zero_grad()
                loss.backward()
                used.step()
    found = arrays(result.model)
    for key, value in net.named_parameters():
        np.testing.assert_allclose(found[key], value.detach().numpy(), rtol=2e-3, atol=2e-5, err_msg=key)


def test_each_phase_trains_its_layers_and_tells_so() -> None:
    model, watch = residual(Residual()), Watch()
    before = arrays(model)
    phases = [{"epochs": 1, "train": "head"}, {"epochs": 1, "train": {"last": 3}, "learning_rate": "×0.1"}]
    result = surgery.train(model, data(), phases=phases, learning_rate=0.02, callbacks=[watch], cache=False)
    assert watch.notes == [
        "phase 1 of 2: 1 epoch, 36 parameters, learning rate 0.02",
        "phase 2 of 2: 1 epoch, 628 parameters, learning rate 0.002",
    ]
    after = arrays(result.model)
    same = {name for name, array in before.items() if np.array_equal(array, after[name])}
    assert {n for n in same if "." in n} == {
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
    }
    assert [record["learning_rate"] for record in result.history] == [0.02, 0.002]
    assert not any(marks(v).frozen for v in result.model.graph.initializers.values())  # the marks are the model's own


def test_the_best_epoch_may_be_of_any_phase() -> None:
    model, held = residual(Residual()), data(32, 1)
    phases = [{"epochs": 2, "train": "head", "learning_rate": 0.01}, {"epochs": 2, "learning_rate": 3.0}]
    result = surgery.train(model, data(), phases=phases, validation=held)
    assert result.kept_epoch in (1, 2)
    kept = result.history[result.kept_epoch - 1]
    assert surgery.evaluate(result.model, held).loss == pytest.approx(kept["val_loss"], rel=1e-4)
    later = surgery.train(model, data(), phases=[phases[0], {"epochs": 4, "learning_rate": 0.05}], validation=held)
    assert later.kept_epoch > 2
    kept = later.history[later.kept_epoch - 1]
    assert surgery.evaluate(later.model, held).loss == pytest.approx(kept["val_loss"], rel=1e-4)


def test_what_the_marks_freeze_stays_frozen_in_every_phase() -> None:
    model = residual(Residual())
    Freeze(layers="conv1")(model)
    result = surgery.train(model, data(), phases=[{"epochs": 1, "train": "head"}, {"epochs": 1, "train": "all"}])
    np.testing.assert_array_equal(arrays(result.model)["conv1.weight"], arrays(model)["conv1.weight"])
    assert not np.array_equal(arrays(result.model)["conv2.weight"], arrays(model)["conv2.weight"])


def test_a_schedule_begins_anew_with_each_phase() -> None:
    phases = [{"epochs": 2, "train": "head"}, {"epochs": 3, "learning_rate": "×0.5"}]
    how: dict[str, Any] = {"schedule": {"name": "step", "every": 1, "gamma": 0.1}, "learning_rate": 0.01}
    history = surgery.train(residual(Residual()), data(), phases=phases, **how).history
    assert [r["learning_rate"] for r in history] == pytest.approx([0.01, 0.001, 0.005, 0.0005, 0.00005])


def test_what_no_phase_can_train_is_told_before_the_first() -> None:
    model = residual(Residual())
    Freeze(layers="conv1")(model)
    phases = [{"epochs": 1, "train": "head"}, {"epochs": 1, "train": "conv1"}]
    with pytest.raises(SurgeryError, match=r"'conv1'` selects nothing to train.*unfreeze"):
        surgery.train(model, data(), phases=phases)
    with pytest.raises(SurgeryError, match="matches no layer"):
        surgery.train(model, data(), phases=[{"epochs": 1, "train": "head"}, {"epochs": 1, "train": "nothing"}])


def test_restricting_freezes_the_statistics_of_the_others() -> None:
    model = restrict(residual(Residual()), ["conv2", "bn2"])
    frozen = {layer.name: not layer.trainable for layer in layers(model) if layer.parameters}
    assert frozen == {"conv1": True, "bn1": True, "conv2": False, "bn2": False, "fc": True}
    assert marks(model.graph.initializers["bn1.running_mean"]).frozen
    assert not marks(model.graph.initializers["bn2.running_mean"]).frozen


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"epochs": 1, "learning_rate": "a tenth"}], "'a tenth' is not a learning rate; write a number, or ×0.1"),
        ([{"epochs": 1, "learning_rate": "×0"}], "'×0' is not a learning rate"),
        ([{"epochs": 0}], "greater than 0"),
        ([{"epoch": 1}], r"phases\.0\.epoch: unknown key; did you mean 'epochs'"),
        ([{"epochs": 1, "train": {"frist": 3}}], "did you mean 'first'"),
        ([], "at least 1 item"),
    ],
)
def test_faults_in_phases_are_told(phases: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        changed(TrainSettings(), {"phases": phases})


def test_epochs_are_those_of_the_phases() -> None:
    phases = [{"epochs": 3, "train": "head"}, {"epochs": 5}]
    settings = changed(TrainSettings(), {"phases": phases})
    assert settings.epochs == 8
    assert changed(settings, {"batch_size": 4}).epochs == 8
    assert changed(settings, {"epochs": 8}).epochs == 8
    with pytest.raises(SurgeryError, match="the phases have 8 epochs in all, not 9"):
        changed(settings, {"epochs": 9})


def test_a_recipe_has_phases() -> None:
    from surgery.recipe import Recipe

    recipe = Recipe(train={"phases": [{"epochs": 3, "train": {"last": 2}, "learning_rate": "x0.1"}]})  # type: ignore[arg-type]
    assert recipe.train.phases is not None
    assert recipe.train.phases[0].rate(2.0) == pytest.approx(0.2)


def rates(model: ir.Model) -> dict[str, float]:
    return {
        layer.name: marks(next(iter(layer.parameters.values()))).learning_rate
        for layer in layers(model)
        if layer.parameters
    }


def test_rates_fall_from_the_head_down() -> None:
    """LeNet's four layers, as in the paper: ηˡ⁻¹ = ηˡ / 2.6."""
    model = lenet(torch_lenet())
    apply(model, [{"discriminative_learning_rates": 2.6}])
    assert rates(model) == pytest.approx({"ip2": 1, "ip1": 1 / 2.6, "conv2": 1 / 2.6**2, "conv1": 1 / 2.6**3})
    assert not apply(model, [{"discriminative_learning_rates": 2.6}])


def test_parallel_branches_and_normalizations_have_one_rate() -> None:
    model = parse(
        "(float[N,3,8,8] x) => (float[N,4] y)",
        "a = Conv(x, wa) n = BatchNormalization(a, s, b, m, v) left = Conv(n, wl) deep = Conv(left, wd) "
        "right = Conv(n, wr) sum = Add(deep, right) g = GlobalAveragePool(sum) f = Flatten(g) y = Gemm(f, wy)",
        {
            "wa": [4, 3, 1, 1],
            **{name: [4] for name in "sbmv"},
            **{name: [4, 4, 1, 1] for name in ("wl", "wd", "wr")},
            "wy": [4, 4],
        },
    )
    DiscriminativeLearningRates(factor=2.0)(model)
    assert rates(model) == {"y": 1, "deep": 1 / 2, "right": 1 / 2, "left": 1 / 4, "a": 1 / 8, "n": 1 / 8}


def test_groups_have_one_rate_each() -> None:
    model = residual(Residual())
    DiscriminativeLearningRates(factor=10.0, groups=["head", ["conv2", "bn2"]])(model)
    assert rates(model) == pytest.approx({"fc": 1, "conv2": 0.1, "bn2": 0.1, "conv1": 0.01, "bn1": 0.01})


def test_what_a_rate_of_zero_freezes_stays_frozen() -> None:
    model = residual(Residual())
    LearningRate(layers="conv1", multiplier=0.0)(model)
    DiscriminativeLearningRates()(model)
    assert rates(model)["conv1"] == 0


def test_the_rates_are_used() -> None:
    """One step of plain descent moves each weight by the layer's own share of the gradient."""
    net = torch_lenet()
    model = lenet(net)
    DiscriminativeLearningRates(factor=2.0)(model)
    examples, targets = batches(1, 16, (1, 28, 28), 10, 0)[0]
    sgd = {"name": "sgd", "momentum": 0.0}
    after = arrays(
        surgery.train(model, (examples, targets), epochs=1, batch_size=16, optimizer=sgd, learning_rate=0.1).model
    )
    nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets)).backward()
    for place, name in enumerate(["ip2", "ip1", "conv2", "conv1"]):
        weight = net.get_submodule(name).weight
        assert weight.grad is not None
        want = (weight - 0.1 / 2.0**place * weight.grad).detach().numpy()
        np.testing.assert_allclose(after[f"{name}.weight"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "moves"),
    [
        ("frozen", set()),
        ("fixed_statistics", {"weight", "bias"}),
        ("trained", {"weight", "bias", "running_mean", "running_var"}),
    ],
)
def test_what_training_changes_of_a_batch_normalization(policy: Any, moves: set[str]) -> None:
    model = residual(Residual())
    Freeze(layers="bn2")(model)
    BatchNormalization(policy=policy)(model)
    assert not BatchNormalization(policy=policy)(model).changes or policy == "never"
    result = surgery.train(model, data(), epochs=1, learning_rate=0.01)
    before, after = arrays(model), arrays(result.model)
    for norm in ("bn1", "bn2"):
        moved = {
            r
            for r in ("weight", "bias", "running_mean", "running_var")
            if not np.array_equal(before[f"{norm}.{r}"], after[f"{norm}.{r}"])
        }
        assert moved == moves


def test_with_fixed_statistics_it_trains_as_pytorch_does_in_evaluation_mode() -> None:
    net = Residual()
    model = residual(net)
    BatchNormalization(policy="fixed_statistics")(model)
    examples, targets = batches(1, 16, (3, 8, 8), 4, 0)[0]
    sgd = {"name": "sgd", "momentum": 0.0}
    after = arrays(
        surgery.train(model, (examples, targets), epochs=1, batch_size=16, optimizer=sgd, learning_rate=0.1).model
    )
    net.eval()
    nn.functional.cross_entropy(net(torch.from_numpy(examples)), torch.from_numpy(targets)).backward()
    for name, value in net.named_parameters():
        assert value.grad is not None
        np.testing.assert_allclose(after[name], (value - 0.1 * value.grad).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_no_batch_normalization_is_an_error() -> None:
    with pytest.raises(SurgeryError, match="none of the selected layers is one"):
        BatchNormalization(policy="frozen")(lenet(torch_lenet()))
    with pytest.raises(SurgeryError, match="has no BatchNormalization"):
        surgery.train(lenet(torch_lenet()), batches(1, 8, (1, 28, 28), 4, 0)[0], epochs=1, reestimate_batchnorm=True)


def test_reestimated_statistics_are_those_of_the_data() -> None:
    """By NumPy, from what reaches each normalization: the second sees batches normalized by their own statistics."""
    model = residual(Residual())
    examples = data(96).examples
    assert isinstance(examples, np.ndarray)
    found = arrays(reestimated(model, data(96), ["CPUExecutionProvider"]))

    def conv(x: np.ndarray, number: int) -> np.ndarray:
        weight = torch.from_numpy(arrays(model)[f"conv{number}.weight"])
        return nn.functional.conv2d(torch.from_numpy(x), weight, padding=1).numpy()

    first = [conv(examples[i : i + 32], 1) for i in range(0, 96, 32)]
    second = []
    for x in first:
        mean, var = (f(x.astype(np.float64), axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
        scale, shift = (arrays(model)[f"bn1.{role}"].reshape(1, -1, 1, 1) for role in ("weight", "bias"))
        second.append(conv(np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + shift, 0).astype(np.float32), 2))
    for number, parts in ((1, first), (2, second)):
        whole = np.concatenate(parts).astype(np.float64)
        np.testing.assert_allclose(found[f"bn{number}.running_mean"], whole.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[f"bn{number}.running_var"], whole.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_reestimated_means_are_pytorchs() -> None:
    net = Residual()
    found = arrays(reestimated(residual(net), data(96), ["CPUExecutionProvider"]))
    parts = torch.from_numpy(np.asarray(data(96).examples)).split(32)
    torch.optim.swa_utils.update_bn(parts, net)
    for number in (1, 2):
        want = getattr(net, f"bn{number}").running_mean.numpy()
        np.testing.assert_allclose(found[f"bn{number}.running_mean"], want, rtol=1e-4, atol=1e-6)


def test_training_begins_with_reestimated_statistics_and_keeps_frozen_ones() -> None:
    model = residual(Residual())
    Freeze(layers={"until": "pool"})(model)
    result = surgery.train(model, data(96), epochs=1, batch_size=16, reestimate_batchnorm=True)
    want = arrays(reestimated(model, data(96), ["CPUExecutionProvider"]))
    after = arrays(result.model)
    for number in (1, 2):
        for role in ("running_mean", "running_var"):
            np.testing.assert_array_equal(after[f"bn{number}.{role}"], want[f"bn{number}.{role}"])
            assert not np.array_equal(after[f"bn{number}.{role}"], arrays(model)[f"bn{number}.{role}"])


def test_dropout_is_off_while_statistics_are_measured() -> None:
    model = cnn()
    x = np.random.default_rng(0).normal(size=(64, 3, 10, 10)).astype(np.float32)
    plain = arrays(reestimated(model, Dataset(x, np.zeros(64)), ["CPUExecutionProvider"]))
    apply(model, [{"insert_dropout": {"rate": 0.5, "layers": "c1"}}])
    dropped = arrays(reestimated(model, Dataset(x, np.zeros(64)), ["CPUExecutionProvider"]))
    np.testing.assert_allclose(dropped["m"], plain["m"], rtol=1e-5)
    assert run(model, x)[0].shape == (64, 6)
    set_marks(model.graph.initializers["w1"], trainable=True)
