"""Loading: the graph is parsed, the weights stay in their files."""

from __future__ import annotations

import contextlib
import os
import uuid
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from surgery.errors import SurgeryError
from surgery.io.cleaning import clean
from surgery.io.safety import check_names, place_tensors
from surgery.io.shapes import infer_shapes
from surgery.io.tensors import Source
from surgery.io.thin import thin
from surgery.io.versions import MAX_OPSET, MIN_OPSET
from surgery.proto import BIG, first_line
from surgery.quiet import quiet
from surgery.wiring import check_wiring

__all__ = ["load"]


def load(path: str | os.PathLike[str], *, oldest: int = MIN_OPSET) -> ir.Model:
    """Loads an ONNX model; its big weights stay in their files until somebody looks at them.

    Weights become plain initializers of the shape in which they are used, also where the file has them as graph inputs
    (as IR version 3 demands), as Constant operators or behind a Reshape. Every operator gets a name, and shapes are
    inferred where the file has none.

    Args:
        path: The file.
        oldest: The oldest operator set that is wanted; no runtime reads one before `MIN_OPSET`.

    Raises:
        SurgeryError: The file is missing, empty, truncated, not ONNX, or of an operator set outside `oldest` to
            `MAX_OPSET`; its graph is not one; or its weights are missing, of another size than their shape, overlap,
            or are outside the model's folder.
    """
    path = Path(path)
    if path.is_dir():
        raise SurgeryError(f"{path}: is a folder; name the .onnx file in it")
    if not path.exists():
        raise SurgeryError(f"{path}: no such file")
    if not path.is_file():
        raise SurgeryError(f"{path}: is not a file")
    if path.stat().st_size == 0:
        raise SurgeryError(f"{path}: is empty; export or copy the model again")
    inline = f"in the model {uuid.uuid4().hex}"  # which no file can have guessed
    try:
        source = Source(path, hold=True)
        proto = onnx.ModelProto.FromString(thin(memoryview(source.mapping), BIG, inline))
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DecodeError as error:
        raise SurgeryError(f"{path}: is not a readable ONNX file, or is truncated ({first_line(error)})") from error
    check_names(proto, path)
    try:
        # Keeps onnx-ir from logging what is raised, and onnx from warning of what is ignored.
        with quiet("onnx_ir"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ir.from_proto(proto)
            if not len(model.graph) and not model.graph.outputs:
                raise SurgeryError(f"{path}: is not an ONNX model (it has no graph)")
            _check_opset(model, path, oldest)
            check_wiring(model, path)
            place_tensors(model, path, source, inline)
            clean(model)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise SurgeryError(f"{path}: is not a readable ONNX file, or is truncated ({first_line(error)})") from error
    if any(o.dtype is None for node in model.graph for o in node.outputs if o.uses() or o.is_graph_output()):
        with contextlib.suppress(SurgeryError):  # what the file says otherwise is as good as without
            infer_shapes(model)
    return model


def _check_opset(model: ir.Model, path: Path, oldest: int) -> None:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset > MAX_OPSET:
        raise SurgeryError(
            f"{path}: uses operator set {opset}, newer than {MAX_OPSET}, the last one every supported runtime reads; "
            f"export it with opset {MAX_OPSET} or lower"
        )
    if opset < oldest and any(node.domain in ("", "ai.onnx") for node in model.graph):
        raise SurgeryError(
            f"{path}: uses operator set {opset}; {oldest} is the oldest that ONNX Runtime reads; export it anew or "
            "raise it with `surgery convert`"
        )
