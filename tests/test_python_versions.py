"""What every supported Python must be able to read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_class_variables_name_their_types() -> None:
    """Python 3.10 cannot evaluate a bare `ClassVar` in the annotations that pydantic reads."""
    bare = re.compile(r":\s*ClassVar\s*(=|$)", re.MULTILINE)
    files = [f for package in ("surgery", "converters") for f in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    assert [str(f) for f in files if bare.search(f.read_text(encoding="utf-8"))] == []
