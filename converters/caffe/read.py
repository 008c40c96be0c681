"""Caffe's files: which belong together, and what is in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import text_format

from converters.caffe.caffe_pb2 import NetParameter, SolverParameter
from converters.caffe.fields import Fields, parse_fields
from converters.caffe.hdf5 import read_hdf5
from converters.caffe.upgrade import upgrade
from converters.caffe.wire import Blob, scan
from converters.files import check_start
from surgery.errors import SurgeryError

__all__ = ["Source", "find_files", "is_caffe", "networks", "parse_text", "read_source"]

_MOST_TEXT, _MOST_LAYERS = 2**24, 20_000  # bytes and layers; definitions of published nets have less than a tenth
_DEFINITION, _WEIGHTS = (".prototxt", ".prototxt.txt"), (".caffemodel", ".caffemodel.h5")


@dataclasses.dataclass(frozen=True)
class Source:
    """A Caffe network as read, in the current format.

    Attributes:
        net: Its definition, without weights.
        weights: The blobs of each layer that has any, by layer name.
        path: The file that errors name: the definition, or the weights where the definition comes from there.
        weights_path: The file of the weights, if there is one.
        trained: The definition of the training net, which is in the weights' file.
        fields: For each layer, its fields as the definition has them, those included that only a fork knows.
        folder: Where files that the definition names may lie.
    """

    net: NetParameter
    weights: dict[str, list[Blob]]
    path: Path
    weights_path: Path | None
    trained: NetParameter | None = None
    fields: list[Fields] = dataclasses.field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.path.parent


def is_caffe(path: Path) -> bool:
    """Whether `path` is one of Caffe's files."""
    return path.is_file() and path.name.endswith(_DEFINITION + _WEIGHTS)


def networks(folder: Path) -> list[Path]:
    """The files of `folder` that stand for a network: its definitions, or weights where there are none.

    Several weights, of which none is known to be the only definition's, count too: which is meant is to be said.
    """
    definitions, models = _definitions(folder), _files(folder, _WEIGHTS)
    if len(definitions) == 1 and len(models) > 1 and find_files(definitions[0])[1] is None:
        return definitions + models
    return definitions or models


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(endings) and p.is_file())


def _stem(path: Path) -> str:
    """The name without its ending and the words that tell definitions of one network apart."""
    name = path.name
    for ending in sorted(_DEFINITION + _WEIGHTS, key=len, reverse=True):
        name = name.removesuffix(ending)
    return name.removesuffix("_deploy").removesuffix("-deploy").removesuffix(".deploy")


def _definitions(folder: Path) -> list[Path]:
    """The files of `folder` that may define a network to run: not those that the names say to be for training."""
    found = [p for p in _files(folder, _DEFINITION) if "solver" not in _words(p)]
    deploy = [p for p in found if not any(w.startswith("train") or w in ("test", "val") for w in _words(p))]
    return deploy or found


def _words(path: Path) -> list[str]:
    return re.split("[^a-z]+", path.name.lower())


def find_files(source: Path, weights: Path | None = None) -> tuple[Path | None, Path | None]:
    """Returns definition and weights that belong to `source`, either one.

    A file's partner is the one of the same name (``net.prototxt`` or ``net_deploy.prototxt`` and ``net.caffemodel``),
    else the only one of its kind in the folder, where `source` is the only one of its own (training definitions and
    solvers do not count). A caffemodel also holds a definition, which serves where there is no other.
    """
    folder = source.parent
    if source.name.endswith(_WEIGHTS):
        return _partner(source, _definitions(folder), _files(folder, _WEIGHTS)), weights or source
    if weights is None:
        weights = _partner(source, _files(folder, _WEIGHTS), _definitions(folder))
    return source, weights


def _partner(path: Path, others: list[Path], own: list[Path]) -> Path | None:
    same = [p for p in others if _stem(p) == _stem(path)]
    if len(same) == 1:
        return same[0]
    return others[0] if len(others) == 1 and own in ([path], []) else None


def read_source(source: Path, weights: Path | None = None, *, lenient: bool = False) -> Source:
    """Reads the network that `source` names, see `find_files`; where `lenient`, with the fields that only forks know.

    Raises:
        SurgeryError: A file is empty, truncated, or something else.
    """
    definition, weights = find_files(source, weights)
    blobs: dict[str, list[Blob]] = {}
    trained = net = None
    if weights is not None:
        trained, blobs = _read_weights(weights)
    fields: list[Fields] = []
    net = trained
    if definition is not None:
        parsed = parse_text(definition, NetParameter, lenient=lenient)
        net = upgrade(parsed, definition)
        if lenient:
            fields = _layer_fields(definition, net, len(parsed.layer))
    if net is None or (definition is None and not net.layer):
        raise SurgeryError(f"{source}: holds weights only; put its .prototxt next to it or name that instead")
    path = definition or weights
    assert path is not None
    return Source(net, blobs, path, weights, trained, fields)


_M = TypeVar("_M", NetParameter, SolverParameter)


def parse_text(path: Path, kind: type[_M], *, lenient: bool = False) -> _M:
    """Parses the text file `path` as a message of `kind`; where `lenient`, fields that it does not have are skipped.

    Raises:
        SurgeryError: It is empty or not of that kind; the message has line and column.
    """
    size = path.stat().st_size
    if size == 0:
        raise SurgeryError(f"{path}: is empty; copy it again")
    if size > _MOST_TEXT:
        raise SurgeryError(f"{path}: has {size / 2**20:.0f} MB, too much for a definition; is it the weights' file?")
    data = path.read_bytes()
    if sum(1 for _ in re.finditer(rb"layers?\s*[:{<]", data)) > _MOST_LAYERS:
        raise SurgeryError(f"{path}: has more than {_MOST_LAYERS:,} layers; no Caffe net has")
    if b"\0" in data:
        raise SurgeryError(f"{path}: is binary; a Caffe definition is text (weights go to `weights`)")
    try:
        return text_format.Parse(_decoded(data), kind(), allow_unknown_field=lenient)
    except text_format.ParseError as error:
        raise SurgeryError(f"{path}: is not a Caffe {_KINDS[kind]} ({error}){_hint(data, kind)}") from error


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _layer_fields(path: Path, net: NetParameter, count: int) -> list[Fields]:
    """The fields of the layers of `net`, as the file `path` has them; its own first ones, inputs, have none."""
    try:
        found = parse_fields(_decoded(path.read_bytes())).get("layer", [])
    except SurgeryError as error:
        raise SurgeryError(f"{path}: {error}") from error
    layers = found if isinstance(found, list) else [found]
    inputs: list[Fields] = [{} for _ in range(len(net.layer) - count)]
    return inputs + layers if len(layers) == count else []


_KINDS = {NetParameter: "net definition", SolverParameter: "solver"}


def _hint(data: bytes, kind: Any) -> str:
    """What the file is instead, where that can be seen."""
    for other, name in _KINDS.items():
        if other is not kind:
            try:
                text_format.Parse(_decoded(data), other())
                return f"; it is a {name}"
            except text_format.ParseError:
                pass
    return ""


def _read_weights(path: Path) -> tuple[NetParameter | None, dict[str, list[Blob]]]:
    """Returns the definition in a weights' file, where there is one, and the blobs by layer name."""
    with path.open("rb") as file:
        start = file.read(64)
    check_start(path, start)
    if start.startswith(b"\x89HDF"):
        return None, read_hdf5(path)
    net, layers = scan(path)
    names = [layer.name for layer in net.layer] or [layer.name or layer.layer.name for layer in net.layers]
    if not names:
        raise SurgeryError(f"{path}: has no layers; it is not a caffemodel (a mean file or a solver state, perhaps)")
    return upgrade(net, path), {name: blobs for name, blobs in zip(names, layers, strict=True) if blobs}
