"""Reading image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgery.data.preprocess import resize

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIXES", "decode"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def decode(file: Path, size: tuple[int, int], gray: bool) -> np.ndarray:
    """Reads an image at `size`, upright as its EXIF data say.

    Gray images of 16 bits are scaled to 0–255. Transparency is dropped: colours are taken as they are stored.

    Returns:
        uint8 `[H, W]` if `gray`, else `[H, W, 3]` (RGB).

    Raises:
        ValueError: Its numbers have no range that is known: floats, or integers of 32 bits.
        Exception: Whatever else Pillow's decoders raise.
    """
    from PIL import Image, ImageOps

    mode = "L" if gray else "RGB"
    with Image.open(file) as image:
        image.draft(mode, (size[1] * 2, size[0] * 2))  # JPEG decodes faster at a fraction of its size
        upright = ImageOps.exif_transpose(image)
        return resize(np.asarray(_as_bytes(upright, image.format).convert(mode)), size)


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
