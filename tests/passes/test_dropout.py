"""insert_dropout: where it comes, and that inference stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pydantic
import pytest

from surgery.errors import SurgeryError
from surgery.passes import InsertDropout
from surgery.passes.editing import constant_of
from tests.graphs import cnn, mlp, parse, run, squeezenet


def dropouts(model: ir.Model) -> dict[str, tuple[str, float]]:
    """Of each Dropout: the operator in front of it, and its rate."""
    result = {}
    for node in model.graph:
        if node.op_type == "Dropout":
            source = node.inputs[0]
            producer = source.producer() if source is not None else None
            ratio = constant_of(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_float("ratio", 0.5)
            result[str(node.name)] = (str(producer.name) if producer else "", pytest.approx(float(np.asarray(ratio))))
    return result


IMAGE = np.random.default_rng(1).normal(size=(2, 3, 10, 10)).astype(np.float32)
ROW = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "batch"),
    [(cnn, IMAGE), (mlp, ROW), (squeezenet, IMAGE[:, :, :9, :9]), (lambda: mlp(11), ROW), (lambda: mlp(7), ROW)],
)
def test_inference_stays_the_same(make: Callable[[], ir.Model], batch: np.ndarray) -> None:
    model = make()
    (before,) = run(model, batch)
    assert InsertDropout(input=0.2, hidden=0.5)(model).changes
    assert len(dropouts(model)) >= 2
    np.testing.assert_allclose(run(model, batch)[0], before, rtol=1e-6)


class TestPlaces:
    def test_behind_activations_and_pooling_of_hidden_layers_never_behind_the_head(self) -> None:
        model = cnn()
        changes = InsertDropout(input=0.2, hidden=0.5)(model).changes
        assert dropouts(model) == {"x/dropout": ("", 0.2), "c1/dropout": ("p1", 0.5), "c2/dropout": ("r2", 0.5)}
        assert [str(c) for c in changes] == ["x/dropout: drops 0.2", "c1/dropout: drops 0.5", "c2/dropout: drops 0.5"]

    def test_a_convolution_in_front_of_pooling_is_the_head(self) -> None:
        model = squeezenet()
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"c1/dropout": ("r1", 0.5)}

    def test_of_several_heads_none(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,2] y, float[N,4] z)",
            "f = MatMul(x, w) r = Relu(f) a = MatMul(r, w1) y = Softmax(a) z = MatMul(r, w2)",
            {"w": [8, 6], "w1": [6, 2], "w2": [6, 4]},
        )
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"f/dropout": ("r", 0.5)}

    def test_in_front_of_the_sum_of_a_residual_block(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,2] y)",
            "a = MatMul(x, w1) b = MatMul(a, w2) s = Add(a, b) r = Relu(s) y = MatMul(r, w3)",
            {"w1": [8, 6], "w2": [6, 6], "w3": [6, 2]},
        )
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"a/dropout": ("a", 0.5), "b/dropout": ("b", 0.5)}
        run(model, ROW)

    def test_what_only_asks_for_the_shape_does_not_count(self) -> None:
        model = parse(
            "(float[N,3,10,10] x) => (float[N,4] y)",
            "c = Conv(x, w1) t = Shape(c) r = Relu(c) p = GlobalAveragePool(r) i = Constant<value_ints = [0]>() "
            "n = Gather(t, i) m = Constant<value_ints = [5]>() s = Concat<axis = 0>(n, m) f = Reshape(p, s) "
            "y = MatMul(f, w2)",
            {"w1": [5, 3, 3, 3], "w2": [5, 4]},
        )
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"c/dropout": ("r", 0.5)}

    def test_an_output_in_between_is_not_dropped(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,6] features, float[N,2] y)",
            "a = MatMul(x, w1) features = Relu(a) y = MatMul(features, w2)",
            {"w1": [8, 6], "w2": [6, 2]},
        )
        InsertDropout(hidden=0.5)(model)
        assert [o.producer().op_type for o in model.graph.outputs if o.producer()] == ["Relu", "MatMul"]
        assert dropouts(model) == {"a/dropout": ("features", 0.5)}

    def test_behind_the_output_of_a_recurrent_layer_that_is_used(self) -> None:
        model = parse(
            "(float[T,N,3] x) => (float[N,2] y)",
            "o, l = LSTM<hidden_size = 4>(x, w, r) s = Squeeze(l, axis) y = MatMul(s, w2)",
            {"w": [1, 16, 3], "r": [1, 16, 4], "w2": [4, 2]},
        )
        axis = ir.tensor(np.array([0]), name="axis")
        model.graph.node("s").replace_input_with(1, None)
        value = ir.Value(name="axis", shape=axis.shape, type=ir.TensorType(ir.DataType.INT64), const_value=axis)
        model.graph.register_initializer(value)
        model.graph.node("s").replace_input_with(1, value)
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"o/dropout": ("o", 0.5)}
        assert run(model, np.ones((5, 2, 3), np.float32))[0].shape == (2, 2)

    def test_behind_selected_layers_also_such_without_weights(self) -> None:
        model = cnn()
        InsertDropout(rate=0.3, layers=["c1", "g"], hidden=0.5)(model)
        assert dropouts(model) == {
            "c1/dropout": ("p1", 0.3),
            "g/dropout": ("g", 0.3),
            "c2/dropout": ("r2", 0.5),
        }

    def test_behind_the_response_normalization_of_alexnet(self) -> None:
        model = parse(
            "(float[N,3,10,10] x) => (float[N,4,2,2] y)",
            "c = Conv(x, w) r = Relu(c) n = LRN<size = 3>(r) p = MaxPool<kernel_shape = [4, 4], strides = [3, 3]>(n) "
            "y = Conv(p, w2)",
            {"w": [5, 3, 1, 1], "w2": [4, 5, 2, 2]},
        )
        InsertDropout(hidden=0.5)(model)
        assert dropouts(model) == {"c/dropout": ("p", 0.5)}

    def test_behind_the_head_is_refused(self) -> None:
        with pytest.raises(SurgeryError, match="layer 'h' has no layer with weights behind it"):
            InsertDropout(rate=0.3, layers=["c1", "head"])(cnn())

    def test_input_of_whole_numbers(self) -> None:
        model = parse("(int64[N] x) => (float[N,2] y)", "e = Gather(w, x) y = MatMul(e, v)", {"w": [9, 3], "v": [3, 2]})
        with pytest.raises(SurgeryError, match="no input of floating-point numbers"):
            InsertDropout(input=0.2)(model)


class TestExisting:
    @pytest.fixture
    def model(self) -> ir.Model:
        return parse(
            "(float[N,3,10,10] x) => (float[N,4] y)",
            "c = Conv(x, w1) r = Relu(c) p = MaxPool<kernel_shape = [8, 8]>(r) d1 = Dropout(p) f = Flatten(d1) "
            "a = MatMul(f, w2) d2 = Dropout(a, ratio) s = Sigmoid(d2) y = MatMul(s, w3)",
            {"w1": [5, 3, 3, 3], "w2": [5, 6], "w3": [6, 4], "ratio": []},
        )

    def test_gets_the_rate_instead_of_a_second_one(self, model: ir.Model) -> None:
        InsertDropout(hidden=0.3)(model)
        assert dropouts(model) == {"d1": ("p", 0.3), "d2": ("a", 0.3)}
        assert "ratio" not in model.graph.initializers

    def test_a_rate_of_zero_switches_off_and_inserts_none(self, model: ir.Model) -> None:
        InsertDropout(hidden=0, input=0)(model)
        assert dropouts(model) == {"d1": ("p", 0), "d2": ("a", 0)}

    def test_a_rate_that_others_share_is_theirs(self) -> None:
        model = parse(
            "(float[N,8] x) => (float[N,4] y)",
            "a = MatMul(x, w1) d1 = Dropout(a, ratio) b = MatMul(d1, w2) d2 = Dropout(b, ratio) y = MatMul(d2, w3)",
            {"w1": [8, 6], "w2": [6, 6], "w3": [6, 4], "ratio": []},
        )
        InsertDropout(rate=0.25, layers="a")(model)
        assert dropouts(model)["d1"] == ("a", 0.25)
        assert dropouts(model)["d2"] != ("b", 0.25)
        run(model, ROW)

    def test_in_an_operator_set_with_the_rate_as_an_attribute(self) -> None:
        model = mlp(10)
        InsertDropout(hidden=0.5)(model)
        InsertDropout(hidden=0.25)(model)
        assert dropouts(model) == {"a/dropout": ("r", 0.25)}
        onnx.checker.check_model(ir.to_proto(model), full_check=True)

    def test_selected_itself_it_gets_the_rate(self, model: ir.Model) -> None:
        InsertDropout(rate=0.3, layers={"type": "Dropout"})(model)
        assert dropouts(model) == {"d1": ("p", 0.3), "d2": ("a", 0.3)}

    def test_again_changes_nothing(self, model: ir.Model) -> None:
        step = InsertDropout(hidden=0.3, input=0.1)
        step(model)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        assert not step(model).changes
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs `input`, `hidden`, or `rate`"),
        ({"rate": 0.5}, "go together"),
        ({"layers": "c1", "hidden": 0.5}, "go together"),
        ({"hidden": 1}, "less than 1"),
        ({"input": -0.1}, "greater than or equal to 0"),
        ({"hidden": "0.5"}, "valid number"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        InsertDropout(**arguments)
