"""Raising of operator sets 13 to 15."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from surgery import runtime
from surgery.autodiff.opset import raise_opset
from surgery.errors import SurgeryError

pytestmark = pytest.mark.training


def _model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def test_roi_align_keeps_its_meaning(rng: np.random.Generator) -> None:
    model = _model("""
    <ir_version: 8, opset_import: ["" : 13]>
    crop (float[1, 2, 8, 8] x, float[n, 4] boxes, int64[n] images) => (float[n, 2, 3, 3] y) {
        y = RoiAlign<output_height = 3, output_width = 3, sampling_ratio = 2>(x, boxes, images)
    }
    """)
    feeds = {
        "x": rng.random((1, 2, 8, 8), dtype=np.float32),
        "boxes": np.array([[0.3, 1.2, 5.5, 6.1], [2, 2, 7, 7]], np.float32),
        "images": np.zeros(2, np.int64),
    }
    before = runtime.session(model, ["CPUExecutionProvider"]).run(None, feeds)[0]
    raise_opset(model.graph)
    assert model.opset_imports[""] == 16
    after = runtime.session(model, ["CPUExecutionProvider"]).run(None, feeds)[0]
    np.testing.assert_array_equal(after, before)


def test_only_older_ones_are_raised() -> None:
    model = _model('<ir_version: 8, opset_import: ["" : 17]> net (float[2] x) => (float[2] y) { y = Neg(x) }')
    raise_opset(model.graph)
    assert model.opset_imports[""] == 17


@pytest.mark.parametrize(
    ("version", "call", "message"),
    [
        (12, "y = Relu(x)", "operator set 12 is too old to be differentiated; upgrade the model: surgery convert"),
        (13, "y, mean, var = BatchNormalization(x, s, s, s, s)", "BatchNormalization '.*' has the training outputs of"),
    ],
)
def test_errors(version: int, call: str, message: str) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {version}]>'
    text = f"{header} net (float[2, 3] x, float[3] s) => (float[2, 3] y) {{ {call} }}"
    with pytest.raises(SurgeryError, match=message):
        raise_opset(_model(text).graph)
