"""One way of training one network, in a process of its own: builds it, then runs steps whenever it is told to.

Run as ``python -m benchmarks.worker WAY NET CASE MODEL [--no-dropout]``. It writes a line of JSON when it is ready
(`Ready` or ``{"error": reason}``), then for each line it reads, a number of steps, the seconds that one took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import TypedDict

from benchmarks.ways import WAYS
from benchmarks.work import Task

__all__ = ["Ready"]


class Ready(TypedDict):
    """What is known before the steps that are timed.

    Attributes:
        runtime: The software and its version.
        losses: Of the first three steps: the work is the same where they are.
        memory: The peak in MB until now, less what was in use before the network was built.
        note: What is not the same work as PyTorch's; empty if it is.
    """

    runtime: str
    losses: list[float]
    memory: float
    note: str


def _peak() -> float:
    """The process's peak of resident memory, MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Serves the process that started this one."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes with the errors
    way, net, case, model = sys.argv[1:5]
    try:
        load = WAYS[way].load()
        before = _peak()
        run = load(Task(net, case, model, "--no-dropout" not in sys.argv))
        losses = [run.step() for _ in range(3)]
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0][:200]}"}), file=answers)
        raise
    ready: Ready = {"runtime": run.runtime, "losses": losses, "memory": _peak() - before, "note": run.note}
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        run.step()  # wakes the threads, and fills the caches again
        start = time.perf_counter()
        for _ in range(int(line)):
            run.step()
        print(json.dumps((time.perf_counter() - start) / int(line)), file=answers)


if __name__ == "__main__":
    main()
