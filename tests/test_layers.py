"""Layers as people count them: what owns which parameters, and which one is the head."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.layers import ancestors, descendants, find_layer, find_output, head, layers
from surgery.marks import set_marks
from tests import graphs
from tests.graphs import parse


@pytest.fixture
def cnn() -> ir.Model:
    return graphs.cnn()


class TestLayers:
    def test_layers_with_parameters_are_numbered(self, cnn: ir.Model) -> None:
        assert [(layer.index, layer.name, layer.op_type) for layer in layers(cnn) if layer.index] == [
            (1, "c1", "Conv"),
            (2, "c2", "Conv"),
            (3, "n2", "BatchNormalization"),
            (4, "h", "MatMul"),
        ]

    def test_every_parameter_has_one_owner_and_a_role(self, cnn: ir.Model) -> None:
        owned = {layer.name: {r: p.name for r, p in layer.parameters.items()} for layer in layers(cnn) if layer.index}
        assert owned == {
            "c1": {"weight": "w1", "bias": "b1"},
            "c2": {"weight": "w2"},
            "n2": {"scale": "s", "bias": "b", "mean": "m", "var": "v"},
            "h": {"weight": "w3", "bias": "b3"},
        }

    def test_size_counts_numbers(self, cnn: ir.Model) -> None:
        assert [layer.size for layer in layers(cnn) if layer.index] == [4 * 3 * 9 + 4, 5 * 4 * 9, 20, 36]

    def test_a_separate_bias_belongs_to_the_layer_and_its_output_is_behind_it(self, cnn: ir.Model) -> None:
        layer = find_layer(cnn, "h")
        assert [n.op_type for n in layer.nodes] == ["MatMul", "Add"]
        assert layer.output.name == "y"

    @pytest.mark.parametrize(
        ("operation", "bias", "belongs"),
        [
            ("Conv", [4, 1, 1], True),
            ("Conv", [1, 4, 1, 1], True),
            ("Conv", [4], False),  # one number for each column of an output four wide
            ("Conv", [1], False),  # a number, not a bias
            ("ConvTranspose", [4, 1, 1], True),
        ],
    )
    def test_which_additions_are_a_bias(self, operation: str, bias: list[int], belongs: bool) -> None:
        weight = [4, 3, 1, 1] if operation == "Conv" else [3, 4, 1, 1]
        model = parse(
            "(float[N,3,4,4] x) => (float[N,4,4,4] y)",
            f"c = {operation}(x, w) y = Add(c, b)",
            {"w": weight, "b": bias},
        )
        assert ("bias" in layers(model)[0].parameters) == belongs

    def test_a_weight_behind_a_transpose_is_the_layers(self) -> None:
        model = parse(
            "(float[N,T,3] x) => (float[N,T,4] y)",
            "t = Transpose(w) h = MatMul(x, t) y = Add(b, h)",
            {"w": [4, 3], "b": [4]},
        )
        (layer,) = layers(model)
        assert (layer.index, layer.name) == (1, "h")
        assert {r: p.name for r, p in layer.parameters.items()} == {"weight": "w", "bias": "b"}
        assert head(model).name == "h"

    def test_an_addition_that_others_see_past_is_not_a_bias(self) -> None:
        model = parse(
            "(float[N,3] x) => (float[N,4] y, float[N,4] z)",
            "h = MatMul(x, w) y = Add(h, b) z = Relu(h)",
            {"w": [3, 4], "b": [4]},
        )
        assert [(layer.index, layer.name) for layer in layers(model)] == [(1, "h"), (2, "y"), (None, "z")]

    def test_arithmetic_with_one_number_is_no_layer_with_parameters(self) -> None:
        model = parse("(float[N,3] x) => (float[N,3] y)", "y = Mul(x, s)", {"s": [1]})
        assert layers(model)[0].index is None

    def test_operators_that_compute_shapes_are_left_out(self) -> None:
        model = parse("(float[N,3] x) => (float[N,3] y)", "s = Shape(x) y = Reshape(x, s)", {})
        assert [layer.name for layer in layers(model)] == ["y"]

    def test_trainable_unless_frozen_statistics_aside(self, cnn: ir.Model) -> None:
        norm = find_layer(cnn, "n2")
        assert norm.trainable
        set_marks(norm.parameters["scale"], trainable=False)
        set_marks(norm.parameters["bias"], learning_rate=0)
        assert not norm.trainable


class TestFind:
    def test_by_name_or_output(self, cnn: ir.Model) -> None:
        assert find_layer(cnn, "c2").name == "c2"
        assert find_layer(cnn, "y").name == "h"

    def test_an_unknown_name_suggests_the_nearest(self, cnn: ir.Model) -> None:
        with pytest.raises(SurgeryError, match=r"no layer named 'c3'; did you mean .*'c2'"):
            find_layer(cnn, "c3")

    def test_output_by_name(self, cnn: ir.Model) -> None:
        assert find_output(cnn).name == find_output(cnn, "y").name == "y"
        with pytest.raises(SurgeryError, match="no output named 'z'; the model has y"):
            find_output(cnn, "z")

    def test_several_outputs_need_a_name(self) -> None:
        model = parse("(float[N] x) => (float[N] a, float[N] b)", "a = Relu(x) b = Tanh(x)", {})
        with pytest.raises(SurgeryError, match=r"2 outputs \(a, b\)"):
            find_output(model)

    def test_ancestors_and_descendants(self, cnn: ir.Model) -> None:
        conv = find_layer(cnn, "c2")
        assert {n.name for n in ancestors([conv.output])} == {"c1", "r1", "p1", "c2"}
        assert {n.name for n in descendants([conv.output])} == {"n2", "r2", "g", "f", "h", "y"}


class TestTokens:
    def test_a_class_token_is_a_parameter(self) -> None:
        model = parse(
            "(float[N,3,4] x) => (float[N,4,4] y)",
            "i = Constant<value_ints = [0]>() t = Shape(x) n = Gather(t, i) o = Constant<value_ints = [1, 4]>() "
            "s = Concat<axis = 0>(n, o) e = Expand(token, s) y = Concat<axis = 1>(e, x)",
            {"token": [1, 1, 4]},
        )
        (owner,) = [layer for layer in layers(model) if layer.index]
        assert {role: p.name for role, p in owner.parameters.items()} == {"token": "token"}

    def test_a_number_that_is_expanded_is_none(self) -> None:
        model = parse("(float[N,3] x) => (float[N,3] y)", "s = Shape(x) e = Expand(one, s) y = Mul(x, e)", {"one": [1]})
        assert not [layer for layer in layers(model) if layer.index]


class TestHead:
    def test_in_front_of_the_output(self, cnn: ir.Model) -> None:
        assert head(cnn).name == "h"

    def test_behind_pooling_reshaping_and_softmax(self) -> None:
        model = parse(
            "(float[N,3,8,8] x) => (float[N,4] y)",
            "c = Conv(x, w) r = Relu(c) g = GlobalAveragePool(r) t = Shape(x) i = Constant<value_ints = [0]>() "
            "n = Gather(t, i) m = Constant<value_ints = [4]>() s = Concat<axis = 0>(n, m) f = Reshape(g, s) "
            "y = Softmax(f)",
            {"w": [4, 3, 1, 1]},
        )
        assert head(model).name == "c"

    def test_without_one_it_says_what_stands_in_the_way(self) -> None:
        model = parse("(float[N,3] x) => (float[N,3] y)", "h = MatMul(x, w) r = Relu(x) y = Add(h, r)", {"w": [3, 3]})
        with pytest.raises(SurgeryError, match=r"output 'y' has no head that can be found.*Add 'y'"):
            head(model)
