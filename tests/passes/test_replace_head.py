"""replace_head: every kind of head, rows that are kept, what goes and what stays."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pydantic
import pytest

from surgery.errors import SurgeryError
from surgery.layers import find_layer, head
from surgery.marks import labels, marks, set_labels, set_marks
from surgery.passes import AddHidden, Freeze, ReplaceHead
from tests.graphs import cnn, mlp, parse, run, squeezenet, weights_of

IMAGE = np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


def dense(body: str, weights: dict[str, list[int]], opset: int = 17) -> ir.Model:
    return parse("(float[N,8] x) => (float[N,5] y)", body, weights, opset)


HEADS = {
    "Gemm, transB": lambda: dense("y = Gemm<transB = 1>(x, w, b)", {"w": [5, 8], "b": [5]}),
    "Gemm": lambda: dense("y = Gemm(x, w, b)", {"w": [8, 5], "b": [5]}),
    "Gemm, scaled": lambda: dense("y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", {"w": [8, 5], "b": [1, 5]}),
    "Gemm without bias": lambda: dense("y = Gemm(x, w)", {"w": [8, 5]}, 13),
    "MatMul": lambda: dense("y = MatMul(x, w)", {"w": [8, 5]}),
    "MatMul and Add": lambda: dense("h = MatMul(x, w) y = Add(h, b)", {"w": [8, 5], "b": [5]}),
    "Add the other way": lambda: dense("h = MatMul(x, w) y = Add(b, h)", {"w": [8, 5], "b": [1, 5]}),
    "MatMul by a transposed weight, and Add": lambda: dense(
        "t = Transpose<perm = [1, 0]>(w) h = MatMul(x, t) y = Add(b, h)", {"w": [5, 8], "b": [5]}
    ),
    "Softmax": lambda: dense("h = Gemm<transB = 1>(x, w, b) y = Softmax(h)", {"w": [5, 8], "b": [5]}),
    "LogSoftmax": lambda: dense("h = Gemm<transB = 1>(x, w, b) y = LogSoftmax(h)", {"w": [5, 8], "b": [5]}),
    "Sigmoid": lambda: dense("h = Gemm<transB = 1>(x, w, b) y = Sigmoid(h)", {"w": [5, 8], "b": [5]}),
    "Identity, opset 7": lambda: dense("h = Gemm<transB = 1>(x, w, b) y = Identity(h)", {"w": [5, 8], "b": [5]}, 7),
    "Dropout, opset 9": lambda: dense("h = Gemm(x, w, b) d = Dropout(h) y = Softmax(d)", {"w": [8, 5], "b": [5]}, 9),
}


@pytest.mark.parametrize("kind", HEADS)
class TestDenseHeads:
    def test_logits_of_kept_units_are_the_old_ones(self, kind: str) -> None:
        """The new head without activation, against the old one without activation."""
        model = HEADS[kind]()
        logits = model.clone()
        name = head(logits).output.name
        if name != "y":
            logits.graph.outputs.append(next(o for n in logits.graph for o in n.outputs if o.name == name))
        before = run(logits, ROW)[-1]
        ReplaceHead(units=7, activation="linear", keep=[3, 0])(model)
        (after,) = run(model, ROW)
        assert after.shape == (3, 7)
        np.testing.assert_allclose(after[:, :2], before[:, [3, 0]], rtol=1e-6)

    def test_softmax_at_the_end_and_the_name_kept(self, kind: str) -> None:
        model = HEADS[kind]()
        ReplaceHead(units=3, activation="softmax")(model)
        (after,) = run(model, ROW)
        assert after.shape == (3, 3)
        np.testing.assert_allclose(after.sum(1), 1, rtol=1e-6)
        assert [o.name for o in model.graph.outputs] == ["y"]
        assert sum(n.op_type in ("Softmax", "LogSoftmax", "Sigmoid") for n in model.graph) == 1

    def test_new_parameters_are_named_after_the_layer_and_the_old_ones_gone(self, kind: str) -> None:
        model = HEADS[kind]()
        layer = head(model).name
        ReplaceHead(units=7, activation="linear")(model)
        assert set(weights_of(model)) == {f"{layer}.weight", f"{layer}.bias"}

    def test_again_changes_nothing(self, kind: str) -> None:
        model = HEADS[kind]()
        new = ReplaceHead(units=7, keep=[1, 0], seed=3, labels=list("abcdefg"))
        assert new(model).changes
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        assert not new(model).changes
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    def test_every_activation_is_the_last_thing(self, kind: str) -> None:
        expected: dict[Any, Any] = {
            "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
            "tanh": np.tanh,
            "relu": lambda z: np.maximum(z, 0),
            "log_softmax": lambda z: z - np.log(np.exp(z).sum(1, keepdims=True)),
        }
        for activation, function in expected.items():
            linear, model = HEADS[kind](), HEADS[kind]()
            ReplaceHead(units=3, activation="linear")(linear)
            ReplaceHead(units=3, activation=activation)(model)
            np.testing.assert_allclose(run(model, ROW)[0], function(run(linear, ROW)[0]), rtol=1e-5, atol=1e-6)


class TestConvHeads:
    ENDINGS: ClassVar = {
        "Flatten": ("y = Flatten(g)", "N,10"),
        "nothing": ("y = Identity(g)", "N,10,1,1"),
        "Softmax": ("y = Softmax<axis = 1>(g)", "N,10,1,1"),
        "Flatten and Softmax": ("f = Flatten(g) y = Softmax(f)", "N,10"),
        "Softmax and Flatten": ("s = Softmax<axis = 1>(g) y = Flatten(s)", "N,10"),
        "Reshape with the number of units": (
            "s = Constant<value_ints = [-1, 10]>() f = Reshape(g, s) y = Softmax(f)",
            "N,10",
        ),
        "Reshape by a computed shape": (
            "t = Shape(g) i = Constant<value_ints = [0]>() n = Gather(t, i) k = Constant<value_ints = [10]>() "
            "s = Concat<axis = 0>(n, k) f = Reshape(g, s) y = Softmax(f)",
            "N,10",
        ),
    }

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("opset", [11, 13, 21])
    def test_softmax_over_new_units(self, ending: str, opset: int) -> None:
        body, shape = self.ENDINGS[ending]
        if opset < 12:
            body = body.replace("value_ints = [-1, 10]", "value = int64[2] {-1, 10}")
            body = body.replace("value_ints = [0]", "value = int64[1] {0}")
            body = body.replace("value_ints = [10]", "value = int64[1] {10}")
        model = squeezenet(body, shape, opset)
        rank = len(model.graph.outputs[0].shape or ())
        ReplaceHead(units=4)(model)
        (after,) = run(model, IMAGE)
        assert after.shape == (2, 4, 1, 1)[:rank]
        np.testing.assert_allclose(after.reshape(2, 4).sum(1), 1, rtol=1e-6)
        assert sum(n.op_type == "Softmax" for n in model.graph) == 1

    def test_kept_units(self) -> None:
        model = squeezenet()
        (before,) = run(model, IMAGE)
        ReplaceHead(units=12, activation="linear", keep=[9, 2, 5])(model)
        np.testing.assert_allclose(run(model, IMAGE)[0][:, :3], before[:, [9, 2, 5]], rtol=1e-5)
        assert find_layer(model, "c10").parameters["weight"].shape == ir.Shape([12, 7, 1, 1])

    def test_map_of_predictions_needs_an_operator_set_with_a_softmax_over_one_axis(self) -> None:
        body = ("c = Conv(x, w, b) y = Identity(c)", {"w": [5, 3, 1, 1], "b": [5]})
        model = parse("(float[N,3,9,9] x) => (float[N,5,9,9] y)", *body, opset=13)
        ReplaceHead(units=4)(model)
        np.testing.assert_allclose(run(model, IMAGE)[0].sum(1), 1, rtol=1e-6)
        model = parse("(float[N,3,9,9] x) => (float[N,5,9,9] y)", *body, opset=12)
        with pytest.raises(SurgeryError, match="cannot be written in operator set 12"):
            ReplaceHead(units=4)(model)

    def test_bias_as_an_add_of_its_own(self) -> None:
        model = parse(
            "(float[N,3,9,9] x) => (float[N,5,1,1] y)",
            "c = Conv(x, w) a = Add(c, b) y = GlobalAveragePool(a)",
            {"w": [5, 3, 3, 3], "b": [5, 1, 1]},
        )
        (before,) = run(model, IMAGE)
        ReplaceHead(units=3, activation="linear", keep=[4])(model)
        np.testing.assert_allclose(run(model, IMAGE)[0][:, 0], before[:, 4], rtol=1e-5)
        assert set(weights_of(model)) == {"c.weight", "c.bias"}

    def test_groups_must_divide_the_units(self) -> None:
        model = parse("(float[N,4,9,9] x) => (float[N,6,9,9] y)", "y = Conv<group = 2>(x, w)", {"w": [6, 2, 1, 1]})
        with pytest.raises(SurgeryError, match="2 groups; 5 units do not divide"):
            ReplaceHead(units=5)(model)

    def test_channels_last_output(self) -> None:
        model = parse(
            "(float[N,3,9,9] x) => (float[N,9,9,5] y)",
            "c = Conv(x, w, b) y = Transpose<perm = [0, 2, 3, 1]>(c)",
            {"w": [5, 3, 1, 1], "b": [5]},
        )
        ReplaceHead(units=4)(model)
        (after,) = run(model, IMAGE)
        assert after.shape == (2, 9, 9, 4)
        np.testing.assert_allclose(after.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", ["[5, -1]", "[5, 5]", "[-1, 5]"])
def test_a_reshape_for_as_many_examples_as_there_were_units(shape: str) -> None:
    model = parse(
        "(float[5,8] x) => (float[5,5] y)",
        f"h = MatMul(x, w) s = Constant<value_ints = {shape}>() y = Reshape(h, s)",
        {"w": [8, 5]},
    )
    ReplaceHead(units=3)(model)
    assert run(model, np.concatenate([ROW, ROW])[:5])[0].shape == (5, 3)


def test_sequence_of_predictions() -> None:
    model = parse("(float[N,T,8] x) => (float[N,T,5] y)", "h = MatMul(x, w) y = Add(h, b)", {"w": [8, 5], "b": [5]})
    ReplaceHead(units=4)(model)
    (after,) = run(model, np.stack([ROW, ROW]))
    assert after.shape == (2, 3, 4)
    np.testing.assert_allclose(after.sum(-1), 1, rtol=1e-6)


class TestSeveralOutputs:
    @pytest.fixture
    def mtcnn(self) -> ir.Model:
        """Like MTCNN's first net: a softmax over maps of scores, and a map of boxes."""
        return parse(
            "(float[N,3,9,9] x) => (float[N,2,7,7] prob, float[N,4,7,7] box)",
            "c = Conv(x, w, b) r = PRelu(c, s) score = Conv(r, w1, b1) prob = Softmax<axis = 1>(score) "
            "box = Conv(r, w2, b2)",
            {"w": [5, 3, 3, 3], "b": [5], "s": [5, 1, 1], "w1": [2, 5, 1, 1], "b1": [2], "w2": [4, 5, 1, 1], "b2": [4]},
        )

    def test_output_must_be_named(self, mtcnn: ir.Model) -> None:
        with pytest.raises(SurgeryError, match=r"2 outputs \(prob, box\)"):
            ReplaceHead(units=3)(mtcnn)

    def test_the_other_output_stays(self, mtcnn: ir.Model) -> None:
        before = run(mtcnn, IMAGE)
        ReplaceHead(units=3, output="prob")(mtcnn)
        after = run(mtcnn, IMAGE)
        assert after[0].shape == (2, 3, 7, 7)
        np.testing.assert_allclose(after[0].sum(1), 1, rtol=1e-6)
        np.testing.assert_array_equal(after[1], before[1])
        ReplaceHead(units=10, output="box", activation="linear", keep=[0, 1, 2, 3])(mtcnn)
        np.testing.assert_allclose(run(mtcnn, IMAGE)[1][:, :4], before[1], rtol=1e-5)

    def test_logits_and_probabilities_of_one_head(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,5] logits, float[N,5] y)",
            "logits = Gemm<transB = 1>(x, w, b) y = Softmax(logits)",
            {"w": [5, 8], "b": [5]},
        )
        for activation, function in (
            ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
            ("linear", lambda z: z),
        ):
            ReplaceHead(units=3, output="y", activation=activation)(model)
            logits, y = run(model, ROW)
            assert logits.shape == (3, 3)
            np.testing.assert_allclose(y, function(logits), rtol=1e-5)
            assert [o.name for o in model.graph.outputs] == ["logits", "y"]


class TestLabels:
    def test_given_ones_say_how_many_units(self) -> None:
        model = mlp()
        ReplaceHead(labels=["ant", "bee"])(model)
        assert labels(model, "y") == ["ant", "bee"]
        assert run(model, ROW)[0].shape == (3, 2)

    def test_old_ones_go_unless_all_units_are_kept(self) -> None:
        model = mlp()
        set_labels(model, "y", ["a", "b", "c", "d"])
        chosen = model.clone()
        ReplaceHead(keep=["c", 0], units=2)(chosen)
        assert labels(chosen, "y") == ["c", "a"]
        ReplaceHead(keep=[0], units=2)(model)
        assert labels(model, "y") is None

    def test_units_are_kept_by_label(self) -> None:
        model = mlp()
        rows = weights_of(model)["b.weight"]
        set_labels(model, "y", ["a", "b", "c", "d"])
        ReplaceHead(units=3, keep=["d"])(model)
        np.testing.assert_array_equal(weights_of(model)["b.weight"][0], rows[3])
        with pytest.raises(SurgeryError, match="no labels"):
            ReplaceHead(units=3, keep=["d"], seed=1)(model)

    def test_an_unknown_label_suggests_the_nearest(self) -> None:
        model = mlp()
        set_labels(model, "y", ["ant", "bee", "cat", "dog"])
        with pytest.raises(SurgeryError, match="no such label; did you mean 'cat'"):
            ReplaceHead(units=3, keep=["cart"])(model)

    def test_a_unit_out_of_range(self) -> None:
        with pytest.raises(SurgeryError, match="cannot keep unit 4: the old head has units 0 to 3"):
            ReplaceHead(units=3, keep=[4])(mlp())


class TestParameters:
    def test_first_values_follow_the_seed(self) -> None:
        def weight(seed: int) -> np.ndarray:
            model = mlp()
            ReplaceHead(units=3, seed=seed)(model)
            return weights_of(model)["b.weight"]

        np.testing.assert_array_equal(weight(0), weight(0))
        assert not np.array_equal(weight(0), weight(1))

    def test_another_seed_starts_anew(self) -> None:
        model = mlp()
        ReplaceHead(units=3)(model)
        first = weights_of(model)["b.weight"]
        assert ReplaceHead(units=3, seed=1)(model).changes
        assert not np.array_equal(weights_of(model)["b.weight"], first)

    def test_trained_weights_survive_the_same_recipe(self) -> None:
        model = mlp()
        ReplaceHead(units=3)(model)
        trained = np.ones((3, 6), np.float32)
        model.graph.initializers["b.weight"].const_value = ir.tensor(trained, name="b.weight")
        ReplaceHead(units=3)(model)
        np.testing.assert_array_equal(weights_of(model)["b.weight"], trained)

    def test_new_ones_are_trainable_whatever_the_old_were(self) -> None:
        model = mlp()
        Freeze(layers="all")(model)
        set_marks(model.graph.initializers["b.weight"], learning_rate=0.1)
        ReplaceHead(units=3)(model)
        assert not marks(model.graph.initializers["a.weight"]).trainable
        assert marks(model.graph.initializers["b.weight"]) == marks(model.graph.initializers["b.bias"])
        assert marks(model.graph.initializers["b.weight"]).trainable
        assert marks(model.graph.initializers["b.weight"]).learning_rate == 1

    def test_a_weight_that_another_layer_shares_stays(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,8] y)", "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)", {"w": [8, 8]}
        )
        old = weights_of(model)["w"]
        ReplaceHead(units=3, activation="linear")(model)
        np.testing.assert_array_equal(weights_of(model)["w"], old)
        weight, bias = weights_of(model)["y.weight"], weights_of(model)["y.bias"]
        np.testing.assert_allclose(run(model, ROW)[0], np.maximum(ROW @ old, 0) @ weight + bias, rtol=1e-5)

    def test_a_name_that_is_taken_gets_a_number(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,5] y)", "r = Mul(x, y__weight) y = MatMul(r, w)", {"y.weight": [8], "w": [8, 5]}
        )
        ReplaceHead(units=3)(model)
        assert set(weights_of(model)) == {"y.weight", "y.weight_2", "y.bias"}
        run(model, ROW)

    @pytest.mark.parametrize("dtype", ["float16", "double"])
    def test_in_the_precision_of_the_model(self, dtype: str) -> None:
        proto = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> g ({dtype}[N,2] x) => ({dtype}[N,2] y) '
            f"<{dtype}[2,2] w = {{1,2,3,4}}> {{y = MatMul(x, w)}}"
        )
        model = ir.from_proto(proto)
        ReplaceHead(units=3, keep=[1])(model)
        assert weights_of(model)["y.weight"].dtype == np.dtype(dtype)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "needs `units` or `labels`"),
            ({"units": 0}, "greater than 0"),
            ({"units": "3"}, "valid integer"),
            ({"units": True}, "valid integer"),
            ({"units": 3, "labels": ["a"]}, "1 labels do not fit 3 units"),
            ({"units": 1, "keep": [0, 1]}, "more than 1 units"),
            ({"units": 3, "activation": "softmx"}, "'softmax'"),
            ({"units": 3, "initializer": "xavier"}, "'glorot'"),
            ({"units": 3, "unit": 3}, "Unexpected keyword argument"),
            ({"units": 3, "seed": -1}, "greater than or equal to 0"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(pydantic.ValidationError, match=message):
            ReplaceHead(**arguments)

    def test_no_head(self) -> None:
        model = parse("(float[N,8] x) => (float[N,8] y)", "a = MatMul(x, w) y = Add(a, x)", {"w": [8, 8]})
        with pytest.raises(SurgeryError, match="no head that can be found"):
            ReplaceHead(units=3)(model)

    def test_something_behind_the_head_that_depends_on_its_units(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,2] y)",
            "a = MatMul(x, w) s = Constant<value_ints = [0]>() e = Constant<value_ints = [2]>() "
            "i = Constant<value_ints = [1]>() y = Slice(a, s, e, i)",
            {"w": [8, 8]},
        )
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        with pytest.raises(SurgeryError, match="Slice 'y' stands between the head 'a' and output 'y'"):
            ReplaceHead(units=3)(model)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    def test_an_output_of_class_numbers(self) -> None:
        model = parse(
            "(float[N,8] x) => (int64[N] y)", "a = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(a)", {"w": [8, 4]}
        )
        with pytest.raises(SurgeryError, match="output 'y' of INT64 gives no scores"):
            ReplaceHead(units=3)(model)

    def test_an_activation_that_the_operator_set_lacks(self) -> None:
        with pytest.raises(SurgeryError, match="gelu needs operator set 20; the model has 17"):
            ReplaceHead(units=3, activation="gelu")(mlp())


def test_shapes_are_inferred_and_changes_told() -> None:
    model = cnn()
    changes = ReplaceHead(units=3, keep=[5])(model).changes
    assert [str(c) for c in changes] == ["h: 6 → 3 units, glorot weights, units 5 kept", "y: linear → softmax"]
    assert model.graph.outputs[0].shape == ir.Shape(["N", 3])
    assert all(o.shape is not None for n in model.graph for o in n.outputs)


def test_a_unit_is_kept_once() -> None:
    model = HEADS["Softmax"]()
    set_labels(model, "y", ["ant", "bee", "crane", "dog", "crane"])  # ImageNet has two classes of that name
    with pytest.raises(SurgeryError, match="`keep` has unit 1 twice, by its number and by its label"):
        ReplaceHead(units=3, keep=[1, "bee"])(model)
    with pytest.raises(SurgeryError, match=r"cannot keep 'crane': several units .* give the number"):
        ReplaceHead(units=3, keep=["crane"])(model)
    ReplaceHead(units=2, keep=[2, 4])(model)
    assert labels(model, "y") == ["crane", "crane"]


def test_a_head_that_no_file_can_hold_is_refused_before_memory_is_taken() -> None:
    model = HEADS["Softmax"]()
    before = weights_of(model)
    for step in (ReplaceHead(units=2**28), AddHidden(units=2**28)):
        with pytest.raises(SurgeryError, match=r"would have 2,147,483,648 numbers; a weight may have 536,870,912"):
            step(model)
    assert weights_of(model).keys() == before.keys()


def test_memory_that_there_is_not_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> np.ndarray:
        raise MemoryError

    model = HEADS["Softmax"]()
    monkeypatch.setattr(np, "zeros", none_left)
    with pytest.raises(SurgeryError, match="there is not enough memory for what this asks for"):
        ReplaceHead(units=3)(model)
