"""Models as protobuf messages, without their weights in memory once more."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir

__all__ = ["BIG", "first_line", "light_proto", "prefix", "write_model", "write_tensor"]

BIG = 2**16  # bytes; weights from here on go from file to file

# Field numbers of onnx.proto; each is a message or bytes.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2  # the wire type of those


def light_proto(
    model: ir.Model, least: int, graphs: Iterable[ir.Graph | ir.Function] | None = None
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Returns `model` as a message in which weights of more than `least` bytes have shape and type only.

    Those are initializers of `graphs`, by default of the main graph; they come along by name. What is in external
    files stays a reference.
    """
    chosen = [graph for graph in graphs or [model.graph] if isinstance(graph, ir.Graph)]
    values = [value for graph in chosen for value in graph.initializers.values()]
    big = [v for v in values if _is_inside(v.const_value) and v.const_value.nbytes > least]  # type: ignore[union-attr]
    tensors = [v.const_value for v in big]
    try:
        for value, tensor in zip(big, tensors, strict=True):
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                "-", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
            )
        proto = ir.to_proto(model)
    finally:
        for value, tensor in zip(big, tensors, strict=True):
            value.const_value = tensor
    return proto, {str(v.name): t for v, t in zip(big, tensors, strict=True) if t is not None}


def _is_inside(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor)


def write_model(model: ir.Model, path: Path, least: int = BIG) -> None:
    """Writes `model` as an ONNX file; weights of more than `least` bytes go straight from where they are to the file.

    The result is what ``onnx.save`` writes, but that the graph comes last and its initializers last in it, which is
    all the same to protobuf.
    """
    proto, big = light_proto(model, least)
    initializers = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    parts: list[bytes | ir.TensorProtocol] = []
    size = 0
    for initializer in initializers:
        tensor = big.get(initializer.name)
        if tensor is not None:
            for field in ("data_location", "external_data"):
                initializer.ClearField(field)
        content = initializer.SerializeToString()
        tail = 0
        if tensor is not None:
            content += prefix(_TENSOR_RAW_DATA, tensor.nbytes)
            tail = tensor.nbytes
        content = prefix(_GRAPH_INITIALIZER, len(content) + tail) + content
        size += len(content) + tail
        parts += [content] if tensor is None else [content, tensor]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(prefix(_MODEL_GRAPH, len(graph) + size))
        file.write(graph)
        for part in parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                write_tensor(part, file)


def write_tensor(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    """Writes the bytes of `tensor`, without copies of them where it knows how."""
    if isinstance(tensor, ir.Tensor | ir.LazyTensor | ir.ExternalTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def prefix(field: int, length: int) -> bytes:
    """The key and the length in front of a field's content (protobuf.dev/programming-guides/encoding)."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def first_line(error: BaseException) -> str:
    """What went wrong at the bottom: onnx-ir wraps an error once for every level of the file."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
