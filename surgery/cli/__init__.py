"""The command line: `surgery VERB …`, one file a verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from surgery.errors import SurgeryError

__all__ = ["guarded", "main"]


def main() -> None:
    """Runs the command line."""
    from surgery.cli.app import app

    guarded(app)


def guarded(run: Callable[[], Any]) -> None:
    """Calls `run`; exits with 2 for bad input and 1 for a failure, both told on one line."""
    try:
        run()
    except SurgeryError as error:
        _end(str(error), 2)
    except Exception as error:
        if os.environ.get("SURGERY_DEBUG"):
            raise
        text = str(error).strip().splitlines() or ["no message"]
        _end(f"{type(error).__name__}: {text[0]} (a fault of Surgery; SURGERY_DEBUG=1 shows where)", 1)


def _end(message: str, code: int) -> None:
    print(f"surgery: {message}", file=sys.stderr)
    sys.exit(code)
