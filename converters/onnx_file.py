"""ONNX files as a source: loaded, cleaned and, if old, upgraded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from converters.registry import converter, reference
from surgery.errors import SurgeryError
from surgery.io import IR_VERSION, infer_shapes, load
from surgery.marks import Marks, marks
from surgery.runtime import load_runtime

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


@reference("ONNX")
def run_onnx(source: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns what ONNX Runtime computes from the file as it is."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"]).run(None, inputs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(f"{source}: ONNX Runtime cannot run the file as it is ({reason})") from error


def _upgrade(model: ir.Model, source: Path, version: int) -> ir.Model:
    model.ir_version = IR_VERSION  # in IR version 3 weights are graph inputs, which `load` has made them no longer
    try:
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]  # types change: Dropout's mask was a float once
        upgraded = ir.from_proto(onnx.version_converter.convert_version(proto, _UPGRADED))
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:  # the last for more than 2 GB
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(
            f"{source}: cannot be upgraded from operator set {version} to {_UPGRADED} ({reason}); export it with "
            f"operator set {_OLDEST} or later"
        ) from error
    LiftConstantsToInitializersPass(size_limit=0)(upgraded)  # axes and such, attributes before
    _copy_metadata(model, upgraded, source)
    infer_shapes(upgraded)
    return upgraded


def _copy_metadata(old: ir.Model, new: ir.Model, source: Path) -> None:
    """Copies the entries on values and operators, marks among them: onnx's version converter drops them."""
    values = ir.convenience.create_value_mapping(new.graph)
    for name, value in ir.convenience.create_value_mapping(old.graph).items():
        if name in values:
            values[name].metadata_props.update(value.metadata_props)
        elif marks(value) != Marks():
            raise SurgeryError(
                f"{source}: upgrading it to operator set {_UPGRADED} would lose the marks of parameter {name!r}; "
                f"export the network with operator set {_OLDEST} or later and mark that"
            )
    nodes = {node.name: node for node in new.graph}
    for node in old.graph:
        made = (values[str(o.name)].producer() for o in node.outputs if o.name in values)
        other = nodes.get(node.name) or next(made, None)
        if other is not None:
            other.metadata_props.update(node.metadata_props)
