"""Whether a model's tensors are what their file says: a model file is untrusted."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from surgery.errors import SurgeryError
from surgery.io.tensors import ExternalTensor, InlineTensor, Source

__all__ = ["check_names", "place_tensors"]

# Elements of a TensorProto's field per number, by its type, where that is not 1 (the comments of onnx.proto).
_FIELDS: dict[str, dict[int, int]] = {
    "float_data": {onnx.TensorProto.COMPLEX64: 2},
    "double_data": {onnx.TensorProto.COMPLEX128: 2},
    "int32_data": {},
    "int64_data": {},
    "uint64_data": {},
}


def check_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuses names that are there twice, in the same graph, and such as are no text.

    Raises:
        SurgeryError: There is one.
    """
    for function in proto.functions:
        _check_unique([*function.input, *(o for node in function.node for o in node.output)], path)
        _check_inside(function.node, path)
    _check_graph(proto.graph, path)


def _check_graph(graph: onnx.GraphProto, path: Path) -> None:
    weights = [tensor.name for tensor in graph.initializer]
    inputs = {value.name for value in graph.input}  # which weights are too in old files
    _check_unique(weights, path)
    _check_unique([value.name for value in graph.output], path)
    made = [name for node in graph.node for name in node.output]
    _check_unique([*(value.name for value in graph.input), *(set(weights) - inputs), *made], path)
    _check_inside(graph.node, path)


def _check_inside(nodes: Iterable[onnx.NodeProto], path: Path) -> None:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _check_graph(graph, path)


def _check_unique(names: list[str], path: Path) -> None:
    given = [name for name in names if name]
    if not all(isinstance(name, str) for name in given):  # protobuf hands on what it cannot decode
        raise SurgeryError(f"{path}: has a name that is not valid UTF-8; export the model again")
    name, count = max(Counter(given).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise SurgeryError(f"{path}: two values of one graph have the name {name!r}; export the model again")


def place_tensors(model: ir.Model, path: Path, source: Source, inline: str) -> None:
    """Checks all tensors of `model`, and puts those in files into the classes that read them when asked.

    Args:
        model: The model.
        path: Its file.
        source: The same, open.
        inline: What `surgery.io.thin` gave as the location of what lies in the model file itself.

    Raises:
        SurgeryError: A tensor has no type, not as many numbers as its shape says, or is in a file that is not the
            model's own, missing, or too short; or such tensors overlap.
    """
    places = _Places(path, source, inline)
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = places.place(value.const_value, inside=graph is not model.graph)
        for node in root.all_nodes():
            for attribute in list(node.attributes.values()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes.add(ir.AttrTensor(attribute.name, places.place(attribute.value, inside=True)))
                elif attribute.type == ir.AttributeType.TENSORS:
                    placed = [places.place(tensor, inside=True) for tensor in attribute.value]
                    node.attributes.add(ir.AttrTensors(attribute.name, placed))
    places.check_overlaps()


class _Places:
    """Where the tensors of one model are."""

    def __init__(self, path: Path, source: Source, inline: str) -> None:
        self.path, self.folder, self.source, self.inline = path, path.parent.resolve(), source, inline
        self._sources: dict[str, Source] = {}
        self._ranges: dict[Path, set[tuple[int, int, str]]] = defaultdict(set)

    def place(self, tensor: ir.TensorProtocol, inside: bool = False) -> ir.TensorProtocol:
        """Returns `tensor`, or one that reads it from its file; `inside` the model when that is written again."""
        try:
            undefined = tensor.dtype == ir.DataType.UNDEFINED
        except ValueError as error:
            raise self._wrong(tensor, "has a type that there is not") from error
        if undefined:
            raise self._wrong(tensor, "has no type")
        if any(isinstance(d, int) and d < 0 for d in tensor.shape):
            raise self._wrong(tensor, f"has the shape {tensor.shape}")
        if isinstance(tensor, ir.ExternalTensor):
            if tensor.location == self.inline:
                return self._inline(tensor, self.source)
            source = self._source(tensor)
            tensor.base_dir = self.path.parent
            self._check_range(tensor, source)
            return self._inline(tensor, source) if inside else ExternalTensor(tensor, source)
        found = _contents(tensor)
        if found is not None and found[0] != found[1]:
            raise self._wrong(tensor, f"of shape {tensor.shape} needs {found[1]} {found[2]} and has {found[0]}")
        return tensor

    def _wrong(self, tensor: ir.TensorProtocol, what: str) -> SurgeryError:
        return SurgeryError(f"{self.path}: weight {tensor.name!r} {what}; export the model again")

    def _inline(self, tensor: ir.ExternalTensor, source: Source) -> InlineTensor:
        if source is self.source and tensor.length != tensor.nbytes:
            raise self._wrong(tensor, f"of shape {tensor.shape} needs {tensor.nbytes} bytes and has {tensor.length}")
        return InlineTensor(
            source,
            tensor.offset or 0,
            tensor.dtype,
            tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    def _source(self, tensor: ir.ExternalTensor) -> Source:
        """The file that a tensor is in, if it is one of the model's own."""
        location = os.fspath(tensor.location)
        if location in self._sources:
            return self._sources[location]
        if "\0" in location or not location:
            raise SurgeryError(f"{self.path}: weight {tensor.name!r} has no valid file name ({location!r})")
        where = (self.folder / location).resolve()
        if not where.is_relative_to(self.folder):
            raise SurgeryError(f"{self.path}: weight {tensor.name!r} points outside the model's folder ({location})")
        if not where.exists():
            raise SurgeryError(f"{self.path}: weight file {location} is missing; copy it next to the model")
        if not where.is_file():
            raise SurgeryError(f"{self.path}: weight file {location} is not a file")
        self._check_links(where, location)
        self._sources[location] = Source(where)
        return self._sources[location]

    def _check_links(self, where: Path, location: str) -> None:
        """Refuses a hard link to another user's file, by which that user's data would become part of the model."""
        file = where.stat()
        if file.st_nlink > 1 and file.st_uid != self.path.stat().st_uid:
            raise SurgeryError(
                f"{self.path}: weight file {location} is a hard link to another user's file; put a copy in its place"
            )

    def _check_range(self, tensor: ir.ExternalTensor, source: Source) -> None:
        """Refuses what goes past the end of its file, or is not of the length that its shape says."""
        size, offset = tensor.nbytes, tensor.offset or 0
        if offset < 0 or (tensor.length or size) != size:
            raise SurgeryError(
                f"{self.path}: weight {tensor.name!r} of {size} bytes is said to be {tensor.length} bytes at {offset}; "
                "export the model again"
            )
        if offset + size > source.size:
            raise SurgeryError(
                f"{self.path}: weight file {tensor.location} is too short for {tensor.name!r}; copy it again"
            )
        if size:
            self._ranges[source.path].add((offset, offset + size, str(tensor.name)))

    def check_overlaps(self) -> None:
        """Refuses tensors that share a part of their bytes; the same bytes for several are how weights are shared."""
        for file, ranges in self._ranges.items():
            start, end, last = 0, 0, ""
            for first, after, name in sorted(ranges):
                if first < end and (first, after) != (start, end):
                    raise SurgeryError(
                        f"{self.path}: weights {last!r} and {name!r} overlap in {file.name}; export the model again"
                    )
                start, end, last = first, after, name


def _contents(tensor: ir.TensorProtocol) -> tuple[int, int, str] | None:
    """How many bytes or numbers a tensor has and needs, and what is counted; None where it cannot differ."""
    proto = getattr(tensor, "raw", None)
    if isinstance(tensor, ir.StringTensor):
        return len(tensor.string_data()), tensor.size, "texts"
    if not isinstance(proto, onnx.TensorProto):
        return None
    if proto.HasField("raw_data"):
        return len(proto.raw_data), tensor.nbytes, "bytes"
    size = tensor.nbytes if tensor.dtype.bitwidth < 8 else tensor.size  # packed into bytes
    for field, factors in _FIELDS.items():
        if count := len(getattr(proto, field)):
            return count, size * factors.get(proto.data_type, 1), "numbers"
    return 0, size, "numbers"
