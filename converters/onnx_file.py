"""ONNX files as a source: loaded, cleaned and, if old, upgraded."""

from __future__ import annotations

from pathlib import Path

import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from converters.registry import converter
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes, load

__all__ = ["convert_onnx"]

_OLDEST = 13
_UPGRADED = 17


@converter("ONNX", recognizes=lambda path: path.suffix == ".onnx")
def convert_onnx(source: Path) -> ir.Model:
    """Loads an ONNX file; operator sets before 13, the first with gradients, are upgraded to 17.

    Args:
        source: The file.

    Raises:
        SurgeryError: It cannot be read, its operator set is newer than the runtimes read, or it cannot be upgraded.
    """
    model = load(source)
    version = model.opset_imports.get("", _OLDEST)
    return _upgrade(model, source, version) if version < _OLDEST else model


def _upgrade(model: ir.Model, source: Path, version: int) -> ir.Model:
    model.ir_version = IR_VERSION  # in IR version 3 weights are graph inputs, which `load` has made them no longer
    try:
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]  # types change: Dropout's mask was a float once
        model = ir.from_proto(onnx.version_converter.convert_version(proto, _UPGRADED))
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:  # the last for more than 2 GB
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(
            f"{source}: cannot be upgraded from operator set {version} to {_UPGRADED} ({reason}); export it with "
            f"operator set {_OLDEST} or later"
        ) from error
    LiftConstantsToInitializersPass(size_limit=0)(model)  # axes and such, attributes before
    infer_shapes(model)
    return model
