"""ONNX files as a source: loaded and cleaned."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from converters.registry import converter

__all__ = ["convert_onnx"]


@converter("ONNX", recognizes=lambda path: path.suffix == ".onnx")
def convert_onnx(source: Path) -> ir.Model:
    """Loads an ONNX file; weights that are also graph inputs or come from Constant nodes become plain initializers.

    Args:
        source: The file.

    Raises:
        SurgeryError: It cannot be read, or its operator set is newer than the runtimes read.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

    from surgery.io import load

    model = load(source)
    RemoveInitializersFromInputsPass()(model)
    LiftConstantsToInitializersPass()(model)
    return model
