"""Runs ways of training in turns, each in a process of its own, and compares their times, losses and memory.

They take turns so that whatever else the machine does falls on all alike: what is compared is the median over the turns
of the ratio to PyTorch's time in the same turn.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.table import Row
from benchmarks.ways import FOLDER, WAYS

__all__ = ["BASIS", "install", "measure", "prepare"]

ROOT = Path(__file__).parent.parent
BASIS = "pytorch"
TURN = 0.5  # seconds that a turn takes at least
LIMIT = 300  # seconds in which a way must be ready
TOLERANCE = (1e-4, 1e-2, 5e-2)  # of the first three losses: what rounding does grows with each step


class Failure(Exception):
    """A way of training that does not work here, and why."""


class Worker:
    """A process that trains one network one way."""

    def __init__(self, way: str, net: str, case: str, model: Path, *options: str) -> None:
        self.way = way
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        paths = [str(ROOT)]
        if WAYS[way].stock:
            paths.insert(0, os.environ.get("STOCK", str(ROOT / ".stock")))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", way, net, case, str(model), *options],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
        )
        limit = threading.Timer(LIMIT, self.process.kill)
        limit.start()
        try:
            self.ready = self._answer()
        finally:
            limit.cancel()
        if "error" in self.ready:
            self.close()
            raise Failure(self.ready["error"])

    def _answer(self) -> Any:
        line = _pipe(self.process.stdout).readline()
        if not line:
            self.close()
            if self.process.returncode == -signal.SIGKILL:
                raise Failure(f"was not ready in {LIMIT} seconds, or was killed for want of memory")
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise Failure(f"ended with code {self.process.returncode}: {last[:200]}")
        return json.loads(line)

    def seconds(self, steps: int) -> float:
        """Runs some steps; returns the seconds of one."""
        pipe = _pipe(self.process.stdin)
        pipe.write(f"{steps}\n")
        pipe.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        _pipe(self.process.stdin).close()
        self.process.wait()
        _pipe(self.process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _start(ways: Sequence[str], net: str, case: str, model: Path, *options: str) -> tuple[list[Worker], dict[str, str]]:
    """The workers that are ready, and why the others are not."""
    workers, failures = [], {}
    for way in ways:
        try:
            workers.append(Worker(way, net, case, model, *options))
        except Failure as failure:
            failures[way] = str(failure)
    return workers, failures


def _differences(workers: Sequence[Worker]) -> dict[str, str]:
    """Whose first losses are not PyTorch's, though they say that they do the same work."""
    found: dict[str, str] = {}
    if not workers or workers[0].way != BASIS:
        return found
    basis = workers[0].ready["losses"]
    for worker in workers[1:]:
        losses = worker.ready["losses"]
        pairs = zip(basis, losses, TOLERANCE, strict=True)
        if not worker.ready["note"] and any(not abs(a - b) <= t * abs(a) for a, b, t in pairs):
            found[worker.way] = f"its losses {_rounded(losses)} are not PyTorch's {_rounded(basis)}"
    return found


def _rounded(losses: list[float]) -> str:
    return ", ".join(f"{x:.5g}" for x in losses)


def install(ways: Sequence[str]) -> None:
    """Installs what the peers among `ways` need into a folder of their own; one that cannot be fails later."""
    packages = [p for way in ways for p in WAYS[way].packages if not list(FOLDER.glob(_pattern(p)))]
    for package in packages:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), package]
        subprocess.run(command, check=False)


def _pattern(package: str) -> str:
    """The folder of an installed package's metadata."""
    name, _, version = package.partition("==")
    return f"{name.replace('-', '_')}-{version}.dist-info"


def prepare(net: str, folder: Path) -> None:
    """Exports `net` and a batch into `folder`; and, where it has dropout, its twin without.

    Raises:
        RuntimeError: PyTorch cannot.
    """
    command = [sys.executable, "-m", "benchmarks.export", net, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{net} cannot be exported: {done.stderr.strip().splitlines()[-1]}")


def measure(net: str, case: str, ways: Sequence[str], repetitions: int, folder: Path) -> list[Row]:
    """Times `ways` beside PyTorch eager on one network; two at once, so that their memory has room."""
    rows: list[Row] = []
    for start in range(0, len(ways), 2):
        found = _measure(net, case, [BASIS, *ways[start : start + 2]], repetitions, folder)
        rows += found[1:] if start else found
    return rows


def _measure(net: str, case: str, ways: Sequence[str], repetitions: int, folder: Path) -> list[Row]:
    differences = {}
    plain = folder / f"{net}-plain.onnx"
    if plain.exists():  # masks differ: compared are the losses of a twin without dropout, gone before the others start
        twins, _ = _start(ways, net, case, plain, "--no-dropout")
        differences = _differences(twins)
        for twin in twins:
            twin.close()
    workers, failures = _start(ways, net, case, folder / f"{net}.onnx")
    if BASIS in failures:
        raise RuntimeError(f"PyTorch does not run: {failures[BASIS]}")
    if not plain.exists():
        differences = _differences(workers)
    counts = {w.way: max(1, round(TURN / w.seconds(1))) for w in workers}
    turns: list[dict[str, float]] = []
    for turn in range(repetitions):
        order = workers[turn % len(workers) :] + workers[: turn % len(workers)]
        turns.append({w.way: w.seconds(counts[w.way]) for w in order})
    basis = workers[0].ready
    rows = []
    for worker in workers:
        way, ready = worker.way, worker.ready
        seconds = statistics.median(turn[way] for turn in turns)
        speed = statistics.median(turn[BASIS] / turn[way] for turn in turns)
        note = differences.get(way) or ready["note"]
        saving = ready["memory"] / basis["memory"]
        rows.append(Row(net, case, way, ready["runtime"], seconds, speed, ready["memory"], saving, note))
        worker.close()
    return rows + [Row(net, case, way, "", None, None, None, None, reason) for way, reason in failures.items()]
