"""Times fine-tuning on photographs where most of the network is frozen: ``python -m benchmarks.frozen_prefix``.

ResNet-18 at 224², its head or its last block trained for ten epochs, from decoded photographs in memory to the trained
network, validation after each epoch included. The weights are random and the same for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frozen_ways import WAYS, write_network
from benchmarks.table import machine

CASES = {"head": "head only", "block": "last block and head"}
BASIS = "pytorch"
ROOT = Path(__file__).parent.parent
TOLERANCE = 2e-2  # of the losses of the first epochs


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Times fine-tuning with a frozen part, ours and others', end to end.")
    parser.add_argument("--photographs", type=Path, help="a folder with train and val folders of class folders")
    parser.add_argument("--examples", type=int, nargs=2, default=(244, 153), help="of synthetic photographs (244 153)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each way (default 3)")
    options = parser.parse_args()
    ways = [BASIS, *(way for way in options.ways if way != BASIS)]
    if importlib.util.find_spec("keras") is None and "keras" in ways:
        ways.remove("keras")
        print("keras is not installed: left out", file=sys.stderr)
    start, rows, titles = time.perf_counter(), [], set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_network(folder / "net.onnx")
        np.savez(folder / "data.npz", **_photographs(options.photographs, options.examples, folder / "net.onnx"))
        for case in options.cases:
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for turn in range(options.repetitions):
                for way in ways:
                    print(f"{CASES[case]}, {WAYS[way].title}, turn {turn + 1} …", file=sys.stderr)
                    found[way].append(_run(way, case, options.epochs, folder))
            rows += [_row(case, way, found) for way in ways]
            titles |= {turn["runtime"] for turns in found.values() for turn in turns}
            print(_table(rows), file=sys.stderr)
    print(f"{machine([])[:-3]}, {', '.join(sorted(titles))}.\n")
    print(_table(rows))
    print(f"\n{options.epochs} epochs, {options.repetitions} turns, {time.perf_counter() - start:.0f} seconds in all.")


def _photographs(folder: Path | None, counts: tuple[int, int], network: Path) -> dict[str, np.ndarray]:
    """Decoded photographs, uint8 `[N, 224, 224, 3]`, and class numbers; noise with a tint where there are none."""
    if folder is not None:
        from surgery import load
        from surgery.data import open_data

        parts = open_data(folder, load(network))
        if parts[1] is None:
            raise SystemExit(f"{folder}: has no val folder")
        examples = [np.asarray(part.examples) for part in parts if part is not None]
        targets = [np.asarray(part.targets) for part in parts if part is not None]
    else:
        rng = np.random.default_rng(0)
        targets = [rng.integers(0, 2, count) for count in counts]
        noise = [rng.integers(0, 200, (count, 224, 224, 3), np.uint8) for count in counts]
        tint = np.array([[40, 0, 0], [0, 0, 40]], np.uint8)
        examples = [x + tint[t][:, None, None] for x, t in zip(noise, targets, strict=True)]
    return {"x": examples[0], "t": targets[0], "held_x": examples[1], "held_t": targets[1]}


def _run(way: str, case: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Trains one way, in a process of its own."""
    paths = [str(ROOT)]
    if WAYS[way].stock:
        paths.insert(0, os.environ.get("STOCK", str(ROOT / ".stock")))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.frozen_ways", way, case, str(epochs), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "KERAS_BACKEND": "torch"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _row(case: str, way: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    seconds = [turn["seconds"] for turn in found[way]]
    speeds = [basis["seconds"] / one for basis, one in zip(found[BASIS], seconds, strict=True)]
    losses, wanted = found[way][0]["losses"], found[BASIS][0]["losses"]
    pairs = list(zip(losses, wanted, strict=True))[:3]
    same = all(abs(a - b) <= TOLERANCE * max(abs(b), 0.1) for a, b in pairs)
    cells = [CASES[case], WAYS[way].title, f"{statistics.median(seconds):.1f}", f"{statistics.median(speeds):.1f}×"]
    return [*cells, f"{losses[-1]:.4f}" + ("" if same else " (other from the start)")]


def _table(rows: list[list[str]]) -> str:
    head = ["trained", "way", "seconds", "speed", "last validation loss"]
    lines = [head, ["---", "---", "---:", "---:", "---:"], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
