"""add_hidden: the layer in front of the head, for every kind of head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.layers import find_layer, head, layers
from surgery.marks import marks, set_marks
from surgery.passes import AddHidden, MaxNorm, ReplaceHead
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of

ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


class TestNumbers:
    """The output against the same layers in numpy."""

    def test_gemm(self) -> None:
        model = mlp()
        assert [str(c) for c in AddHidden(units=7)(model).changes] == [
            "hidden: 7 units, relu, he weights",
            "b: new weights for 7 inputs instead of 6",
        ]
        w = weights_of(model)
        x = relu(ROW @ w["a.weight"].T + w["a.bias"])
        logits = relu(x @ w["hidden.weight"].T + w["hidden.bias"]) @ w["b.weight"].T + w["b.bias"]
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(run(model, ROW)[0], expected, rtol=1e-5)
        assert w["hidden.weight"].shape == (7, 6)

    def test_matmul_with_any_number_of_axes(self) -> None:
        model = parse("(float[N,T,8] x) => (float[N,T,5] y)", "h = MatMul(x, w) y = Add(h, b)", {"w": [8, 5], "b": [5]})
        AddHidden(units=7, activation="tanh")(model)
        w = weights_of(model)
        x = np.stack([ROW, ROW])
        expected = np.tanh(x @ w["hidden.weight"] + w["hidden.bias"]) @ w["h.weight"] + w["h.bias"]
        np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-5)
        assert [layer.name for layer in layers(model) if layer.index] == ["hidden", "h"]

    def test_convolution(self) -> None:
        image = np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)
        model = squeezenet()
        features = model.clone()
        features.graph.outputs[:] = [next(n.outputs[0] for n in features.graph if n.name == "r1")]
        (x,) = run(features, image, checked=False)
        AddHidden(units=4, name="extra")(model)
        w = weights_of(model)
        x = relu(np.einsum("nchw,mc->nmhw", x, w["extra.weight"][:, :, 0, 0]) + w["extra.bias"][:, None, None])
        x = relu(np.einsum("nchw,mc->nmhw", x, w["c10.weight"][:, :, 0, 0]) + w["c10.bias"][:, None, None])
        np.testing.assert_allclose(run(model, image)[0], x.mean((2, 3)), rtol=1e-4)


def test_the_heads_bias_and_marks_stay() -> None:
    model = mlp()
    before = weights_of(model)["b.bias"]
    set_marks(model.graph.initializers["b.weight"], learning_rate=5)
    AddHidden(units=7)(model)
    np.testing.assert_array_equal(weights_of(model)["b.bias"], before)
    assert marks(model.graph.initializers["b.weight"]).learning_rate == 5
    assert marks(model.graph.initializers["hidden.weight"]) == marks(model.graph.initializers["a.weight"])


def test_bounds_go_along_when_a_transposed_weight_is_stored_as_it_is_used() -> None:
    model = parse("(float[N,8] x) => (float[N,5] y)", "t = Transpose(w) y = MatMul(x, t)", {"w": [5, 8]})
    MaxNorm(value=2)(model)
    AddHidden(units=3)(model)
    constraint = marks(model.graph.initializers["y.weight"]).constraint
    assert constraint is not None
    assert constraint.axes == (0,)
    assert model.graph.initializers["y.weight"].shape == ir.Shape([3, 5])


def test_other_users_of_the_heads_input_are_left_alone() -> None:
    model = parse(
        "(float[N,8] x) => (float[N,5] y, float[N,6] z)",
        "f = MatMul(x, w1) y = MatMul(f, w2) z = Relu(f)",
        {"w1": [8, 6], "w2": [6, 5]},
    )
    before = run(model, ROW)[1]
    AddHidden(units=3, output="y")(model)
    np.testing.assert_array_equal(run(model, ROW)[1], before)


def test_again_changes_nothing_and_another_needs_a_name() -> None:
    model = mlp()
    AddHidden(units=7)(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not AddHidden(units=7)(model).changes
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    with pytest.raises(SurgeryError, match="a layer named 'hidden' already"):
        AddHidden(units=8)(model)
    AddHidden(units=8, name="hidden2")(model)
    assert [layer.name for layer in layers(model) if layer.index] == ["a", "hidden", "hidden2", "b"]
    assert run(model, ROW)[0].shape == (3, 4)


def test_before_and_after_replacing_the_head() -> None:
    for order in ([AddHidden(units=7), ReplaceHead(units=2)], [ReplaceHead(units=2), AddHidden(units=7)]):
        model = cnn()
        for step in order:
            step(model)
        assert head(model).parameters["weight"].shape == ir.Shape([7, 2])
        assert find_layer(model, "hidden").parameters["weight"].shape == ir.Shape([5, 7])
        assert run(model, np.ones((2, 3, 10, 10), np.float32))[0].shape == (2, 2)


def test_grouped_convolution() -> None:
    model = parse("(float[N,4,9,9] x) => (float[N,6,9,9] y)", "y = Conv<group = 2>(x, w)", {"w": [6, 2, 1, 1]})
    with pytest.raises(SurgeryError, match="several groups"):
        AddHidden(units=5)(model)
