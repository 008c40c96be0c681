"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from surgery.errors import SurgeryError

__all__ = ["file_mode", "replacing", "replacing_together"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to `path`, renamed onto it when the block succeeds and removed when it fails.

    Raises:
        SurgeryError: The folder cannot be made or written, or the disk is full.
    """
    with replacing_together([Path(path)]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Like `replacing`, for files of one folder that belong together: another process that does the same with them
    comes before or after, so that what is there in the end is all of one.

    Raises:
        SurgeryError: The folder cannot be made or written, or the disk is full.
    """
    made: list[Path] = []
    path = paths[-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            made.append(Path(name))
        path = paths[-1]
        yield list(made)
        for path, temporary in zip(paths, made, strict=True):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if temporary.stat().st_nlink == 1:  # a link's permissions are those of another file too
                os.chmod(temporary, file_mode(path))
        with _alone_in(path.parent):
            for path, temporary in zip(paths, made, strict=True):
                os.replace(temporary, path)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        for temporary in made:  # a link to what is there already is not renamed, POSIX says
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is renaming files in `folder`; does nothing on systems without such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def file_mode(path: Path) -> int:
    """The permissions `path` has, or those a new file would get."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
