"""Load and save models: files that are not ONNX get a clear error, and a failed save leaves the old file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from surgery.errors import SurgeryError

__all__ = ["IR_VERSION", "MAX_OPSET", "infer_shapes", "load", "replacing", "save"]

IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads, and the oldest with metadata on every part
MAX_OPSET = 21  # likewise
_PROTOBUF_LIMIT = 2**31 - 1
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the model file


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Loads an ONNX model; weights in external files stay there, memory-mapped.

    Raises:
        SurgeryError: The file is missing, empty, truncated, not ONNX, or of an operator set newer than `MAX_OPSET`.
    """
    path = Path(path)
    if not path.exists():
        raise SurgeryError(f"{path}: no such file")
    if path.is_dir():
        raise SurgeryError(f"{path}: is a folder; name the .onnx file in it")
    if path.stat().st_size == 0:
        raise SurgeryError(f"{path}: is empty; export or copy the model again")
    try:
        model = ir.load(path, format="protobuf")
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise SurgeryError(f"{path}: is not a readable ONNX file, or is truncated ({_first_line(error)})") from error
    if not len(model.graph) and not model.graph.outputs:
        raise SurgeryError(f"{path}: is not an ONNX model (it has no graph)")
    opset = model.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        raise SurgeryError(
            f"{path}: uses operator set {opset}, newer than {MAX_OPSET}, the last one every supported runtime reads; "
            f"export it with opset {MAX_OPSET} or lower"
        )
    _check_external_data(model, path)
    for node in model.graph:  # layers and selectors go by name, so every node has one
        if not node.name:
            node.name = node.outputs[0].name if node.outputs else node.op_type
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    folder = path.parent.resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        where = (folder / tensor.location).resolve()
        if not where.is_relative_to(folder):
            raise SurgeryError(f"{path}: weight {value.name!r} points outside the model's folder ({tensor.location})")
        if not where.exists():
            raise SurgeryError(f"{path}: weight file {tensor.location} is missing; copy it next to the model")
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if end > where.stat().st_size:
            raise SurgeryError(f"{path}: weight file {tensor.location} is too short for {value.name!r}; copy it again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to `path`, renamed onto it when the block succeeds and removed when it fails.

    Raises:
        SurgeryError: The folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """The permissions `path` has, or those a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Saves `model` as IR version 10; weights that were in external files, or are too big for one file, go to one.

    External weights already in the folder of `path` and untouched are referred to, not copied.

    Raises:
        SurgeryError: The file cannot be written. What was there before is left as it was.
    """
    path = Path(path)
    model.ir_version = IR_VERSION
    weights = [v for v in model.graph.initializers.values() if v.const_value is not None]
    originals = [v.const_value for v in weights]
    external = [t for t in originals if isinstance(t, ir.ExternalTensor)]
    elsewhere = [t for t in external if not _in_folder(t, path.parent)]
    inline = sum(t.nbytes for t in originals if t is not None and not isinstance(t, ir.ExternalTensor))
    move = bool(elsewhere) or inline > _PROTOBUF_LIMIT - 2**24
    with contextlib.ExitStack() as stack:
        if move:
            data = path.parent / f"{path.name}.data"
            with replacing(data) as temporary:
                moved = ir.external_data.convert_tensors_to_external(
                    [t for t in originals if t is not None and t.nbytes >= _EXTERNAL_THRESHOLD],
                    temporary.parent,
                    temporary.name,
                )
            names = iter(moved)
            for value, tensor in zip(weights, originals, strict=True):
                if tensor is not None and tensor.nbytes >= _EXTERNAL_THRESHOLD:
                    new = next(names)
                    assert isinstance(new, ir.ExternalTensor)
                    value.const_value = ir.ExternalTensor(
                        data.name,
                        new.offset,
                        new.length,
                        new.dtype,
                        shape=new.shape,
                        name=new.name,
                        base_dir=path.parent,
                    )
            stack.callback(_restore, weights, originals)
        with replacing(path) as temporary:
            onnx.save(ir.to_proto(model), temporary, format="protobuf")


def _in_folder(tensor: ir.ExternalTensor, folder: Path) -> bool:
    return Path(tensor.base_dir or ".").resolve() == folder.resolve()


def _restore(values: list[ir.Value], tensors: list[ir.TensorProtocol | None]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor


def infer_shapes(model: ir.Model) -> None:
    """Infers the shape and type of every value of `model`, in place.

    Raises:
        SurgeryError: The graph is inconsistent; the message names the node.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
