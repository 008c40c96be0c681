"""Marks, labels and preprocessing travel in the ONNX file; what is not readable is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from surgery.errors import SurgeryError
from surgery.io import load, save
from surgery.marks import (
    Constraint,
    Marks,
    Preprocessing,
    labels,
    marks,
    preprocessing,
    set_labels,
    set_marks,
    set_preprocessing,
)


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]> g (float[N,2] x) => (float[N,2] y)
            <float[2,2] w = {1,2,3,4}> {y = MatMul(x, w)}""")
    )


@pytest.fixture
def w(model: ir.Model) -> ir.Value:
    return model.graph.initializers["w"]


class TestMarks:
    def test_without_entries_the_defaults(self, w: ir.Value) -> None:
        assert marks(w) == Marks(trainable=True, learning_rate=1.0, decay=1.0, l1=0.0, l2=0.0, constraint=None)

    def test_all_of_them_survive_a_file(self, model: ir.Model, w: ir.Value, tmp_path: Path) -> None:
        set_marks(w, trainable=False, learning_rate=2, decay=0.5, constraint=Constraint("max_norm", 3.0, (0,)))
        save(model, tmp_path / "m.onnx")
        again = marks(load(tmp_path / "m.onnx").graph.initializers["w"])
        assert again == Marks(False, 2.0, 0.5, Constraint("max_norm", 3.0, (0,)))

    def test_a_clone_has_them(self, model: ir.Model, w: ir.Value) -> None:
        set_marks(w, trainable=False)
        assert not marks(model.clone().graph.initializers["w"]).trainable

    def test_defaults_leave_no_entry(self, w: ir.Value) -> None:
        set_marks(w, trainable=False, learning_rate=0.1)
        set_marks(w, trainable=True, learning_rate=1)
        assert w.metadata_props == {}

    def test_says_whether_anything_changed(self, w: ir.Value) -> None:
        assert set_marks(w, learning_rate=0.1)
        assert not set_marks(w, learning_rate=0.1)
        assert not set_marks(w, trainable=True)

    @pytest.mark.parametrize("changes", [{"trainable": False}, {"learning_rate": 0}])
    def test_a_rate_of_zero_freezes_too(self, w: ir.Value, changes: dict[str, Any]) -> None:
        assert not marks(w).frozen
        set_marks(w, **changes)
        assert marks(w).frozen

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("trainable", "1"),
            ("trainable", "yes"),
            ("learning_rate", "-1"),
            ("learning_rate", "NaN"),
            ("learning_rate", "Infinity"),
            ("learning_rate", '"fast"'),
            ("learning_rate", "true"),
            ("decay", "[]"),
            ("decay", "["),
            ("decay", "[" * 100_000),
            ("constraint", "3"),
            ("constraint", '{"type": "max_norm", "value": 0, "axes": [0]}'),
            ("constraint", '{"type": "spectral_norm", "value": 1, "axes": [0]}'),
            ("constraint", '{"type": "min_max_norm", "value": 1, "minimum": 2, "axes": [0]}'),
            ("l2", "-1"),
            ("constraint", '{"type": "max_norm", "value": 1}'),
        ],
    )
    def test_what_is_not_readable_names_parameter_and_mark(self, w: ir.Value, key: str, text: str) -> None:
        w.metadata_props[f"surgery.{key}"] = text
        with pytest.raises(SurgeryError, match=rf"parameter 'w': the mark surgery\.{key} is not readable"):
            marks(w)


class TestLabels:
    def test_survive_a_file_in_any_language(self, model: ir.Model, tmp_path: Path) -> None:
        assert set_labels(model, "y", ["Ameise", "蜂"])
        assert not set_labels(model, "y", ["Ameise", "蜂"])
        save(model, tmp_path / "m.onnx")
        assert labels(load(tmp_path / "m.onnx"), "y") == ["Ameise", "蜂"]

    def test_none_forgets_them(self, model: ir.Model) -> None:
        set_labels(model, "y", ["a", "b"])
        set_labels(model, "y", None)
        assert labels(model, "y") is None
        assert model.metadata_props == {}

    @pytest.mark.parametrize("text", ["[]", "no", '{"y": 3}', '{"y": [1]}', "[" * 100_000])
    def test_what_is_not_readable(self, model: ir.Model, text: str) -> None:
        model.metadata_props["surgery.labels"] = text
        with pytest.raises(SurgeryError, match="labels"):
            labels(model, "y")


class TestPreprocessing:
    HOW = Preprocessing("bgr", "NHWC", (28, 30), 1 / 256, (0.5, 0.25, 0.125), (2.0,))

    def test_survives_a_file(self, model: ir.Model, tmp_path: Path) -> None:
        assert set_preprocessing(model, "x", self.HOW)
        assert not set_preprocessing(model, "x", self.HOW)
        save(model, tmp_path / "m.onnx")
        assert preprocessing(load(tmp_path / "m.onnx"), "x") == self.HOW
        assert preprocessing(model, "other") is None

    def test_none_forgets_it(self, model: ir.Model) -> None:
        set_preprocessing(model, "x", self.HOW)
        set_preprocessing(model, "x", None)
        assert preprocessing(model, "x") is None

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ('{"x": {"color": "purple"}}', "color"),
            ('{"x": {"scale": "big"}}', "scale"),
            ('{"x": {"size": [1]}}', "size"),
            ('{"x": {"zoom": 2}}', "zoom"),
            ('{"x": [1]}', ""),
        ],
    )
    def test_what_is_not_readable_names_the_key(self, model: ir.Model, text: str, key: str) -> None:
        model.metadata_props["surgery.preprocessing"] = text
        with pytest.raises(SurgeryError, match=f"preprocessing of input 'x' is not readable.*{key}"):
            preprocessing(model, "x")
