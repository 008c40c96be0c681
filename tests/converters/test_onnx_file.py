"""ONNX files as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from converters.onnx_file import convert_onnx
from surgery import runtime
from surgery.errors import SurgeryError

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_old_operator_sets_are_upgraded(rng: np.random.Generator) -> None:
    path = LIGHT / "light_squeezenet.onnx"
    before = ir.load(path)
    after = convert_onnx(path)
    assert (before.opset_imports[""], after.opset_imports[""]) == (9, 17)
    assert [i.name for i in after.graph.inputs] == ["data_0"]
    image = rng.random((1, 3, 224, 224), dtype=np.float32)
    expected, found = (
        runtime.session(model, ["CPUExecutionProvider"]).run(None, {"data_0": image})[0] for model in (before, after)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_cannot_be_upgraded_is_an_error(tmp_path: Path) -> None:
    text = '<ir_version: 3, opset_import: ["" : 8]> old (float[2] x) => (float[2] y) { y = Homemade(x) }'
    path = tmp_path / "old.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    with pytest.raises(SurgeryError, match=r"old.onnx: cannot be upgraded from operator set 8 to 17 \(.+\); export it"):
        convert_onnx(path)
