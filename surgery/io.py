"""Load and save models: files that are not ONNX get a clear error, and a failed save leaves the old file."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

from surgery.errors import SurgeryError
from surgery.proto import light_proto, write_model
from surgery.wiring import check_wiring

__all__ = ["IR_VERSION", "MAX_OPSET", "MIN_OPSET", "file_mode", "infer_shapes", "load", "replacing", "save"]

IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads, and the oldest with metadata on every part
MAX_OPSET = 21  # likewise
MIN_OPSET = 7  # the oldest that ONNX Runtime reads
_PROTOBUF_LIMIT = 2**31 - 1
_GRAPH_ROOM = 2**24  # bytes; what a model file holds besides its weights
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the model file
_INFERENCE_THRESHOLD = 1024  # bytes; shape inference looks at the contents of smaller tensors only


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Loads an ONNX model; weights in external files stay there, memory-mapped.

    Weights become plain initializers of the shape in which they are used, also where the file has them as graph inputs
    (as IR version 3 demands), as Constant operators or behind a Reshape. Every operator gets a name, and shapes are
    inferred where the file has none.

    Raises:
        SurgeryError: The file is missing, empty, truncated, not ONNX, or of an operator set outside `MIN_OPSET` to
            `MAX_OPSET`; or its weights are missing, too short, or outside the model's folder.
    """
    path = Path(path)
    if path.is_dir():
        raise SurgeryError(f"{path}: is a folder; name the .onnx file in it")
    if not path.exists():
        raise SurgeryError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SurgeryError(f"{path}: is empty; export or copy the model again")
    try:
        with _quiet():
            model = ir.load(path, format="protobuf")
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise SurgeryError(f"{path}: is not a readable ONNX file, or is truncated ({_first_line(error)})") from error
    if not len(model.graph) and not model.graph.outputs:
        raise SurgeryError(f"{path}: is not an ONNX model (it has no graph)")
    _check_opset(model, path)
    check_wiring(model, path)
    _check_weights(model, path)
    RemoveInitializersFromInputsPass()(model)
    LiftConstantsToInitializersPass(size_limit=0)(model)
    _reshape_weights(model.graph)
    for value in _weights(model):  # what the file says of a weight besides is of no account
        assert value.const_value is not None
        value.shape = ir.Shape(value.const_value.shape.numpy())
        value.type = ir.TensorType(value.const_value.dtype)
    _name_nodes(model)
    _separate_statistics(model.graph)
    if any(o.dtype is None for node in model.graph for o in node.outputs if o.uses() or o.is_graph_output()):
        with contextlib.suppress(SurgeryError):  # what the file says otherwise is as good as without
            infer_shapes(model)
    return model


def _check_opset(model: ir.Model, path: Path) -> None:
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset > MAX_OPSET:
        raise SurgeryError(
            f"{path}: uses operator set {opset}, newer than {MAX_OPSET}, the last one every supported runtime reads; "
            f"export it with opset {MAX_OPSET} or lower"
        )
    if opset < MIN_OPSET and any(node.domain in ("", "ai.onnx") for node in model.graph):
        raise SurgeryError(
            f"{path}: uses operator set {opset}; {MIN_OPSET} is the oldest that ONNX Runtime reads; export it anew or "
            "raise it with onnx.version_converter"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps onnx-ir from logging what `check_wiring` raises."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reshape_weights(graph: ir.Graph) -> None:
    """Gives weights the shape in which they are used, where a Reshape does (Caffe2's exporter writes such)."""
    for node in list(graph):
        if node.op_type != "Reshape" or len(node.inputs) != 2:
            continue
        weight, shape = node.inputs
        target = ir.convenience.get_const_tensor(shape) if shape is not None else None
        old = weight.const_value if weight is not None and weight.is_initializer() else None
        if weight is None or old is None or target is None or len(weight.uses()) != 1 or weight.is_graph_output():
            continue
        if node.outputs[0].is_graph_output() or "allowzero" in node.attributes:
            continue
        before = old.shape.numpy()
        dims = [before[i] if d == 0 and i < len(before) else int(d) for i, d in enumerate(target.numpy().tolist())]
        if -1 in dims:
            dims[dims.index(-1)] = math.prod(before) // max(1, -math.prod(dims))
        if any(d < 1 for d in dims) or math.prod(dims) != math.prod(before):
            continue  # an error in the file, for whoever runs it
        weight.const_value, weight.shape = _reshaped(old, ir.Shape(dims)), ir.Shape(dims)
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        if shape is not None and shape.is_initializer() and not shape.uses():
            graph.initializers.pop(str(shape.name))


def _reshaped(tensor: ir.TensorProtocol, shape: ir.Shape) -> ir.TensorProtocol:
    """`tensor` in another shape; one in a file stays there."""
    if isinstance(tensor, ir.ExternalTensor):
        place = (tensor.location, tensor.offset, tensor.length)
        return ir.ExternalTensor(*place, tensor.dtype, shape=shape, name=tensor.name, base_dir=tensor.base_dir)
    array = tensor.numpy().reshape([int(d) for d in shape if isinstance(d, int)])
    return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=tensor.name)


def _name_nodes(model: ir.Model) -> None:
    """Names the operators that have no name by their first output: layers and selectors go by name."""
    for node in model.graph:
        if not node.name:
            node.name = next((o.name for o in node.outputs if o.name), node.op_type)


def _separate_statistics(graph: ir.Graph) -> None:
    """Gives each BatchNormalization statistics of its own: PyTorch's exporter makes equal tensors one, as 0 and 1."""
    for node in list(graph):
        if node.op_type != "BatchNormalization" or len(node.inputs) != 5:
            continue
        for index, role in ((3, "running_mean"), (4, "running_var")):
            value = node.inputs[index]
            maker = value.producer() if value is not None else None
            source = maker.inputs[0] if maker is not None and maker.op_type == "Identity" else value
            if value is None or source is None or source.const_value is None or not source.is_initializer():
                continue
            if all(user.op_type == node.op_type and i == index for user, i in source.uses()):
                continue
            name = f"{node.name}.{role}"
            while name in graph.initializers:
                name += "_"
            own = ir.Value(name=name, shape=source.shape, type=source.type)
            node.replace_input_with(index, own)
            if maker is not None and source is not value and not value.uses() and not value.is_graph_output():
                own.name = value.name  # the one it had in PyTorch
                graph.remove(maker, safe=True)
            own.const_value = ir.Tensor(
                source.const_value.numpy().copy(), dtype=source.const_value.dtype, name=own.name
            )
            graph.register_initializer(own)


def _weights(model: ir.Model) -> list[ir.Value]:
    """The initializers of `model` that hold something, those of subgraphs included."""
    return [v for graph in model.graphs() for v in graph.initializers.values() if v.const_value is not None]


def _check_weights(model: ir.Model, path: Path) -> None:
    """Refuses weights without a type, and such as are in files that are not the model's own."""
    for value in _weights(model):
        if value.const_value is not None and value.const_value.dtype == ir.DataType.UNDEFINED:
            raise SurgeryError(f"{path}: weight {value.name!r} has no type; export the model again")
    folder = path.parent.resolve()
    for graph in model.graphs():
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    _check_external_tensor(attribute.value, folder, path)
    for value in _weights(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_external_tensor(value.const_value, folder, path)


def _check_external_tensor(tensor: ir.ExternalTensor, folder: Path, path: Path) -> None:
    """Refuses what could read another file than the model's own, or past its end."""
    location = os.fspath(tensor.location)
    if "\0" in location or not location:
        raise SurgeryError(f"{path}: weight {tensor.name!r} has no valid file name ({location!r})")
    where = (folder / location).resolve()
    if not where.is_relative_to(folder):
        raise SurgeryError(f"{path}: weight {tensor.name!r} points outside the model's folder ({location})")
    if not where.exists():
        raise SurgeryError(f"{path}: weight file {location} is missing; copy it next to the model")
    if not where.is_file():
        raise SurgeryError(f"{path}: weight file {location} is not a file")
    size = tensor.nbytes
    offset = tensor.offset or 0
    if offset < 0 or (tensor.length or size) != size:
        raise SurgeryError(
            f"{path}: weight {tensor.name!r} of {size} bytes is said to be {tensor.length} bytes at {offset}; "
            "export the model again"
        )
    if offset + size > where.stat().st_size:
        raise SurgeryError(f"{path}: weight file {location} is too short for {tensor.name!r}; copy it again")


def _first_line(error: BaseException) -> str:
    """What went wrong at the bottom: onnx-ir wraps an error once for every level of the file."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
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
        os.chmod(temporary, file_mode(path))
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def file_mode(path: Path) -> int:
    """The permissions `path` has, or those a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Saves `model` as IR version 10; weights that were in external files, or are too big for one file, go to one.

    External weights already in the folder of `path` are referred to, not copied. Where weights are written to a file
    of their own (``<path>.data``), `model` refers to that file afterwards.

    Raises:
        SurgeryError: The file cannot be written. What was there before is left as it was.
    """
    path = Path(path)
    model.ir_version = IR_VERSION
    weights = _weights(model)
    before = [v.const_value for v in weights]
    inline = sum(v.nbytes for v in before if v is not None and not isinstance(v, ir.ExternalTensor))
    elsewhere = any(isinstance(v, ir.ExternalTensor) and not _in_folder(v, path.parent) for v in before)
    try:
        with contextlib.ExitStack() as stack:
            if elsewhere or inline > _PROTOBUF_LIMIT - _GRAPH_ROOM:
                data = path.with_name(f"{path.name}.data")
                temporary = stack.enter_context(replacing(data))
                _externalize(weights, temporary, data)
            temporary = stack.enter_context(replacing(path))
            write_model(model, temporary)
    except (EncodeError, ValueError) as error:
        _restore(weights, before)
        raise SurgeryError(f"{path}: the model cannot be written ({_first_line(error)})") from error
    except BaseException:
        _restore(weights, before)
        raise


def _externalize(weights: list[ir.Value], temporary: Path, data: Path) -> None:
    """Writes the big weights to `temporary`, and makes them refer to `data`, which it is to become."""
    big = [v for v in weights if v.const_value is not None and v.const_value.nbytes >= _EXTERNAL_THRESHOLD]
    tensors = [v.const_value for v in big if v.const_value is not None]
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() == data.resolve():
            tensor.numpy()  # maps the old file, which others may go on using when the new one has its name
    written = ir.external_data.convert_tensors_to_external(tensors, temporary.parent, temporary.name)
    for value, new in zip(big, written, strict=True):
        value.const_value = ir.ExternalTensor(
            data.name, new.offset, new.length, new.dtype, shape=new.shape, name=new.name, base_dir=data.parent
        )


def _in_folder(tensor: ir.ExternalTensor, folder: Path) -> bool:
    return Path(tensor.base_dir or ".").resolve() == folder.resolve()


def _restore(values: list[ir.Value], tensors: list[ir.TensorProtocol | None]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor


def infer_shapes(model: ir.Model, *, strict: bool = True) -> None:
    """Infers the shape and type of every value of `model`, in place.

    Args:
        model: The model.
        strict: Whether an inconsistent graph is an error; otherwise what lies behind the fault stays unknown.

    Raises:
        SurgeryError: The graph is inconsistent; the message names the operator.
    """
    try:  # the weights' shapes are enough, and protobuf's limit is 2 GB
        proto, _ = light_proto(model, _INFERENCE_THRESHOLD, model.graphs())
    except (ValueError, RuntimeError) as error:
        raise SurgeryError(f"the graph is inconsistent: {_first_line(error)}") from error
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
