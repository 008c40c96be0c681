"""Protocol buffers' wire format, as far as a caffemodel needs it: weights are found in the file, not copied from it.

Parsing a caffemodel with the generated classes holds its weights twice. Here a big file is mapped into memory, what is
not a weight is parsed, and weights become arrays on the mapped file. The encoding:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, Message

from converters.caffe.caffe_pb2 import BlobProto, NetParameter
from converters.files import Buffer, open_buffer
from surgery.errors import SurgeryError
from surgery.proto import prefix

__all__ = ["Blob", "scan"]

# Field numbers of caffe.proto.
_LAYER, _LAYERS = 100, 2  # NetParameter
_BLOBS = {_LAYER: 7, _LAYERS: 6}  # LayerParameter, V1LayerParameter
_V0_LAYER, _V0_BLOBS = 1, 50  # V1LayerParameter.layer, V0LayerParameter.blobs
_MOST_LAYERS = 20_000  # the deepest nets have some thousands
_DATA, _DIFF, _DOUBLE_DATA, _DOUBLE_DIFF = 5, 6, 8, 9  # BlobProto


@dataclasses.dataclass(frozen=True, eq=False)
class Blob:
    """One array of numbers of a caffemodel.

    Attributes:
        shape: Its shape; four dimensions in the old formats, ones in front.
        data: Its numbers, flat.
    """

    shape: tuple[int, ...]
    data: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    tag: int  # where the field starts
    start: int  # where its content starts
    end: int


class _Damaged(Exception):
    """The bytes are not what they should be; the message says where."""


def _varint(buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end:
            raise _Damaged(f"it ends in the middle of a number, at byte {position}")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise _Damaged(f"a number at byte {position} has too many digits")


def _fields(buffer: Buffer, position: int, end: int) -> Iterator[_Field]:
    """The fields of the message in ``buffer[position:end]``."""
    while position < end:
        tag = position
        key, start = _varint(buffer, position, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            position = _varint(buffer, start, end)[1]
        elif wire == 2:
            length, start = _varint(buffer, start, end)
            position = start + length
        elif wire in (1, 5):
            position = start + (8 if wire == 1 else 4)
        else:
            raise _Damaged(f"field {number} at byte {tag} is of no known kind")
        if position > end or number == 0:
            raise _Damaged(f"field {number} at byte {tag} is longer than what is left")
        yield _Field(number, wire, tag, start, position)


def _blob(buffer: Buffer, field: _Field) -> Blob:
    rest = bytearray()
    found: list[np.ndarray] = []
    for part in _fields(buffer, field.start, field.end):
        if part.number in (_DIFF, _DOUBLE_DIFF):
            continue
        if part.number not in (_DATA, _DOUBLE_DATA):
            rest += buffer[part.tag : part.end]
            continue
        kind = np.dtype("<f4") if part.number == _DATA else np.dtype("<f8")
        count, left = divmod(part.end - part.start, kind.itemsize)
        if left:
            raise _Damaged(f"the numbers at byte {part.start} end in the middle of one")
        found.append(np.frombuffer(buffer, kind, count, part.start))
    proto = BlobProto.FromString(bytes(rest))
    data = found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.float32), *found])
    if proto.HasField("shape"):
        shape = tuple(proto.shape.dim)
    elif any(proto.HasField(name) for name in ("num", "channels", "height", "width")):
        shape = (proto.num, proto.channels, proto.height, proto.width)
    else:
        shape = (len(data),)
    if min(shape, default=1) < 0 or math.prod(shape) != len(data):
        declared = "×".join(str(d) for d in shape)
        raise _Damaged(f"a blob of {declared} at byte {field.tag} holds {len(data)} numbers")
    return Blob(shape, data.astype(np.float32, copy=False))


def _length_prefixed(number: int, content: bytes) -> bytes:
    return prefix(number, len(content)) + content


def _layer(buffer: Buffer, field: _Field, blobs_number: int, blobs: list[Blob]) -> bytes:
    """The layer message without its blobs, which are added to `blobs`."""
    out = bytearray()
    for part in _fields(buffer, field.start, field.end):
        if part.number == blobs_number and part.wire == 2:
            blobs.append(_blob(buffer, part))
        elif blobs_number == _BLOBS[_LAYERS] and part.number == _V0_LAYER and part.wire == 2:
            out += _length_prefixed(_V0_LAYER, _layer(buffer, part, _V0_BLOBS, blobs))
        else:
            out += buffer[part.tag : part.end]
    return bytes(out)


def _check_text(message: Message) -> None:
    """Strings that are not UTF-8 come out of the parser as bytes."""
    for field, value in message.ListFields():
        for each in value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]:
            if isinstance(each, Message):
                _check_text(each)
            elif isinstance(each, bytes) and field.type == field.TYPE_STRING:
                raise _Damaged(f"a {field.name} is no text: {each[:20]!r}")


def scan(path: Path) -> tuple[NetParameter, list[list[Blob]]]:
    """Returns the net in the binary file `path` without its weights, and the weights of each of its layers.

    Raises:
        SurgeryError: The file is truncated, or not a caffemodel.
    """
    buffer = open_buffer(path)
    out = bytearray()
    weights: dict[int, list[list[Blob]]] = {_LAYER: [], _LAYERS: []}
    try:
        for field in _fields(buffer, 0, len(buffer)):
            if field.number in weights and field.wire == 2:
                blobs: list[Blob] = []
                out += _length_prefixed(field.number, _layer(buffer, field, _BLOBS[field.number], blobs))
                weights[field.number].append(blobs)
                if len(weights[field.number]) > _MOST_LAYERS:
                    raise SurgeryError(f"{path}: has more than {_MOST_LAYERS:,} layers; no Caffe net has")
            else:
                out += buffer[field.tag : field.end]
        net = NetParameter.FromString(bytes(out))
        _check_text(net)
    except _Damaged as error:
        raise SurgeryError(f"{path}: is truncated or not a caffemodel ({error}); copy it again") from error
    except DecodeError as error:
        raise SurgeryError(f"{path}: is damaged or not a caffemodel ({error}); copy it again") from error
    return net, weights[_LAYERS] if net.layers else weights[_LAYER]
