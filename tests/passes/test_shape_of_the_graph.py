"""Passes that take parts away or rename them: cut, prune_outputs, remove, replace_activation, rename."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.layers import find_layer, layers
from surgery.marks import Preprocessing, labels, marks, preprocessing, set_labels, set_marks, set_preprocessing
from surgery.passes import Cut, Pass, PruneOutputs, Remove, Rename, ReplaceActivation, ReplaceHead
from surgery.recipe import Recipe
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of

IMAGE = np.random.default_rng(1).normal(size=(2, 3, 10, 10)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


def seen(model: ir.Model, *names: str) -> list[np.ndarray]:
    """Intermediate values of `model` on the test images."""
    probe = model.clone()
    values = {o.name: o for n in probe.graph for o in n.outputs}
    probe.graph.outputs[:] = [values[name] for name in names]
    return run(probe, IMAGE, checked=False)


class TestCut:
    def test_gives_what_the_layer_gave(self) -> None:
        model = cnn()
        (expected,) = seen(model, "p1")
        set_labels(model, "y", list("abcdef"))
        changes = Cut(layer="p1")(model).changes
        np.testing.assert_array_equal(run(model, IMAGE)[0], expected)
        assert set(weights_of(model)) == {"w1", "b1"}
        assert labels(model, "y") is None
        assert [str(c) for c in changes] == [
            "model: ends with p1; 7 operators and 7 weights behind it removed",
        ]
        assert not Cut(layer="p1")(model).changes

    def test_behind_the_bias_of_a_layer(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,8] y)",
            "h = MatMul(x, w) b1 = Add(h, b) y = Relu(b1)",
            {"w": [8, 8], "b": [8]},
        )
        Cut(layer="h")(model)
        assert [o.name for o in model.graph.outputs] == ["b1"]

    def test_several_layers(self) -> None:
        model = cnn()
        expected = seen(model, "r2", "p1")
        Cut(layer=["r2", "p1"])(model)
        for old, new in zip(expected, run(model, IMAGE), strict=True):
            np.testing.assert_array_equal(new, old)

    def test_inputs_that_nothing_needs_go(self) -> None:
        model = parse("(float[N,8] x, float[N,8] z) => (float[N,8] y)", "a = Relu(x) b = Tanh(z) y = Add(a, b)", {})
        set_preprocessing(model, "z", Preprocessing())
        Cut(layer="a")(model)
        assert [i.name for i in model.graph.inputs] == ["x"]
        assert preprocessing(model, "z") is None
        assert run(model, ROW)[0].shape == (3, 8)

    def test_unknown_layer(self) -> None:
        with pytest.raises(SurgeryError, match="no layer named 'pool1'"):
            Cut(layer="pool1")(cnn())


class TestPruneOutputs:
    def test_what_only_they_need_goes(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,2] a, float[N,3] b, float[N,8] c)",
            "c = Relu(x) a = MatMul(c, w1) b = MatMul(c, w2)",
            {"w1": [8, 2], "w2": [8, 3]},
        )
        before = run(model, ROW)
        assert [str(c) for c in PruneOutputs(keep=["c", "a"])(model).changes] == [
            "b: output removed",
            "model: 1 operators that only they needed removed",
        ]
        assert set(weights_of(model)) == {"w1"}
        for old, new in zip([before[0], before[2]], run(model, ROW), strict=True):
            np.testing.assert_array_equal(new, old)
        assert not PruneOutputs(keep=["a", "c"])(model).changes

    def test_unknown_output(self) -> None:
        with pytest.raises(SurgeryError, match="no output named 'z'; the model has y"):
            PruneOutputs(keep="z")(cnn())


class TestRemove:
    def test_bridges_what_leaves_the_shape(self) -> None:
        model = cnn()
        Remove(layers=["r1", "n2", "r2"])(model)
        w = weights_of(model)
        assert set(w) == {"w1", "b1", "w2", "w3", "b3"}
        assert [n.op_type for n in model.graph][:4] == ["Conv", "MaxPool", "Conv", "GlobalAveragePool"]
        before, after = seen(model, "c2", "y")
        np.testing.assert_allclose(after, before.mean((2, 3)) @ w["w3"] + w["b3"], rtol=1e-4)

    def test_the_last_layer_leaves_the_outputs_name(self) -> None:
        model = mlp()
        logits = model.clone()
        Remove(layers="y")(model)
        logits.graph.outputs[:] = [logits.graph.node("b").outputs[0]]
        np.testing.assert_array_equal(run(model, ROW)[0], run(logits, ROW)[0])
        assert [o.name for o in model.graph.outputs] == ["y"]

    def test_between_input_and_output(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "y = Relu(x)", {})
        Remove(layers="y")(model)
        np.testing.assert_array_equal(run(model, ROW)[0], ROW)

    def test_a_scale_whose_weight_comes_first(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "a = Mul(s, x) y = Relu(a)", {"s": [8]})
        Remove(layers="a")(model)
        np.testing.assert_array_equal(run(model, ROW)[0], np.maximum(ROW, 0))
        assert not weights_of(model)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("p1", r"MaxPool 'p1' turns \[.*\] into \[.*\]; only a layer that leaves the shape"),
            ("h", r"MatMul 'h' turns"),
            ("nothing", r"matches no layer"),
        ],
    )
    def test_refusals(self, layer: str, message: str) -> None:
        model = cnn()
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        with pytest.raises(SurgeryError, match=message):
            Remove(layers=["r1", layer])(model)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    def test_a_sum_of_two(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "a = Relu(x) b = Tanh(x) y = Add(a, b)", {})
        with pytest.raises(SurgeryError, match="joins 2 inputs"):
            Remove(layers="y")(model)


class TestReplaceActivation:
    def test_one_kind_by_another(self) -> None:
        model = cnn()
        (before,) = seen(model, "c1")
        changes = ReplaceActivation(layers={"type": "Relu"}, activation="leaky_relu")(model).changes
        assert [str(c) for c in changes] == ["r1: Relu → leaky_relu", "r2: Relu → leaky_relu"]
        Cut(layer="r1")(model)
        np.testing.assert_allclose(run(model, IMAGE)[0], np.where(before > 0, before, 0.01 * before), rtol=1e-6)

    def test_again_changes_nothing(self) -> None:
        model = cnn()
        ReplaceActivation(layers="r1", activation="elu")(model)
        assert not ReplaceActivation(layers="r1", activation="elu")(model).changes

    def test_at_the_output(self) -> None:
        model = mlp()
        ReplaceActivation(layers="y", activation="log_softmax")(model)
        np.testing.assert_allclose(np.exp(run(model, ROW)[0]).sum(1), 1, rtol=1e-5)
        assert [o.name for o in model.graph.outputs] == ["y"]
        ReplaceActivation(layers="all", activation="linear")(model)
        assert [n.op_type for n in model.graph] == ["Gemm", "Gemm"]
        assert [o.name for o in model.graph.outputs] == ["y"]

    def test_a_slope_that_nothing_needs_goes(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "y = PRelu(x, s)", {"s": [8]})
        ReplaceActivation(layers="all", activation="relu")(model)
        np.testing.assert_array_equal(run(model, ROW)[0], np.maximum(ROW, 0))
        assert not weights_of(model)

    def test_softmax_over_the_channels_of_a_map(self) -> None:
        model = squeezenet("y = Identity(r10)", "N,10,7,7")
        ReplaceActivation(layers="r10", activation="softmax")(model)
        np.testing.assert_allclose(run(model, IMAGE[:, :, :9, :9])[0].sum(1), 1, rtol=1e-5)

    def test_no_activation(self) -> None:
        with pytest.raises(SurgeryError, match="none of the selected layers is an activation"):
            ReplaceActivation(layers="c1", activation="relu")(cnn())


class TestRename:
    def test_a_layer_with_its_parameters(self) -> None:
        model = mlp()
        set_marks(model.graph.initializers["a.weight"], learning_rate=0.5)
        (before,) = run(model, ROW)
        Rename(names={"a": "stem"})(model)
        layer = find_layer(model, "stem")
        assert {r: p.name for r, p in layer.parameters.items()} == {"weight": "stem.weight", "bias": "stem.bias"}
        assert layer.output.name == "stem"
        assert marks(model.graph.initializers["stem.weight"]).learning_rate == 0.5
        np.testing.assert_array_equal(run(model, ROW)[0], before)

    def test_inputs_and_outputs_with_what_is_known_of_them(self) -> None:
        model = cnn()
        set_labels(model, "y", list("abcdef"))
        set_preprocessing(model, "x", Preprocessing(scale=0.5))
        Rename(names={"x": "image", "y": "class", "w1": "kernel"})(model)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        assert [i.name for i in proto.graph.input] == ["image"]
        assert [o.name for o in proto.graph.output] == ["class"]
        assert labels(model, "class") == list("abcdef")
        assert labels(model, "y") is None
        assert preprocessing(model, "image") == Preprocessing(scale=0.5)
        assert "kernel" in weights_of(model)

    def test_again_changes_nothing(self) -> None:
        model = mlp()
        step = Rename(names={"a": "stem", "y": "prob"})
        assert len(step(model).changes) == 2
        assert not step(model).changes

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({"aa": "stem"}, "nothing is named 'aa'; did you mean 'a'"),
            ({"a": "b"}, "'a' cannot become 'b', which is there already"),
            ({"x": "r"}, "cannot become 'r'"),
        ],
    )
    def test_refusals(self, names: dict[str, str], message: str) -> None:
        with pytest.raises(SurgeryError, match=message):
            Rename(names=names)(mlp())


@pytest.mark.parametrize(
    ("item", "step"),
    [
        ({"cut": "p1"}, Cut(layer="p1")),
        ({"cut": ["p1", "r1"]}, Cut(layer=["p1", "r1"])),
        ({"prune_outputs": "y"}, PruneOutputs(keep="y")),
        ({"remove": {"type": "Dropout"}}, Remove(layers={"type": "Dropout"})),
        ({"rename": {"a": "b", "c": "d"}}, Rename(names={"a": "b", "c": "d"})),
    ],
)
def test_short_forms(item: dict[str, Any], step: Pass) -> None:
    assert Recipe(passes=[item]).passes == [step]  # type: ignore[list-item]


def test_layers_stay_countable() -> None:
    model = cnn()
    for step in (Remove(layers="n2"), Rename(names={"c2": "conv2"}), Cut(layer="r2")):
        step(model)
    assert [layer.name for layer in layers(model) if layer.index] == ["c1", "conv2"]


def test_names_of_subgraphs_count_as_taken() -> None:
    model = parse(
        "(float[N,8] x, bool c) => (float[N,5] y)",
        "i = If(c) <then_branch = t () => (float[N,8] y_bias) {y_bias = Relu(x)}, "
        "else_branch = e () => (float[N,8] z) {z = Tanh(x)}> y = MatMul(i, w)",
        {"w": [8, 5]},
    )
    inner = next(iter(model.graph.subgraphs()))
    inner.outputs[0].name = "y.bias"
    ReplaceHead(units=3)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert "y.bias_2" in weights_of(model)
