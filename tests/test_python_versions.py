"""What every supported Python must be able to read."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def test_class_variables_name_their_types() -> None:
    """Python 3.10 cannot evaluate a bare `ClassVar` in the annotations that pydantic reads."""
    bare = re.compile(r":\s*ClassVar\s*(=|$)", re.MULTILINE)
    files = [f for package in ("surgery", "converters") for f in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    assert [str(f) for f in files if bare.search(f.read_text(encoding="utf-8"))] == []


def test_every_extra_with_a_runtime_installs_exactly_one_on_every_python() -> None:
    """And NVIDIA's wheels for CUDA 11 only with the runtime that wants them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("cpu", "cuda", "stock", "stock-cuda"):
        found = re.search(rf"^{extra} = (\[.*?\])(?:  #.*)?$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        requirements = [Requirement(item) for item in ast.literal_eval(found[1])]
        for python, machine in itertools.product(("3.10", "3.11", "3.12", "3.13", "3.14"), ("x86_64", "aarch64")):
            here = {"python_version": python, "sys_platform": "linux", "platform_machine": machine}
            names = [r.name for r in requirements if r.marker is None or r.marker.evaluate(here)]
            assert sum(name.startswith("onnxruntime") for name in names) == 1, (extra, here)
            assert any(name.startswith("nvidia") for name in names) == (names[0] == "onnxruntime-training"), here
