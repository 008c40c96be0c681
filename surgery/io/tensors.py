"""Weights that stay in their files until somebody looks at them."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError

__all__ = ["ExternalTensor", "InlineTensor", "Source"]

_PIECE = 2**20  # bytes read at a time
_FICLONE = 0x40049409  # of linux/fs.h
_NOT_HERE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.EBADF}


class Source:
    """A file with weights. It is the one that was there when this was made, also when another took its name.

    Args:
        path: The file.
        hold: Keep it open, so that its contents stay when it is replaced.
    """

    def __init__(self, path: Path, hold: bool = False) -> None:
        self.path = path
        self._held: int | None = None
        self._map: mmap.mmap | None = None
        status = os.stat(path)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        if hold:
            self.hold()

    def hold(self) -> None:
        """Keeps the file open from now on."""
        if self._held is None:
            self._held = self._open()
            weakref.finalize(self, os.close, self._held)

    def _open(self) -> int:
        try:
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise SurgeryError(f"{self.path}: cannot be read ({error.strerror})") from error
        status = os.fstat(handle)
        if (status.st_dev, status.st_ino) != self.identity or status.st_size < self.size:
            os.close(handle)
            raise SurgeryError(f"{self.path}: was changed while it was in use; load the model again")
        return handle

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self._held is not None:
            yield self._held
            return
        handle = self._open()
        try:
            yield handle
        finally:
            os.close(handle)

    @property
    def mapping(self) -> mmap.mmap:
        """The whole file, mapped into memory: what is not looked at takes none."""
        if self._map is None:
            with self._opened() as handle:
                self._map = mmap.mmap(handle, self.size, access=mmap.ACCESS_READ)
        return self._map

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes, in memory."""
        pieces = []
        with self._opened() as handle:
            while length > 0:
                piece = self._piece(handle, offset, length)
                pieces.append(piece)
                offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def copy(self, offset: int, length: int, target: IO[bytes]) -> None:
        """Writes some bytes to the end of an open file, within the system where that can be."""
        with self._opened() as handle:
            target.flush()
            done = _copy_range(handle, offset, length, target)
            while done < length:
                piece = self._piece(handle, offset + done, min(_PIECE, length - done))
                target.write(piece)
                done += len(piece)

    def clone(self, target: Path) -> bool:
        """Makes `target` a file that shares this one's blocks until either is changed; False where that cannot be."""
        try:
            import fcntl

            with self._opened() as handle, target.open("wb") as file:
                fcntl.ioctl(file.fileno(), _FICLONE, handle)
        except (ImportError, OSError):
            return False
        return True

    def _piece(self, handle: int, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            piece = os.pread(handle, length, offset)
        else:  # Windows
            os.lseek(handle, offset, os.SEEK_SET)
            piece = os.read(handle, length)
        if not piece:
            raise SurgeryError(f"{self.path}: has become shorter while it was in use; load the model again")
        return piece


def _copy_range(source: int, offset: int, length: int, target: IO[bytes]) -> int:
    """Copies what the system can without Python (shared blocks where the file system has them); returns how much."""
    if not hasattr(os, "copy_file_range"):
        return 0
    place, done = target.tell(), 0
    try:
        while done < length:
            count = os.copy_file_range(source, target.fileno(), length - done, offset + done, place + done)
            if count == 0:
                break
            done += count
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    target.seek(place + done)
    return done


class _InFile(ir.TensorProtocol):
    """What the two kinds of tensor below share: contents at a place of a `Source`."""

    source: Source
    _place: int  # of the first byte
    _seen: weakref.ref[np.ndarray] | None = None

    def numpy(self) -> np.ndarray:
        """The contents, read now; read-only. While someone holds the array, others get the same one."""
        array = self._seen() if self._seen is not None else None
        if array is None:
            array = self._read()
            self._seen = weakref.ref(array)
        return array

    def _read(self) -> np.ndarray:
        shape, offset = self.shape.numpy(), self._place
        if self.nbytes == 0:
            return np.empty(shape, self.dtype.numpy())
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.tobytes(), np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=shape).numpy()
        dtype = np.dtype(self.dtype.numpy())
        if offset % dtype.itemsize:  # a view would be slow, and no runtime takes it
            array = np.frombuffer(self.source.read(offset, self.nbytes), dtype)
        else:
            array = np.frombuffer(self.source.mapping, dtype, self.nbytes // dtype.itemsize, offset)
        return array.reshape(shape)

    def tobytes(self) -> bytes:
        """The contents as bytes, read now."""
        return self.source.read(self._place, self.nbytes)

    def tofile(self, file: IO[bytes]) -> None:
        """Copies the contents from file to file."""
        self.source.copy(self._place, self.nbytes, file)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array.astype(dtype) if dtype not in (None, array.dtype) else array.copy() if copy else array

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return np.array(self.numpy()).__dlpack__(stream=stream)  # a copy: NumPy hands no read-only array on

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()


class InlineTensor(_InFile, ir.LazyTensor):
    """A tensor whose contents lie in the model's own file; in any other file they are written out."""

    def __init__(
        self,
        source: Source,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        self.source, self._place = source, offset
        super().__init__(
            lambda: ir.Tensor(self.numpy(), dtype=dtype),
            dtype=dtype,
            shape=shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
        )

    def reshaped(self, shape: ir.Shape) -> InlineTensor:
        """The same contents in another shape."""
        return InlineTensor(self.source, self._place, self.dtype, shape, name=self.name, doc_string=self.doc_string)


class ExternalTensor(_InFile, ir.ExternalTensor):
    """A tensor of an external file that was checked when the model was loaded, and is read through its `Source`."""

    def __init__(self, tensor: ir.ExternalTensor, source: Source, shape: ir.Shape | None = None) -> None:
        super().__init__(
            tensor.location,
            tensor.offset or 0,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape if shape is None else shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=tensor.base_dir,
        )
        self.source, self._place = source, tensor.offset or 0

    def reshaped(self, shape: ir.Shape) -> ExternalTensor:
        """The same contents in another shape."""
        return ExternalTensor(self, self.source, shape)
