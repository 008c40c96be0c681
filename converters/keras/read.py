"""Keras's files: which belong together, and what is in them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from converters.files import check_start
from converters.keras.hdf5 import open_hdf5
from converters.keras.network import Network
from converters.keras.parse import Parser, major_version
from converters.keras.weights import Weights, assign
from surgery.errors import SurgeryError

__all__ = ["Source", "is_keras", "networks", "open_source", "weights_of"]

_MODELS, _HDF5, _WEIGHTS = (".keras", ".h5", ".hdf5"), (".h5", ".hdf5"), (".weights.h5", "_weights.h5")
_OTHERS = (".caffemodel.h5",)
_MOST_TEXT = 2**27  # bytes of a configuration; the largest have some megabytes
_MOST_RATIO = 100  # of a zip file's member to what it takes in the file
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """A Keras network as read.

    Attributes:
        network: The network.
        weights: Its variables, to be read while the file is open.
        weights_path: Where they are.
        version: Keras's major version.
    """

    network: Network
    weights: Weights
    weights_path: Path
    version: int


def is_keras(path: Path) -> bool:
    """Whether `path` is one of Keras's files."""
    if not path.is_file() or path.name.endswith(_OTHERS):
        return False
    return path.name.endswith(_MODELS) or (path.suffix == ".json" and _is_configuration(path))


def _is_configuration(path: Path) -> bool:
    """Whether a JSON file begins as a Keras configuration; a large one's keys are all near its start or end."""
    with path.open("rb") as file:
        start = file.read(4096)
        file.seek(max(0, path.stat().st_size - 4096))
        ends = start + file.read(4096)
    return start.lstrip().startswith(b"{") and b'"class_name"' in ends and b'"config"' in ends


def networks(folder: Path) -> list[Path]:
    """The files of `folder` that stand for a network: not those that have the weights of a configuration there."""
    files = sorted(path for path in folder.iterdir() if is_keras(path))
    weights = {weights_of(path) for path in files if path.suffix == ".json"}
    return [path for path in files if path not in weights]


def weights_of(path: Path) -> Path | None:
    """The weights that belong to a configuration by its name, else the only HDF5 file next to it."""
    stem = path.name.removesuffix(".json")
    for ending in (*_WEIGHTS, *_HDF5):
        if (found := path.with_name(stem + ending)).is_file():
            return found
    others = [p for p in path.parent.iterdir() if p.name.endswith(_HDF5) and not p.name.endswith(_OTHERS)]
    return others[0] if len(others) == 1 else None


@contextlib.contextmanager
def open_source(source: Path, weights: Path | None = None, backend: str | None = None) -> Iterator[Source]:
    """Opens the network in `source`; its weights can be read until it is closed.

    Raises:
        SurgeryError: A file is empty, truncated, or something else.
    """
    with contextlib.ExitStack() as stack:
        archive, version = None, None
        if source.suffix == ".json":
            if source.stat().st_size > _MOST_TEXT:
                raise SurgeryError(f"{source}: has {source.stat().st_size >> 20} MB, too much for a configuration")
            config = _parse_json(source.read_bytes(), str(source))
            weights = weights or weights_of(source)
            if weights is None:
                raise SurgeryError(f"{source}: no weights lie next to it; give them with --weights")
            version = str(config.get("keras_version")) if isinstance(config, dict) else None
        elif source.suffix == ".keras" and _is_zip(source):
            archive = stack.enter_context(_open_archive(source))
            config = _parse_json(_member(archive, source, "config.json"), f"{source}: config.json")
            metadata = _parse_json(_member(archive, source, "metadata.json", b"{}"), f"{source}: metadata.json")
            version = str(metadata.get("keras_version")) if isinstance(metadata, dict) else None
        else:
            file = stack.enter_context(open_hdf5(source))
            text = file.text(file.root, "model_config")
            if text is None:
                raise SurgeryError(
                    f"{source}: has weights only, no configuration; convert the model's .json, which "
                    "model.to_json() gives, with this file as --weights, or save the whole model"
                )
            config = _parse_json(text, f"{source}: model_config")
            version = file.text(file.root, "keras_version")
        if weights is not None:
            file = stack.enter_context(open_hdf5(weights))
        elif archive is not None:
            file = stack.enter_context(open_hdf5(source, _extracted(stack, archive, source, "model.weights.h5")))
        version = version if version not in (None, "None") else file.text(file.root, "keras_version")
        major = major_version(version, config)
        network = Parser(source, major).parse(config)
        yield Source(network, assign(network, file, major, backend), weights or source, major)


def _parse_json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SurgeryError(f"{where}: is not JSON that can be read ({' '.join(str(error).split())})") from error


def _is_zip(path: Path) -> bool:
    """Whether it is the zip file that Keras 3 writes; older versions write HDF5 under any name."""
    with path.open("rb") as file:
        return not file.read(8).startswith(b"\x89HDF")


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as file:
        start = file.read(64)
    check_start(path, start)
    if start.startswith(b"\x80"):
        raise SurgeryError(f"{path}: is a Python pickle, which is not read: it could run anything")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SurgeryError(f"{path}: is truncated or not a Keras file ({error}); copy it again") from error
    with archive:
        yield archive


def _info(archive: zipfile.ZipFile, path: Path, name: str) -> zipfile.ZipInfo | None:
    try:
        info = archive.getinfo(name)
    except KeyError:
        return None
    if info.file_size > _MOST_RATIO * max(1, path.stat().st_size):
        raise SurgeryError(f"{path}: {name} would be {info.file_size >> 20:,} MB; that is no network")
    return info


def _member(archive: zipfile.ZipFile, path: Path, name: str, default: bytes | None = None) -> bytes:
    info = _info(archive, path, name)
    if info is None:
        if default is None:
            raise SurgeryError(f"{path}: has no {name}; it is not a Keras file")
        return default
    if info.file_size > _MOST_TEXT:
        raise SurgeryError(f"{path}: {name} has {info.file_size >> 20} MB, too much for a configuration")
    with _unzipping(path, name), archive.open(info) as member:
        return member.read(info.file_size)


def _extracted(stack: contextlib.ExitStack, archive: zipfile.ZipFile, path: Path, name: str) -> BinaryIO:
    """A member as a temporary file: HDF5 is read back and forth."""
    info = _info(archive, path, name)
    if info is None:
        raise SurgeryError(f"{path}: has no {name}; it is not a Keras file, or was saved without weights")
    file: BinaryIO = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack closes it)
    with _unzipping(path, name), archive.open(info) as member:
        left = info.file_size  # a member may hold more than it declares
        while left > 0 and (chunk := member.read(min(_CHUNK, left))):
            file.write(chunk)
            left -= len(chunk)
    file.flush()
    return file


@contextlib.contextmanager
def _unzipping(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, NotImplementedError, zlib.error) as error:
        raise SurgeryError(f"{path}: {name} is damaged ({error}); copy the file again") from error
