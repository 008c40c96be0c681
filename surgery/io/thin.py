"""A model's bytes without its big weights: each becomes a reference to its place, and is never parsed.

The wire format (protobuf.dev/programming-guides/encoding) says of every field its number and its length, so what is big
and leads to no weight is skipped in one step, and messages too small to hold a big weight are not looked into.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from surgery.proto import prefix

__all__ = ["thin"]

# Which fields of which messages of onnx.proto lead to tensors. Sparse ones are left as they are.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_ONE_TENSOR = 5  # the field of an attribute that is a tensor; protobuf merges what is there twice
_DIMS, _DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 9, 13, 14
_DESCRIBING = {_DIMS, _DATA_TYPE, 8, _RAW_DATA, 12, 16}  # dims, type, name, contents, documentation, metadata
_TYPES = {*range(1, 29)} - {8}  # of TensorProto.DataType: those of fixed size, as raw_data must be
_EXTERNAL = b"\x70\x01"  # data_location: EXTERNAL
_VARINT, _BYTES8, _LENGTH, _BYTES4 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which ONNX has none of
_DEEPEST = 100  # protobuf's own limit

Parts = list[memoryview | bytes]


def thin(data: memoryview, least: int, location: str) -> bytes:
    """Returns the ModelProto in `data` with raw contents of `least` bytes and more made external.

    Their ``external_data`` entries give `location`, and offset and length in `data`. What protobuf has to judge
    (groups, tensors with contents of several kinds) is left as it is.

    Raises:
        DecodeError: A length goes past the end of what it is in.
    """
    parts = _Thinning(data, least, location).message("model", 0, len(data), 0)
    return bytes(data) if parts is None else b"".join(parts)


class _Thinning:
    def __init__(self, data: memoryview, least: int, location: str) -> None:
        self.data, self.least, self.location = data, least, location.encode()

    def message(self, kind: str, start: int, end: int, depth: int) -> Parts | None:
        """The message of a kind from `start` to `end` with its tensors thinned; None where nothing changes."""
        if kind == "tensor":
            return self._tensor(start, end)
        inner, parts, kept = _FIELDS[kind], [], start
        once = 0
        for number, wire, place, content, after in self._fields(start, end):
            if wire not in (_VARINT, _BYTES8, _LENGTH, _BYTES4):
                return None
            if wire != _LENGTH or number not in inner:
                continue
            if kind == "attribute" and number == _ONE_TENSOR:
                once += 1
                if once > 1:
                    return None
            if after - content < self.least or depth == _DEEPEST:
                continue
            changed = self.message(inner[number], content, after, depth + 1)
            if changed is not None:
                parts += [self.data[kept:place], prefix(number, sum(map(len, changed))), *changed]
                kept = after
        return [*parts, self.data[kept:end]] if parts else None

    def _tensor(self, start: int, end: int) -> Parts | None:
        parts: Parts = []
        kept, raw, data_type = start, (0, 0), 0
        for number, wire, place, content, after in self._fields(start, end):
            if number not in _DESCRIBING:
                return None
            if number == _DATA_TYPE and wire == _VARINT:
                data_type, _ = self._varint(content, end)
            elif number == _RAW_DATA:
                if wire != _LENGTH:
                    return None
                raw = (content, after - content)
                parts.append(self.data[kept:place])
                kept = after
        offset, length = raw
        if length < self.least or data_type not in _TYPES:
            return None
        entries = {"location": self.location, "offset": b"%d" % offset, "length": b"%d" % length}
        external = b"".join(_entry(key.encode(), value) for key, value in entries.items())
        return [*parts, self.data[kept:end], external, _EXTERNAL]

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Each field's number, wire type, where it starts, where its content does, and where it ends."""
        data, place = self.data, start
        while place < end:
            key = data[place]
            content = place + 1
            if key > 0x7F:
                key, content = self._varint(place, end)
            wire = key & 7
            after = content
            if wire == _LENGTH:
                length, content = self._varint(content, end)
                after = content + length
            elif wire == _VARINT:
                _, after = self._varint(content, end)
            elif wire == _BYTES8:
                after = content + 8
            elif wire == _BYTES4:
                after = content + 4
            if after > end:
                raise DecodeError("a field goes past the end of the file or of what it is in")
            yield key >> 3, wire, place, content, after
            place = after

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        number = 0
        for shift in range(0, 70, 7):
            if place >= end:
                raise DecodeError("the file ends within a number")
            byte = self.data[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, place
        raise DecodeError("a number is longer than 10 bytes")


def _entry(key: bytes, value: bytes) -> bytes:
    """A StringStringEntryProto as a field of a TensorProto."""
    content = prefix(1, len(key)) + key + prefix(2, len(value)) + value
    return prefix(_EXTERNAL_DATA, len(content)) + content
