"""The errors users see: what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["SurgeryError", "nearest"]


class SurgeryError(Exception):
    """Bad input or an impossible request. The message is one line, for the user; the CLI exits with 2."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """Returns ``'; did you mean …?'`` with the names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), [c for c in candidates if c], n=count, cutoff=0.4)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
