"""Downloads: resumed where they stopped, verified, and complete or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from surgery.errors import SurgeryError

__all__ = ["ALGORITHMS", "Progress", "check_name", "check_url", "digest_of", "download", "verify_file"]

Progress = Callable[[int, "int | None"], None]
"""Is told how many bytes are there, and of how many, where that is known."""

ALGORITHMS = {"sha256": 64, "sha1": 40, "md5": 32}  # with the hexadecimal digits of a whole digest
_CHUNK = 2**20
_TRIES = 3
_SECONDS = 30.0  # without a byte
_MOST_BYTES = 2**36  # of a file whose size nobody says


def check_name(name: str) -> str:
    """Returns `name`, the plain name of a file.

    Raises:
        ValueError: It is a path, hidden, or empty.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def check_url(url: str) -> str:
    """Returns `url`, of a page or file on the web.

    Raises:
        ValueError: Its scheme is neither http nor https, or it names no server.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an address that begins with http:// or https://")
    return url


def download(
    url: str,
    target: Path,
    digests: Mapping[str, str],
    *,
    size: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """Downloads `url` to `target`, going on where an earlier attempt stopped.

    What has come so far lies in a hidden file next to `target`, which gets its name when it is complete and verified.

    Args:
        url: The address.
        target: The file to be; nothing is downloaded where it is there and has the digests.
        digests: Hexadecimal digests by algorithm, or their first digits.
        size: In bytes, where it is published.
        progress: Is told of each piece.

    Returns:
        Whether it was downloaded; it may have been there.

    Raises:
        SurgeryError: The server does not give it, or the connection breaks, or it is not what was published.
    """
    check_url(url)
    if target.exists():
        verify_file(target, digests, size)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part, tag = (target.with_name(f".{target.name}.{ending}") for ending in ("part", "tag"))
    for attempt in range(_TRIES):
        try:
            _receive(url, part, tag, bool(digests), size, progress)
            break
        except SurgeryError:  # what came is of no use
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            raise
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise SurgeryError(f"{url}: the server answers {error.code} {error.reason}") from error
            if attempt == _TRIES - 1:
                there = part.stat().st_size if part.exists() else 0
                raise SurgeryError(
                    f"{url}: the download stopped ({_reason(error)}) after {there:,} bytes; run it again to go on"
                ) from error
    try:
        verify_file(part, digests, size, f"what {url} gives")
    except SurgeryError:
        part.unlink()
        raise
    finally:
        tag.unlink(missing_ok=True)
    os.replace(part, target)
    return True


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())


def _receive(url: str, part: Path, tag: Path, verified: bool, size: int | None, progress: Progress | None) -> None:
    """Adds to `part` what it lacks; `tag` says of which version of the file it is a part."""
    there = part.stat().st_size if part.exists() else 0
    version = tag.read_text(encoding="utf-8") if tag.exists() else ""
    if there and not (verified or version):
        there = 0  # nothing would tell that the pieces are of two versions
    headers = {"User-Agent": "onnx-surgery", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
        if version:
            headers["If-Range"] = version
    try:
        answer = _opener.open(urllib.request.Request(url, headers=headers), timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # it is complete, or too long
            if str(there) == error.headers.get("Content-Range", "").rpartition("/")[2]:
                return
            part.unlink()
            raise OSError("what was there before is longer than the file") from error
        raise
    with answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            if answer.status == 206:
                raise OSError("the server answers with another part than it was asked for")
            there = 0
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length and length.isdecimal() else None
        if size is not None and total is not None and total != size:
            raise SurgeryError(f"{url}: has {total:,} bytes, and the published file {size:,}")
        with part.open("ab" if there else "wb") as file:
            _copy(answer, file, there, total, size or _MOST_BYTES, progress)
    if total is not None and part.stat().st_size < total:
        raise OSError(f"it ended after {part.stat().st_size:,} of {total:,} bytes")


def _copy(answer: Any, file: IO[bytes], done: int, total: int | None, most: int, progress: Progress | None) -> None:
    while piece := answer.read(_CHUNK):
        done += len(piece)
        if done > most:
            raise SurgeryError(f"{answer.url}: sends more than the {most:,} bytes that the file may have")
        file.write(piece)
        if progress is not None:
            progress(done, total)


class _OnlyWeb(urllib.request.HTTPRedirectHandler):
    """Follows servers to http and https addresses only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            check_url(newurl)
        except ValueError as error:
            raise SurgeryError(f"{req.full_url}: leads to {newurl}, which is not on the web") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_opener = urllib.request.build_opener(_OnlyWeb)


def verify_file(path: Path, digests: Mapping[str, str], size: int | None = None, what: str = "") -> None:
    """Checks the size and digests of a file.

    Raises:
        SurgeryError: They are others than the published ones.
    """
    what = what or f"{path}"
    found = path.stat().st_size
    if size is not None and found != size:
        raise SurgeryError(f"{what} has {found:,} bytes, and the published file {size:,}; remove it and fetch it again")
    for algorithm, digest in digests.items():
        computed = digest_of(path, algorithm)
        if not computed.startswith(digest.lower()):
            shown = computed[: len(digest)]
            raise SurgeryError(
                f"{what} is not the published file: its {algorithm} is {shown}, not {digest}; do not use it"
            )


def digest_of(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file's contents."""
    computed = hashlib.new(algorithm)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            computed.update(piece)
    return computed.hexdigest()
