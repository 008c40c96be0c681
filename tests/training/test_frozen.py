from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import surgery
from surgery import runtime
from surgery.data import Dataset
from surgery.errors import SurgeryError
from surgery.passes import Freeze, InsertDropout
from surgery.training import stages
from surgery.training.callbacks import Callback
from surgery.training.frozen import CacheSettings, Prefix, Uncached, features
from surgery.training.prefix import Split, split
from tests.nets import Residual, batches, graph_with_input, lenet, model_of, parameter, residual, torch_lenet

pytestmark = pytest.mark.training
CPU = ["CPUExecutionProvider"]


class Notes(Callback):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[int, int]] = []

    def on_frozen(self, done: int, total: int) -> None:
        self.done.append((done, total))

    def on_note(self, note: str) -> None:
        self.lines.append(note)


def images(size: int, channels: int = 3, count: int = 48, seed: int = 0) -> Dataset:
    ((examples, targets),) = batches(1, count, (channels, size, size), 4, seed)
    return Dataset(examples, targets)


def two_outputs() -> ir.Model:
    """A trunk with two heads, one of which reads the trunk's middle, too."""
    torch.manual_seed(0)
    op, x = graph_with_input("N", 3, 16, 16)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)]
    middle = op.Relu(op.Conv(x, *_weights(op, "conv1", convs[0]), kernel_shape=[3, 3], pads=[1] * 4, _name="conv1"))
    end = op.Conv(
        middle, *_weights(op, "conv2", convs[1]), kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2], _name="conv2"
    )
    pooled = op.Flatten(op.GlobalAveragePool(op.Relu(end)))
    early = op.Flatten(op.GlobalAveragePool(middle))
    kind = op.Gemm(pooled, *_weights(op, "kind", nn.Linear(12, 4)), transB=1, _name="kind")
    both = op.Concat(pooled, early, axis=1)
    place = op.Gemm(both, *_weights(op, "place", nn.Linear(20, 2)), transB=1, _name="place")
    return model_of(op.graph, {"class": op.Softmax(kind, axis=1), "box": place})


def two_inputs() -> ir.Model:
    """Images and numbers; the numbers go straight to what is trained, and by a frozen layer, too."""
    torch.manual_seed(1)
    op, x = graph_with_input("N", 3, 8, 8)
    numbers = ir.val("numbers", ir.DataType.FLOAT, ("N", 5))
    op.graph.inputs.append(numbers)
    conv = op.Conv(x, *_weights(op, "conv", nn.Conv2d(3, 6, 3)), kernel_shape=[3, 3], _name="conv")
    seen = op.Flatten(op.MaxPool(op.Relu(conv), kernel_shape=[2, 2], strides=[2, 2]))
    known = op.Relu(op.Gemm(numbers, *_weights(op, "dense", nn.Linear(5, 7)), transB=1, _name="dense"))
    joined = op.Concat(seen, known, numbers, axis=1)
    return model_of(op.graph, {"y": op.Gemm(joined, *_weights(op, "fc", nn.Linear(66, 4)), transB=1, _name="fc")})


def _weights(op: Any, name: str, module: nn.Module) -> list[ir.Value]:
    return [parameter(op, f"{name}.{role}", value) for role, value in module.named_parameters()]


def frozen(model: ir.Model, layers: Any) -> ir.Model:
    Freeze(layers=layers)(model)
    return model


def _and_numbers(data: Dataset) -> Dataset:
    numbers = np.random.default_rng(5).normal(size=(len(data), 5)).astype(np.float32)
    return dataclasses.replace(data, examples={"data": np.asarray(data.examples), "numbers": numbers}, prepare=Same())


@dataclasses.dataclass(frozen=True)
class Same:
    def __call__(self, examples: Any) -> Any:
        return examples


def _targets(data: Dataset) -> Dataset:
    box = np.random.default_rng(6).normal(size=(len(data), 2)).astype(np.float32)
    return dataclasses.replace(data, targets={"class": data.targets, "box": box})


def _dropped() -> ir.Model:
    model = residual(Residual())
    InsertDropout(rate=0.4, layers="conv2")(model)
    return model


NETWORKS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "head": (lambda: frozen(residual(Residual()), {"until": "pool"}), images, (8,), {}),
    "last block": (lambda: frozen(residual(Residual()), {"first": 2}), images, (8,), {}),
    "shortcut": (lambda: frozen(residual(Residual()), {"first": 3}), images, (8,), {}),
    "lenet": (lambda: frozen(lenet(torch_lenet()), {"first": 2}), images, (28, 1), {}),
    "dropout behind": (lambda: frozen(_dropped(), {"first": 2}), images, (8,), {"optimizer": "adam"}),
    "two outputs": (
        lambda: frozen(two_outputs(), ["conv1", "conv2"]),
        lambda *how, **more: _targets(images(*how, **more)),
        (16,),
        {"losses": {"class": "cross_entropy", "box": "mean_squared_error"}},
    ),
    "one of two outputs": (lambda: frozen(two_outputs(), ["conv1", "conv2"]), images, (16,), {"output": "class"}),
    "two inputs": (
        lambda: frozen(two_inputs(), ["conv", "dense"]),
        lambda *how, **more: _and_numbers(images(*how, **more)),
        (8,),
        {"loss": "cross_entropy"},
    ),
    "accumulated": (lambda: frozen(residual(Residual()), {"first": 2}), images, (8,), {"accumulate": 2, "ema": 0.9}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_those_without_the_cache(name: str) -> None:
    make, data, shape, how = NETWORKS[name]
    examples, held = data(*shape), data(*shape, count=20, seed=1)
    how = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01} | how
    notes = Notes()
    got = surgery.train(make(), examples, validation=held, callbacks=[notes], **how)
    want = surgery.train(make(), examples, validation=held, cache=False, **how)
    (line,) = notes.lines
    assert f"computed once for {len(examples) + len(held)} examples" in line
    for record, other in zip(got.history, want.history, strict=True):
        assert {k: v for k, v in record.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in other.items() if k != "seconds"}, rel=1e-4, abs=1e-5
        )
    for key, value in want.model.graph.initializers.items():
        mine = got.model.graph.initializers[key].const_value
        assert mine is not None
        assert value.const_value is not None
        np.testing.assert_allclose(mine.numpy(), value.const_value.numpy(), rtol=1e-3, atol=1e-5)


def parts(model: ir.Model) -> Split:
    found = split(model, {str(o.name) for o in model.graph.outputs})
    assert isinstance(found, Split)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_two_parts_make_up_the_network(name: str) -> None:
    make, data, shape, _ = NETWORKS[name]
    model, examples = make(), data(*shape, count=5).examples
    feed = examples if isinstance(examples, dict) else {"data": examples}
    found = parts(model)
    first = runtime.session(found.prefix, CPU)
    values = feed | dict(
        zip(
            (o.name for o in first.get_outputs()),
            first.run(None, {i.name: feed[i.name] for i in first.get_inputs()}),
            strict=True,
        )
    )
    rest = runtime.session(found.rest, CPU)
    got = rest.run(None, {name: values[name] for name in found.cut})
    want = runtime.session(model, CPU).run(None, feed)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_cut_is_where_the_values_are_smallest() -> None:
    """Behind global pooling (12 and 8 numbers), not at the feature maps that the second head reads (8 × 16 × 16)."""
    found = parts(frozen(two_outputs(), ["conv1", "conv2"]))
    assert sorted(shape for _, shape in found.cut.values()) == [(8,), (12,)]
    assert found.bytes_per_example == 80


def test_what_is_cheap_is_computed_again_where_that_makes_the_cut_smaller() -> None:
    """Two branches of Relu and Tanh behind a frozen layer, tiled: the layer's own output is kept, once."""
    torch.manual_seed(0)
    op, x = graph_with_input("N", 3, 8, 8)
    conv = op.Conv(x, *_weights(op, "conv", nn.Conv2d(3, 4, 3)), kernel_shape=[3, 3], _name="conv")
    pooled = op.Flatten(op.GlobalAveragePool(conv))
    wide = op.Concat(op.Relu(pooled), op.Tanh(pooled), pooled, axis=1)
    model = model_of(op.graph, {"y": op.Gemm(wide, *_weights(op, "fc", nn.Linear(12, 4)), transB=1, _name="fc")})
    found = parts(frozen(model, "conv"))
    assert [shape for _, shape in found.cut.values()] == [(4,)]


def test_shapes_that_an_exporter_computes_with_the_size_of_the_batch_are_known() -> None:
    """As PyTorch's of a view: Shape, Gather, Unsqueeze, Concat, Reshape; shape inference gives up there."""
    torch.manual_seed(0)
    op, x = graph_with_input("N", 3, 8, 8)
    conv = op.Conv(x, *_weights(op, "conv", nn.Conv2d(3, 6, 3)), kernel_shape=[3, 3], _name="conv")
    count = op.Unsqueeze(op.Gather(op.Shape(conv), op.constant(np.array(0))), op.constant([0]))
    view = op.Reshape(conv, op.Concat(count, op.constant([6, -1]), axis=0))
    dense = op.MatMul(view, parameter(op, "dense.weight", torch.randn(36, 5)), _name="dense")
    mean = op.ReduceMean(op.Relu(dense), op.constant([1]), keepdims=0)
    model = model_of(op.graph, {"y": op.Gemm(mean, *_weights(op, "fc", nn.Linear(5, 4)), transB=1, _name="fc")})
    found = parts(frozen(model, ["conv", "dense"]))
    assert [shape for _, shape in found.cut.values()] == [(5,)]
    how: dict[str, Any] = {"epochs": 2, "loss": "cross_entropy"}
    got, want = (surgery.train(model, images(8), cache=on, **how).history for on in (True, False))
    assert [r["loss"] for r in got] == pytest.approx([r["loss"] for r in want], rel=1e-5)


def test_marks_and_the_order_of_outputs_stay() -> None:
    model = frozen(two_outputs(), ["conv1", "conv2"])
    found = parts(model)
    assert [o.name for o in found.rest.graph.outputs] == ["class", "box"]
    assert {n for n, v in found.rest.graph.initializers.items() if "." in n} == {
        "kind.weight",
        "kind.bias",
        "place.weight",
        "place.bias",
    }
    assert [i.name for i in model.graph.inputs] == ["data"]  # left as it was


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: frozen(_input_dropout(), {"first": 2}), "dropout 'data/dropout', which comes before any layer"),
        (lambda: frozen(two_outputs(), ["conv1", "conv2", "kind"]), "nothing of output 'class' is trained"),
    ],
)
def test_where_a_cache_would_be_wrong_the_reason_is_told(model: Any, message: str) -> None:
    network = model()
    assert message in str(split(network, {str(o.name) for o in network.graph.outputs}))


def _input_dropout() -> ir.Model:
    model = residual(Residual())
    InsertDropout(input=0.2)(model)
    return model


def test_a_dropout_in_the_frozen_part_ends_the_prefix() -> None:
    model = residual(Residual())
    InsertDropout(rate=0.5, layers="conv1")(model)
    frozen(model, {"until": "pool"})
    (name,) = parts(model).cut
    assert name == "relu1"
    notes = Notes()
    surgery.train(model, images(8), epochs=1, callbacks=[notes])
    assert notes.lines[0].endswith("; dropout 'conv1/dropout' behind it drops others each time")


def test_a_dropout_that_drops_nothing_does_not() -> None:
    model = residual(Residual())
    InsertDropout(rate=0.5, layers="conv1")(model)
    InsertDropout(rate=0.0, layers="conv1")(model)
    (name,) = parts(frozen(model, {"until": "pool"})).cut
    assert name == "flat"


def test_statistics_that_change_end_the_prefix() -> None:
    """A frozen convolution in front of a normalization whose statistics follow the batches, with a shortcut around."""
    assert sorted(parts(frozen(residual(Residual()), {"first": 3})).cut) == ["conv2", "relu1"]


def test_nothing_frozen_is_nothing_to_tell() -> None:
    notes = Notes()
    surgery.train(residual(Residual()), images(8), epochs=1, callbacks=[notes])
    assert notes.lines == []


def test_a_cheap_layer_with_large_results_is_computed_again() -> None:
    """VGG's first convolution: 87 million multiplications for 13 MB."""
    torch.manual_seed(0)
    op, x = graph_with_input("N", 3, 224, 224)
    value = op.Relu(op.Conv(x, *_weights(op, "a", nn.Conv2d(3, 64, 3)), kernel_shape=[3, 3], pads=[1] * 4, _name="a"))
    value = op.Conv(value, *_weights(op, "b", nn.Conv2d(64, 4, 3)), kernel_shape=[3, 3], _name="b")
    model = model_of(op.graph, {"y": op.Flatten(op.GlobalAveragePool(value))})
    assert "12,845,056 bytes" in str(split(frozen(model, "a"), {"y"}))


def test_augmentation_switches_it_off_for_the_examples_only() -> None:
    notes = Notes()
    model = frozen(residual(Residual()), {"until": "pool"})
    how: dict[str, Any] = {"epochs": 2, "augment": {"mixup": 0.5}, "validation": images(8, count=20, seed=1)}
    got = surgery.train(model, images(8), callbacks=[notes], **how)
    (line,) = notes.lines
    assert "computed once for 20 examples" in line
    assert "of the examples to train on in each epoch, as augmentation makes other examples each epoch" in line
    want = surgery.train(model, images(8), cache=False, **how)
    assert [r["val_loss"] for r in got.history] == pytest.approx([r["val_loss"] for r in want.history], rel=1e-4)


def test_examples_that_depend_on_each_other_are_not_cached() -> None:
    torch.manual_seed(0)
    op, x = graph_with_input("N", 6)
    dense = op.Gemm(x, *_weights(op, "dense", nn.Linear(6, 6)), transB=1, _name="dense")
    mixed = op.Softmax(dense, axis=0)
    model = model_of(op.graph, {"y": op.Gemm(mixed, *_weights(op, "fc", nn.Linear(6, 4)), transB=1, _name="fc")})
    data = Dataset(np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32), np.arange(16) % 4)
    notes = Notes()
    surgery.train(frozen(model, "dense"), data, epochs=1, callbacks=[notes])
    assert "computed in each epoch, as it mixes the examples of a batch" in notes.lines[0]


def cached(settings: CacheSettings, model: ir.Model | None = None, data: Dataset | None = None) -> Any:
    model = model or frozen(lenet(torch_lenet()), {"first": 2})
    return features(Prefix(parts(model), CPU), data or images(28, 1), settings)


def test_what_is_too_large_for_memory_goes_to_a_file_and_what_is_too_large_for_that_is_not_kept() -> None:
    """LeNet's 48 × 800 numbers behind the convolutions are 153,600 bytes."""
    assert cached(CacheSettings(memory=153_600e-9)).place == "in memory"
    on_disk = cached(CacheSettings(memory=153_599e-9))
    assert on_disk.place == "in a memory-mapped file"
    (array,) = on_disk.data.examples.values()
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, *cached(CacheSettings()).data.examples.values())
    with pytest.raises(Uncached, match=r"0\.0 GB, and cache\.disk allows 0\.0001"):
        cached(CacheSettings(memory=0, disk=1e-4))
    assert "cache.disk allows" in _note(cache={"memory": 0, "disk": 0})


def _note(**how: Any) -> str:
    notes = Notes()
    surgery.train(frozen(lenet(torch_lenet()), {"first": 2}), images(28, 1), epochs=1, callbacks=[notes], **how)
    return notes.lines[0]


def test_how_far_it_is_is_told() -> None:
    notes = Notes()
    how: dict[str, Any] = {"validation": images(28, 1, 20, 1), "callbacks": [notes]}
    surgery.train(frozen(lenet(torch_lenet()), {"first": 2}), images(28, 1), epochs=1, **how)
    assert notes.done == [(0, 48), (32, 48), (48, 48), (0, 20), (20, 20)]


def test_half_the_size_is_near_enough() -> None:
    whole, half = (cached(CacheSettings(float16=on)) for on in (False, True))
    assert half.size * 2 == whole.size
    ((wide, _),), ((narrow, _),) = (list(f.data.batches(48)) for f in (whole, half))
    for name, array in narrow.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wide[name], rtol=1e-3, atol=1e-6)
        assert not np.array_equal(array, wide[name])


def test_numbers_that_half_the_size_cannot_hold_are_not_kept() -> None:
    data = images(28, 1)
    large = dataclasses.replace(data, examples=np.asarray(data.examples) * 1e6)
    with pytest.raises(Uncached, match="float16 cannot hold its values"):
        cached(CacheSettings(float16=True), data=large)


def test_a_folder_keeps_it_for_the_next_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CacheSettings(folder=str(tmp_path / "cache"))
    first = cached(settings)
    (folder,) = (tmp_path / "cache").iterdir()
    assert first.place == f"in {folder}"

    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Prefix, "values", fail)
    again = cached(settings)
    assert again.place == f"read from {folder}"
    for name, array in again.data.examples.items():
        np.testing.assert_array_equal(array, first.data.examples[name])


@pytest.mark.parametrize("what", ["weights", "data", "preparation", "precision", "cut"])
def test_what_is_kept_is_never_that_of_something_else(what: str, tmp_path: Path) -> None:
    settings, data = CacheSettings(folder=str(tmp_path)), images(28, 1)
    cached(settings, data=data)
    others: dict[str, dict[str, Any]] = {
        "weights": {"model": frozen(lenet(torch_lenet(seed=1)), {"first": 2})},
        "data": {"data": dataclasses.replace(data, examples=np.asarray(data.examples) * 2)},
        "preparation": {"data": dataclasses.replace(data, prepare=Doubled())},
        "precision": {"settings": CacheSettings(folder=str(tmp_path), float16=True)},
        "cut": {"model": frozen(lenet(torch_lenet()), {"first": 3})},
    }
    how: dict[str, Any] = {"settings": settings, "data": data} | others[what]
    found = cached(**how)
    assert "read from" not in found.place
    assert len(list(tmp_path.iterdir())) == 2
    fresh = cached(CacheSettings(float16=what == "precision"), how.get("model"), how["data"])
    for name, array in fresh.data.examples.items():
        np.testing.assert_array_equal(found.data.examples[name], array)


@dataclasses.dataclass(frozen=True)
class Doubled:
    def __call__(self, examples: Any) -> Any:
        return np.asarray(examples, np.float32) * 2


def test_what_was_not_written_to_the_end_is_computed_again(tmp_path: Path) -> None:
    settings = CacheSettings(folder=str(tmp_path))
    first = cached(settings)
    (folder,) = tmp_path.iterdir()
    wanted = {name: np.array(array) for name, array in first.data.examples.items()}
    with (folder / "0").open("r+b") as file:
        file.truncate(1000)
    again = cached(settings)
    assert again.place == f"in {folder}"
    for name, array in again.data.examples.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_data_that_do_not_say_what_they_are_are_not_kept_in_a_folder(tmp_path: Path) -> None:
    data = dataclasses.replace(images(28, 1), prepare=lambda x: np.asarray(x, np.float32))
    found = cached(CacheSettings(folder=str(tmp_path / "cache")), data=data)
    assert found.place == "in memory, not in a folder, as the data do not say what they are"
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="the cache cannot be written"):
        cached(CacheSettings(folder=str(tmp_path / "file" / "cache")))


def test_a_disk_without_room_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("surgery.training.frozen.shutil.disk_usage", lambda _: usage)
    assert "has 0.0 left" in _note(cache={"memory": 0})


def test_phases_with_the_same_frozen_part_compute_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Split] = []

    def count(prefix: Prefix, *rest: Any) -> Any:
        calls.append(prefix.split)
        return features(prefix, *rest)

    monkeypatch.setattr(stages, "features", count)
    phases = [{"epochs": 1, "train": "head"}, {"epochs": 1, "train": "head", "learning_rate": "×0.1"}]
    surgery.train(residual(Residual()), images(8), phases=[*phases, {"epochs": 1, "train": {"last": 3}}])
    assert [list(found.cut) for found in calls] == [["flat"], ["relu1"]]
