"""Selectors: one grammar, and an error that names the nearest layers where nothing matches."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.selectors import select
from tests import graphs
from tests.graphs import parse


@pytest.fixture
def cnn() -> ir.Model:
    return graphs.cnn()


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("c1", ["c1"]),
        ("y", ["h"]),  # by its output
        ("c*", ["c1", "c2"]),
        ("?2", ["c2", "n2", "r2"]),
        ("head", ["h"]),
        ("all", ["c1", "r1", "p1", "c2", "n2", "r2", "g", "f", "h"]),
        ({"first": 2}, ["c1", "c2"]),
        ({"last": 2}, ["n2", "h"]),
        ({"until": "p1"}, ["c1", "r1", "p1"]),
        ({"from": "c2", "to": "r2"}, ["c2", "n2", "r2"]),
        ({"from": "g"}, ["g", "f", "h"]),
        ({"to": "r1"}, ["c1", "r1"]),
        ({"type": "conv"}, ["c1", "c2"]),
        (["head", {"first": 1}, "r*"], ["c1", "r1", "r2", "h"]),
        ("w2", ["c2"]),  # by a parameter
        ("b?", ["c1", "h"]),
    ],
)
def test_what_each_form_selects(cnn: ir.Model, selector: Any, names: list[str]) -> None:
    assert [layer.name for layer in select(cnn, selector)] == names


def test_layers_go_by_the_names_of_their_parameters_where_operators_have_others() -> None:
    model = parse(
        "(float[N,3] x) => (float[N,3] y)",
        "a = MatMul(x, w) y = MatMul(a, v)",
        {"w": [3, 3], "v": [3, 3]},
    )
    for name, new in (("w", "layer1.0.fc.weight"), ("v", "layer1.1.fc.weight")):
        value = model.graph.initializers.pop(name)
        value.name = new
        model.graph.register_initializer(value)
    assert [layer.name for layer in select(model, "layer1.0.fc")] == ["a"]
    assert [layer.name for layer in select(model, "layer1.*")] == ["a", "y"]


def test_a_layer_that_is_called_head_or_has_a_bracket_in_its_name_is_meant_itself() -> None:
    model = parse("(float[N,3] x) => (float[N,3] y)", "a = MatMul(x, w) y = Relu(a)", {"w": [3, 3]})
    model.graph.node(1).name = "head"
    assert [layer.op_type for layer in select(model, "head")] == ["Relu"]
    model.graph.node(0).name = "a[0]"
    assert [layer.op_type for layer in select(model, "a[0]")] == ["MatMul"]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("c3", r"selector 'c3' matches no layer; did you mean 'c2' or 'c1'"),
        ("hed", r"selector 'hed' matches no layer; did you mean 'head'"),
        ("al", r"selector 'al' matches no layer; did you mean .*'all'"),
        (["c1", "x*"], r"selector 'x\*' matches no layer"),
        ({"type": "Cnv"}, r"matches no layer; did you mean 'Conv'"),
        ({"first": 9}, r"asks for 9 layers; the model has 4"),
        ({"until": "pool"}, r"no layer named 'pool'"),
        ({"from": "h", "to": "c1"}, r"matches no layer"),
        ([], r"is not a selector"),
        ("", r"is not a selector"),
        (5, r"is not a selector"),
        ({"first": 0}, r"is not a selector"),
        ({"first": True}, r"is not a selector"),
        ({"first": "2"}, r"is not a selector"),
        ({"frist": 2}, r"is not a selector"),
        ({"from": None}, r"is not a selector"),
        ({"first": 1, "last": 1}, r"is not a selector"),
        (None, r"is not a selector"),
    ],
)
def test_what_matches_nothing_or_is_malformed(cnn: ir.Model, selector: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        select(cnn, selector)
