"""Writes docs/operators.md: which operators have a gradient, and what proves it on which runtime.

    python -m tests.autodiff.table .stock

runs the tests of the rules on the installed runtime and on that in the folder, and collects the proofs that held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from surgery.autodiff import registered

ROOT = Path(__file__).resolve().parents[2]
PROOFS = {"pytorch": "P", "differences (float64)": "D", "differences": "d", "builder": "B"}
HEAD = """# Operators with a gradient

Made by `make operators`. Each rule is proven on each runtime by the tests in `tests/autodiff`: **P** against PyTorch's
autograd, **D** against central differences in float64, **d** the same in float32 where the runtime has no float64
kernel, **B** against onnxruntime-training's own gradient builder, for the operators that it gets right. *fused* are the
rules that use the training build's kernels. An operator that is not here, but that ONNX defines by a function, is
written out and differentiated through; any other is an error that names it.

"""


def collect(paths: list[str]) -> dict[str, dict[tuple[str, str], set[str]]]:
    """Runs the tests with each of `paths` on PYTHONPATH; returns the proofs by operator, then runtime and kernels."""
    found: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "proofs.jsonl"
        for path in paths:
            environment = os.environ | {"SURGERY_PROOFS": str(record), "PYTHONPATH": path}
            tests = [str(p) for p in sorted(Path(__file__).parent.glob("test_*.py")) if p.stem != "test_networks"]
            subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=ROOT, env=environment, check=True)
        for line in record.read_text().splitlines():
            proof = json.loads(line)
            found[proof["operator"]][proof["runtime"], proof["kernels"]].add(proof["proof"])
    return found


def table(found: dict[str, dict[tuple[str, str], set[str]]]) -> str:
    """The proofs as a Markdown table."""
    columns = sorted({column for proofs in found.values() for column in proofs})
    lines = [
        "| operator | " + " | ".join(f"{runtime}, {kernels}" for runtime, kernels in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for operator in sorted(registered()):
        letters = ("".join(sorted({PROOFS[p] for p in found[operator].get(column, ())})) for column in columns)
        lines.append(f"| {operator} | " + " | ".join(letters) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", type=Path, help="a folder with another ONNX Runtime")
    options = parser.parse_args()
    page = ROOT / "docs" / "operators.md"
    page.write_text(HEAD + table(collect(["", str(options.runtime.resolve())])), encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {len(registered())} operators")


if __name__ == "__main__":
    main()
