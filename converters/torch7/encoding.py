"""The two encodings of a .t7 file, binary and ASCII (torch7's DiskFile), as sources of numbers and text.

Binary: an int has 4 bytes, a long 4 or 8 depending on the machine that wrote it, all little-endian. ASCII: numbers are
text with a blank or a line's end behind each, while text, bytes and chars stand as they are, with a line's end behind.
"""

from __future__ import annotations

import re
import struct
import warnings
from abc import ABC, abstractmethod

import numpy as np

from converters.files import Buffer

__all__ = ["KINDS", "AsciiSource", "BinarySource", "DamagedError", "Source", "is_ascii"]

KINDS = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "<i2",
    "Int": "<i4",
    "Long": "<i8",
    "Half": "<f2",
    "Float": "<f4",
    "Double": "<f8",
}
"""Types of numbers, in binary with longs of 8 bytes."""

_WORD = re.compile(rb"\s*(\S{1,64})(?:\r?\n|[^\S\n])?")


def is_ascii(start: bytes) -> bool:
    """Whether a file that begins with `start` is in ASCII: with a digit, which as a binary int is no kind of value."""
    return start[:1] in (b" ", b"\t", b"\n", b"\r") or start[:1].isdigit()


class DamagedError(Exception):
    """The bytes are not what they should be.

    Args:
        message: What is wrong.
        position: The byte at which that shows.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} at byte {position:,}")
        self.position = position


class Source(ABC):
    """A position in the bytes of a file, and how to read on from there. All of it raises `DamagedError`.

    Attributes:
        buffer: The bytes.
        position: Where to read on.
        least_bytes: How many bytes a value in a table takes at least.
    """

    least_bytes: int

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.position = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self.buffer) - self.position

    def error(self, message: str) -> DamagedError:
        return DamagedError(message, self.position)

    @abstractmethod
    def read_int(self) -> int: ...

    @abstractmethod
    def read_long(self) -> int: ...

    @abstractmethod
    def read_double(self) -> float: ...

    @abstractmethod
    def numbers(self, kind: str, count: int) -> np.ndarray:
        """Reads the contents of a storage."""

    def longs(self, count: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.numbers("Long", count))

    def text(self) -> str:
        """Reads a length and a text of that length; bytes that are not UTF-8 are replaced."""
        return self.take(self.read_int()).decode("utf-8", "replace")

    def take(self, count: int) -> bytes:
        """Reads `count` bytes as they are."""
        if not 0 <= count <= self.left:
            raise self.error(f"{count:,} bytes are declared and {self.left:,} left")
        start = self.position
        self.position += count
        return bytes(self.buffer[start : self.position])


class BinarySource(Source):
    """The binary encoding.

    Args:
        buffer: The bytes.
        long_size: How many bytes a long has, 4 or 8.
    """

    least_bytes = 4

    def __init__(self, buffer: Buffer, long_size: int) -> None:
        super().__init__(buffer)
        self._long = struct.Struct("<q" if long_size == 8 else "<i")
        self._kinds = KINDS | {"Long": "<i8" if long_size == 8 else "<i4"}

    def _unpack(self, number: struct.Struct) -> int | float:
        if self.left < number.size:
            raise self.error("the file ends")
        (value,) = number.unpack_from(self.buffer, self.position)
        self.position += number.size
        return value

    def read_int(self) -> int:
        return int(self._unpack(_INT))

    def read_long(self) -> int:
        return int(self._unpack(self._long))

    def read_double(self) -> float:
        return float(self._unpack(_DOUBLE))

    def numbers(self, kind: str, count: int) -> np.ndarray:
        dtype = np.dtype(self._kinds[kind])
        if not 0 <= count * dtype.itemsize <= self.left:
            raise self.error(f"{count:,} numbers are declared and {self.left:,} bytes left")
        array = np.frombuffer(self.buffer, dtype, count, self.position)
        self.position += count * dtype.itemsize
        return array


_INT, _DOUBLE = struct.Struct("<i"), struct.Struct("<d")


class AsciiSource(Source):
    """The ASCII encoding."""

    least_bytes = 2

    def _word(self) -> bytes:
        match = _WORD.match(self.buffer, self.position)
        if match is None:
            raise self.error("a number is missing")
        self.position = match.end()
        return match[1]

    def read_int(self) -> int:
        start = self.position
        try:
            return int(self._word())
        except ValueError as error:
            raise DamagedError("a number is missing", start) from error

    read_long = read_int

    def read_double(self) -> float:
        start = self.position
        try:
            return float(self._word())
        except ValueError as error:
            raise DamagedError("a number is missing", start) from error

    def take(self, count: int) -> bytes:
        taken = super().take(count)
        self._end_line(count)
        return taken

    def _end_line(self, count: int) -> None:
        """Skips the line's end behind something of `count` parts; nothing has none."""
        for end in (b"\r\n", b"\n"):
            if count and self.buffer[self.position : self.position + len(end)] == end:
                self.position += len(end)
                return

    def numbers(self, kind: str, count: int) -> np.ndarray:
        if kind == "Half":
            raise self.error("a tensor of halves is in an ASCII file, which is not a way they are written")
        dtype = np.dtype(KINDS[kind])
        if kind in ("Byte", "Char"):
            return np.frombuffer(self.take(count), dtype)
        if not 0 <= count * self.least_bytes <= self.left + 1:  # the file's last number may have nothing behind it
            raise self.error(f"{count:,} numbers are declared and {self.left:,} bytes left")
        if not count:
            return np.zeros(0, dtype)
        start = self.position
        end = self.buffer.find(b"\n", start)
        end = len(self.buffer) if end < 0 else end
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy warns of what it cannot read
                array = np.fromstring(self.buffer[start:end].decode("ascii"), dtype, sep=" ")
        except (ValueError, OverflowError, DeprecationWarning) as error:
            raise DamagedError("numbers are missing", start) from error
        if len(array) != count:
            raise DamagedError(f"{count:,} numbers are declared and {len(array):,} there", start)
        self.position = min(end + 1, len(self.buffer))
        return array
