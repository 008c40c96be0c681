"""Softmax, and what stands at the end of a net."""

from __future__ import annotations

import onnx_ir as ir

from converters.caffe.context import Context, layer

__all__: list[str] = []


@layer("Softmax")
def softmax(c: Context) -> ir.Value:
    c.need(1)
    return c.op.Softmax(c.x, axis=c.axis(c.layer.softmax_param.axis))
