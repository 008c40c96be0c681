"""The results as text."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ways import WAYS
from benchmarks.work import CASES, NETS

__all__ = ["Row", "headline", "machine", "table"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One network trained one way.

    Attributes:
        net: The network's name.
        case: What is trained.
        way: How.
        seconds: The median time of a step; None where it does not run.
        speed: The median of PyTorch's time over this one's, each in the same turn.
        memory: The peak, MB.
        saving: This peak over PyTorch's.
        note: What is to be said about it: why it does not run, or what it does not do.
    """

    net: str
    case: str
    way: str
    runtime: str
    seconds: float | None
    speed: float | None
    memory: float | None
    saving: float | None
    note: str


def machine(rows: Sequence[Row]) -> str:
    """The machine and the software."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in rows if row.runtime))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load {load} at the end; "
        f"Python {platform.python_version()}, {runtimes}."
    )


def table(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table, and below it what is to be said about some."""
    lines = [
        "| network (batch) | trained | way | ms/step | speed | memory, MB | of PyTorch's |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    notes: list[str] = []
    for row in rows:
        net, mark = NETS[row.net], ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" [{notes.index(row.note) + 1}]"
        cells = [f"{net.title} ({net.batch})", CASES[row.case], WAYS[row.way].title + mark]
        if row.seconds is None:
            cells += ["–"] * 4
        else:
            cells += [f"{row.seconds * 1e3:.1f}", f"{row.speed:.2f}×", f"{row.memory:.0f}", f"{row.saving:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *[f"[{i}] {note}  " for i, note in enumerate(notes, 1)]])


def headline(rows: Sequence[Row]) -> str:
    """The geometric mean of the speeds of each way, by what is trained."""
    lines = []
    for case, words in CASES.items():
        for way in dict.fromkeys(row.way for row in rows):
            speeds = [r.speed for r in rows if (r.case, r.way) == (case, way) and r.speed]
            if speeds and way != "pytorch":
                mean = statistics.geometric_mean(speeds)
                title = WAYS[way].title
                lines.append(f"- {words}, {title}: {mean:.2f} times PyTorch's speed (geometric mean of {len(speeds)})")
    return "\n".join(lines)
