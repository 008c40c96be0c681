"""Saving: the graph is written anew, weights that nobody changed go from file to file."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import EncodeError

from surgery.errors import SurgeryError
from surgery.io.cleaning import weights_of
from surgery.io.files import replacing_together
from surgery.io.tensors import ExternalTensor, Source
from surgery.io.versions import IR_VERSION
from surgery.proto import first_line, write_model, write_tensor

__all__ = ["save"]

_PROTOBUF_LIMIT = 2**31 - 1
_GRAPH_ROOM = 2**24  # bytes; what a model file holds besides its weights
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the model file
_ALIGNMENT = 64  # bytes, of weights new to an external file; a cache line
_MOST = 2**16  # bytes; offsets in other files are at most taken to be aligned to this (Windows maps no finer)


def save(model: ir.Model, path: str | os.PathLike[str], *, link: bool = False) -> None:
    """Saves `model` as IR version 10: in one file, or with its weights in external files where they were in such, or
    are too much for one.

    External weights in the folder of `path` are referred to, not copied. Those in another folder are copied to files
    next to `path`, as many as there were (``<path>.data``, or ``<path>-00001-of-00003.data`` …), each weight aligned
    as it was. `model` refers to its new files afterwards.

    Args:
        model: The model.
        path: The file.
        link: Link external weight files to where they are needed instead of copying: blocks are shared where the file
            system can, otherwise it is a hard link, of the whole file.

    Raises:
        SurgeryError: The file cannot be written; what was there before is left as it was. Or `link` is asked for where
            there is nothing to link.
    """
    path = Path(path)
    model.ir_version = IR_VERSION
    weights = weights_of(model)
    before = [v.const_value for v in weights]
    plan = _plan(weights, path, link)
    try:
        with replacing_together([*(file.path for file in plan), path]) as temporaries:
            for file, temporary in zip(plan, temporaries, strict=False):
                if link and file.source is not None:
                    _link(file, temporary)
                else:
                    _write(file, temporary)
            write_model(model, temporaries[-1])
    except (EncodeError, ValueError) as error:
        _restore(weights, before)
        raise SurgeryError(f"{path}: the model cannot be written ({first_line(error)})") from error
    except BaseException:
        _restore(weights, before)
        raise


@dataclasses.dataclass
class _DataFile:
    """An external file to be made.

    Attributes:
        path: Where.
        weights: What is to be in it, in this order.
        source: The file they all are in now, if they are in one.
    """

    path: Path
    weights: list[ir.Value]
    source: Source | None


def _plan(weights: Sequence[ir.Value], path: Path, link: bool) -> list[_DataFile]:
    """The external files to be made."""
    folder = path.parent.resolve()
    stay, move, inline = set(), dict[str, list[ir.Value]](), []
    for value in weights:
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            inline.append(value)
        elif Path(tensor.base_dir or ".").resolve() == folder:
            stay.add(os.path.realpath(tensor.path))
        else:
            move.setdefault(os.path.realpath(tensor.path), []).append(value)
    if link and not stay and not move:
        raise SurgeryError(f"{path}: there is nothing to link, all weights are in the model file; leave --link out")
    if os.path.realpath(path) in stay:
        raise SurgeryError(f"{path}: is the file with the model's weights; name another")
    groups: list[tuple[list[ir.Value], Source | None]]
    groups = [(sorted(values, key=_offset), _source(values[0])) for values in move.values()]
    if sum(_nbytes(v) for v in inline) > _PROTOBUF_LIMIT - _GRAPH_ROOM:
        groups.append(([v for v in inline if _nbytes(v) >= _EXTERNAL_THRESHOLD], None))
    paths = _names(path, len(groups), stay)
    return [_DataFile(place, values, source) for place, (values, source) in zip(paths, groups, strict=True)]


def _names(path: Path, count: int, taken: set[str]) -> list[Path]:
    """What external files are called; none of them as one that is still needed."""
    for number in itertools.count(1):
        stem = path.name if number == 1 else f"{path.name}.{number}"
        names = [f"{stem}-{i + 1:05}-of-{count:05}.data" for i in range(count)] if count > 1 else [f"{stem}.data"]
        paths = [path.with_name(name) for name in names[:count]]
        if not any(os.path.realpath(p) in taken for p in paths):
            return paths
    raise AssertionError("unreachable")


def _nbytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes


def _offset(value: ir.Value) -> int:
    return value.const_value.offset or 0 if isinstance(value.const_value, ir.ExternalTensor) else 0


def _source(value: ir.Value) -> Source:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    return tensor.source if isinstance(tensor, ExternalTensor) else Source(Path(tensor.path))


def _write(file: _DataFile, temporary: Path) -> None:
    """Writes weights to `temporary`; they refer to what it is to become."""
    offsets: dict[tuple[Source, int, int], int] = {}
    places = []
    with temporary.open("wb") as out:
        end = 0
        for value in file.weights:
            tensor = value.const_value
            assert tensor is not None
            shared = (file.source, _offset(value), tensor.nbytes) if file.source is not None else None
            if shared in offsets:
                places.append(offsets[shared])
                continue
            alignment = min(_offset(value) & -_offset(value), _MOST) if _offset(value) else _ALIGNMENT
            place = -(-end // alignment) * alignment
            out.seek(place)
            if file.source is not None:
                file.source.copy(_offset(value), tensor.nbytes, out)
            else:
                write_tensor(tensor, out)
            end = place + tensor.nbytes
            if shared is not None:
                offsets[shared] = place
            places.append(place)
    _refer(file, temporary, places)


def _link(file: _DataFile, temporary: Path) -> None:
    """Makes `temporary` the file in which the weights are; they refer to what it is to become."""
    source = file.source
    assert source is not None
    if not source.clone(temporary):
        temporary.unlink()
        try:
            os.link(os.path.realpath(source.path), temporary)
        except OSError as error:
            raise SurgeryError(
                f"{source.path}: cannot be linked to {file.path.parent} ({error.strerror}); leave --link out to copy it"
            ) from error
    _refer(file, temporary, [_offset(value) for value in file.weights])


def _refer(file: _DataFile, temporary: Path, places: Sequence[int]) -> None:
    source = Source(temporary)
    source.path = file.path  # as it is called when all are written
    for value, place in zip(file.weights, places, strict=True):
        old = value.const_value
        assert old is not None
        shape, name = ir.Shape(old.shape.numpy()), str(value.name)
        new = ir.ExternalTensor(
            file.path.name, place, old.nbytes, old.dtype, shape=shape, name=name, base_dir=file.path.parent
        )
        new.doc_string = old.doc_string
        value.const_value = ExternalTensor(new, source)


def _restore(values: Sequence[ir.Value], tensors: Sequence[ir.TensorProtocol | None]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor
