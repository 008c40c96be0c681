"""Models that take data."""

from __future__ import annotations

import onnx_ir as ir

from surgery.marks import Preprocessing, set_preprocessing


def model_with_input(*shape: int | str, how: Preprocessing | None = None) -> ir.Model:
    data = ir.val("data", ir.DataType.FLOAT, shape)
    node = ir.node("Relu", [data])
    node.outputs[0].name = "out"
    graph = ir.Graph([data], node.outputs, nodes=[node], opset_imports={"": 21}, name="net")
    model = ir.Model(graph, ir_version=10)
    set_preprocessing(model, "data", how)
    return model
