"""Work in threads, ahead of the one who waits for it."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["prefetch"]

Part = TypeVar("Part")
Made = TypeVar("Made")


def prefetch(make: Callable[[Part], Made], parts: Iterable[Part], ahead: int = 2) -> Iterator[Made]:
    """Yields what `make` gives for each of `parts`, in their order, made in two threads, `ahead` of the one in use.

    Leaving early, or an error in `make`, ends the threads.
    """
    pool = concurrent.futures.ThreadPoolExecutor(2)
    waiting: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
    try:
        for part in parts:
            waiting.append(pool.submit(make, part))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
