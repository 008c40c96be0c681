"""Reading image files."""

from __future__ import annotations

import concurrent.futures
import copy
import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from surgery.data.preprocess import InputSpec, enough, resize
from surgery.data.rows import LazyRows, Rows, Selected
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIXES", "ImageFiles", "Images", "decode", "file_of", "upright", "whole"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def decode(file: Path | BinaryIO, least: tuple[int, int], gray: bool) -> Image:
    """Reads an image, upright as its EXIF data say.

    Gray images of 16 bits are scaled to 0–255. Transparency is dropped: colours are taken as they are stored.

    Args:
        file: Where it is.
        least: The height and width that are enough: a JPEG is decoded at a fraction of its size that is not below.
        gray: Whether to read it without colours.

    Returns:
        A Pillow image of mode L if `gray`, else RGB.

    Raises:
        ValueError: Its numbers have no range that is known: floats, or integers of 32 bits.
        Exception: Whatever else Pillow's decoders raise.
    """
    from PIL import Image

    with Image.open(file) as image:
        image.draft("L" if gray else "RGB", (least[1], least[0]))
        return upright(image, gray)


def upright(image: Image, gray: bool) -> Image:
    """Any Pillow image as one of mode L if `gray`, else RGB; see `decode`."""
    from PIL import ExifTags, ImageOps

    mode, format = "L" if gray else "RGB", image.format
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # Pillow copies those that are upright, too
        image = ImageOps.exif_transpose(image)
    image = _as_bytes(image, format)
    return image if image.mode == mode else image.convert(mode)


class Images(LazyRows):
    """Images of any size, which are decoded when they are asked for; as rows they have the input's size.

    Args:
        count: How many there are.
        spec: What the input takes; it has a size.
        memory: How many bytes of decoded images may be kept.
    """

    dtype = np.dtype(np.uint8)
    slow = True

    def __init__(self, count: int, spec: InputSpec, memory: int) -> None:
        size = spec.size
        assert size is not None
        self.size, self.gray, self.resize = size, spec.channels == 1, spec.how.resize
        self.shape = (count, *size) if self.gray else (count, *size, 3)
        self._whole: dict[int, tuple[tuple[int, int], np.ndarray]] = {}
        self._room = memory
        self._keeping = threading.Lock()

    def decode(self, index: int, least: tuple[int, int]) -> Image:
        """Returns an image at its size, or what is left of it where that is not below `least`.

        Raises:
            SurgeryError: It does not decode.
        """
        raise NotImplementedError

    def whole(self, index: int, least: tuple[int, int]) -> Image | np.ndarray:
        """Returns what `decode` does, and keeps its pixels while there is memory left for them."""
        kept, pixels = self._whole.get(index, (None, None))
        if pixels is not None and kept == least:
            return pixels
        image = self.decode(index, least)
        size = image.width * image.height * len(image.getbands())
        with self._keeping:
            _, old = self._whole.get(index, (None, None))
            room = self._room + (old.nbytes if old is not None else 0)
            if size <= room:
                self._room = room - size
                self._whole[index] = least, np.asarray(image)
        return image

    def read(self, indices: np.ndarray) -> np.ndarray:
        least = enough(self.size, self.resize)
        return np.stack([resize(self.decode(int(i), least), self.size, self.resize) for i in indices])


class ImageFiles(Images):
    """Images in files; `load` decodes them all for good."""

    def __init__(self, files: Sequence[Path], spec: InputSpec, memory: int) -> None:
        super().__init__(len(files), spec, memory)
        self.files = list(files)
        self._rows: np.ndarray | None = None

    @property
    def slow(self) -> bool:  # type: ignore[override]
        """Whether reading a row takes long enough to be done in threads."""
        return self._rows is None

    def decode(self, index: int, least: tuple[int, int]) -> Image:
        try:
            return decode(self.files[index], least, self.gray)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise SurgeryError(f"{self.files[index]}: does not decode ({_why(error)})") from error

    def read(self, indices: np.ndarray) -> np.ndarray:
        return super().read(indices) if self._rows is None else self._rows[indices]

    def fingerprint(self) -> str:
        stats = [(file, file.stat()) for file in self.files]
        known = [f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]
        return "\n".join([f"{self.shape} {self.resize}", *known])

    def check(self, load: bool, progress: Callable[[int, int], None] | None) -> dict[Path, str]:
        """Decodes all images, and keeps them at the input's size with `load`; returns the bad ones, and why."""
        least, bad = enough(self.size, self.resize), {}
        rows = np.empty(self.shape, np.uint8) if load else None

        def one(index: int) -> str:
            try:
                image = decode(self.files[index], least, self.gray)
                if rows is not None:
                    rows[index] = resize(image, self.size, self.resize)
            except Exception as error:  # Pillow's decoders raise many kinds
                return _why(error)
            return ""

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, fault in enumerate(pool.map(one, range(len(self.files)))):
                if fault:
                    bad[self.files[index]] = fault
                if progress is not None:
                    progress(index + 1, len(self.files))
        if rows is not None:
            self._room -= rows.nbytes
            self._rows = rows
        return bad

    def without(self, bad: Collection[Path]) -> ImageFiles:
        """Returns the others."""
        if not bad:
            return self
        good = np.array([i for i, file in enumerate(self.files) if file not in bad], int)
        rest = copy.copy(self)
        rest.files = [self.files[i] for i in good]
        rest.shape = (len(good), *self.shape[1:])
        rest._whole, rest._keeping = {}, threading.Lock()
        rest._rows = None if self._rows is None else self._rows[good]
        return rest


def whole(rows: Rows, index: int, least: tuple[int, int]) -> Image | np.ndarray:
    """Returns an image as it is stored; one in a file with at least `least` pixels, if it has them."""
    if isinstance(rows, Selected):
        return whole(rows.rows, int(rows.indices[index]), least)
    return rows.whole(index, least) if isinstance(rows, Images) else np.asarray(rows[index])


def file_of(rows: Rows, index: int) -> Path | None:
    """Returns the file that an image is in, where it is in one."""
    if isinstance(rows, Selected):
        return file_of(rows.rows, int(rows.indices[index]))
    return rows.files[index] if isinstance(rows, ImageFiles) else None


def _why(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _as_bytes(image: Image, format: str | None) -> Image:
    """An image of 8 bits a channel; Pillow's own conversion clips larger numbers."""
    from PIL import Image

    # Some versions of Pillow read PNG files of 16 bits as mode I, and all of them such PGM files.
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        return Image.fromarray(np.round(np.asarray(image, np.float32) * (255 / 65535)).astype(np.uint8))
    if image.mode == "F" or image.mode.startswith("I"):
        kind = "floats" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, of which no range is known; save it with 8 or 16 bits a channel")
    return image
