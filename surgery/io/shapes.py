"""Shape inference without the weights."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.proto import first_line, light_proto

__all__ = ["infer_shapes"]

_THRESHOLD = 1024  # bytes; shape inference looks at the contents of smaller tensors only


def infer_shapes(model: ir.Model, *, strict: bool = True) -> None:
    """Infers the shape and type of every value of `model`, in place.

    Args:
        model: The model.
        strict: Whether an inconsistent graph is an error; otherwise what lies behind the fault stays unknown.

    Raises:
        SurgeryError: The graph is inconsistent; the message names the operator.
    """
    try:  # the weights' shapes are enough, and protobuf's limit is 2 GB
        proto, _ = light_proto(model, _THRESHOLD, model.graphs())
    except (ValueError, RuntimeError) as error:
        raise SurgeryError(f"the graph is inconsistent: {first_line(error)}") from error
    for node in proto.graph.node:
        if node.op_type == "GroupNormalization" and not node.domain:  # onnx infers nothing from it
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    try:
        inferred = _infer(proto, strict)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        try:  # with nothing but the inputs: a file may say wrong shapes, which no runtime looks at
            del proto.graph.value_info[:]
            for output in proto.graph.output:
                output.type.tensor_type.ClearField("shape")
            inferred = _infer(proto, strict)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = re.sub(r"\[\w+Error\] |Inference error\(s\): ", "", lines[0]) if lines else type(error).__name__
            raise SurgeryError(f"the graph is inconsistent: {reason}") from error
    for graph, found in zip(model.graphs(), ir.from_proto(inferred).graphs(), strict=True):
        known = ir.convenience.create_value_mapping(found)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            other = known.get(name) if not value.is_initializer() else None
            if other is not None and other.type is not None:
                value.type = other.type
            if other is not None and other.shape is not None:
                value.shape = other.shape


def _infer(proto: onnx.ModelProto, strict: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=True)
