"""Passes that constrain or regularize weights: what they mark, what they report, and where it is shown."""

from __future__ import annotations

import io
from typing import Any

import onnx_ir as ir
import pytest
from rich.console import Console

import surgery
from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.marks import Constraint, marks
from surgery.viewing.netron import annotated
from surgery.viewing.summary import summary, table
from tests.graphs import cnn, parse


def marked(*passes: dict[str, Any]) -> tuple[ir.Model, list[str]]:
    model = cnn()
    return model, [str(change) for change in surgery.apply(model, list(passes))]


def shown(model: ir.Model) -> str:
    """The table that `surgery inspect` prints."""
    text = io.StringIO()
    Console(width=200, file=text).print(table(model))
    return text.getvalue()


def mark(model: ir.Model, name: str) -> Any:
    return marks(model.graph.initializers[name])


@pytest.mark.parametrize(
    ("item", "constraint", "words"),
    [
        ({"unit_norm": "c1"}, Constraint("unit_norm", axes=(1, 2, 3)), "c1: unit_norm over axes 1, 2, 3 of weight"),
        (
            {"min_max_norm": {"minimum": 0.5, "maximum": 2, "layers": "c1"}},
            Constraint("min_max_norm", 2.0, (1, 2, 3), 0.5),
            "c1: min_max_norm 0.5 to 2 over axes 1, 2, 3 of weight",
        ),
        (
            {"min_max_norm": {"minimum": 0, "maximum": 2, "layers": "c1", "rate": 0.1}},
            Constraint("min_max_norm", 2.0, (1, 2, 3), 0.0, 0.1),
            "c1: min_max_norm 0 to 2 at rate 0.1 over axes 1, 2, 3 of weight",
        ),
        ({"non_neg": "c1"}, Constraint("non_neg"), "c1: non_neg (weight)"),
        ({"non_neg": {"layers": "c1", "bias": True}}, Constraint("non_neg"), "c1: non_neg (weight, bias)"),
    ],
)
def test_constraints_are_marks_that_a_file_keeps(
    item: dict[str, Any], constraint: Constraint, words: str, tmp_path: Any
) -> None:
    model, changes = marked(item)
    assert changes == [words]
    assert mark(model, "w1").constraint == constraint
    assert mark(model, "w2").constraint is None
    assert surgery.apply(model, [item]) == []
    save(model, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    assert mark(again, "w1").constraint == constraint
    entry = next(layer for layer in summary(again)["layers"] if layer["name"] == "c1")
    assert entry["parameters"]["weight"]["constraint"] == str(constraint)
    node = next(node for node in annotated(again).graph if node.name == "c1")
    assert node.metadata_props["surgery weight"] == str(constraint)


def test_one_constraint_replaces_another() -> None:
    model, _ = marked({"max_norm": 3}, {"unit_norm": "c1"}, {"non_neg": "h"})
    kinds = {name: mark(model, name).constraint.type for name in ("w1", "w2", "w3")}
    assert kinds == {"w1": "unit_norm", "w2": "max_norm", "w3": "non_neg"}


def test_decay_and_regularization_by_layer_are_shown() -> None:
    model, changes = marked(
        {"weight_decay": {"layers": "all", "bias": 0}},
        {"weight_decay": {"layers": "c2", "multiplier": 0.5}},
        {"regularize": {"layers": "h", "l1": 0.1, "l2": 0.02}},
    )
    assert "c1: weight decay of bias × 0" in changes
    assert "c2: weight decay of weight × 0.5" in " ".join(changes)
    assert "h: l1 0.1, l2 0.02 (weight)" in changes
    assert (mark(model, "w1").decay, mark(model, "b1").decay, mark(model, "w2").decay) == (1, 0, 0.5)
    assert (mark(model, "w3").l1, mark(model, "w3").l2, mark(model, "b3").l1) == (0.1, 0.02, 0)
    assert "weight l1 0.1, weight l2 0.02, bias decay × 0" in shown(model)
    assert "regularization" in shown(model)
    assert "regularization" not in shown(cnn())
    node = next(node for node in annotated(model).graph if node.name == "h")
    assert node.metadata_props["surgery weight"] == "l1 0.1, l2 0.02"
    assert surgery.apply(model, [{"regularize": {"layers": "h", "l1": 0, "l2": 0}}])
    assert (mark(model, "w3").l1, mark(model, "w3").l2) == (0, 0)


def test_statistics_have_no_decay() -> None:
    model = parse(
        "(float[N,3,4,4] x) => (float[N,3,4,4] y)",
        "y = BatchNormalization(x, s, b, m, v)",
        {"s": [3], "b": [3], "m": [3], "v": [3]},
    )
    (change,) = surgery.apply(model, [{"weight_decay": {"layers": "all", "multiplier": 0}}])
    assert "mean" not in change.what
    assert mark(model, "m").decay == 1
    assert mark(model, "s").decay == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"non_neg": "r1"}, "non_neg: none of the selected layers has weights"),
        ({"unit_norm": "r1"}, "unit_norm: none of the selected layers has weights"),
        ({"regularize": {"layers": "r1", "l1": 1}}, "regularize: none of the selected layers has weights"),
        (
            {"weight_decay": {"layers": "r1", "multiplier": 0}},
            "weight_decay: none of the selected layers has parameters",
        ),
        ({"regularize": {"layers": "c1"}}, "says neither l1 nor l2"),
        ({"min_max_norm": {"minimum": 2, "maximum": 1}}, "no norm is between 2 and 1"),
    ],
)
def test_what_cannot_be(item: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        surgery.apply(cnn(), [item])
