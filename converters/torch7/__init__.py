"""Torch7 networks: the .t7 files that Lua Torch saves, in ASCII and binary, with longs of 4 and 8 bytes."""

from converters.torch7.convert import convert_torch7
from converters.torch7.reference import run_torch7

__all__ = ["convert_torch7", "run_torch7"]
