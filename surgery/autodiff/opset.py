"""The operator set that gradients are written in."""

from __future__ import annotations

import onnx_ir as ir

from surgery.errors import SurgeryError

__all__ = ["raise_opset"]

_ADDITION = 16  # the first operator set whose ScatterElements can add, which indexing and pooling need


def raise_opset(graph: ir.Graph) -> None:
    """Raises a graph of operator set 13–15 to 16, in which the same operators mean the same.

    Between the two, operators gained types and optional attributes only, but for RoiAlign, whose old behaviour is
    spelled out, and BatchNormalization with more than one output.

    Raises:
        SurgeryError: The graph is older than 13, or a BatchNormalization has outputs that operator set 14 took away.
    """
    version = graph.opset_imports.get("", _ADDITION)
    if version < 13:
        raise SurgeryError(
            f"operator set {version} is too old to be differentiated; upgrade the model: surgery convert"
        )
    if version >= _ADDITION:
        return
    for node in graph.all_nodes():
        if node.op_type == "RoiAlign" and node.domain == "":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "output_half_pixel"
            )
        elif node.op_type == "BatchNormalization" and version < 14 and sum(bool(o.name) for o in node.outputs) > 1:
            raise SurgeryError(
                f"BatchNormalization {node.name!r} has the training outputs of operator set {version}; export the "
                "model for inference or with operator set 14 or later"
            )
    graph.opset_imports[""] = _ADDITION
