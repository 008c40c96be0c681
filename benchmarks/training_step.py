"""Times one training step, side by side: ``python -m benchmarks.training_step``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.compare import BASIS, install, measure, prepare
from benchmarks.table import headline, machine, table
from benchmarks.ways import WAYS
from benchmarks.work import CASES, NETS

OURS = ("training", "stock")
PEERS = tuple(way for way in WAYS if way not in (BASIS, *OURS))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Times one training step, ours and PyTorch's, side by side.")
    parser.add_argument("--models", nargs="+", choices=[*NETS, "every"], default=["lenet", "resnet18"], metavar="NET")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repetitions", type=int, default=9, help="turns of each way (default 9)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="compare with these as well; without a name, all")
    options = parser.parse_args()
    nets = list(NETS) if "every" in options.models else options.models
    ways = [*OURS, *(PEERS if options.peers == [] else options.peers or [])]
    install(ways)
    start = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for net in nets:
            prepare(net, Path(folder))
            for case in options.cases:
                print(f"{NETS[net].title}, {CASES[case]} …", file=sys.stderr)
                found = measure(net, case, ways, options.repetitions, Path(folder))
                print(table(found), file=sys.stderr)  # a run takes long: what is known is there when it is cut off
                rows += found
    print(machine(rows), end="\n\n")
    print(table(rows))
    print(headline(rows))
    print(f"{options.repetitions} turns each, {time.perf_counter() - start:.0f} seconds in all.")


if __name__ == "__main__":
    main()
