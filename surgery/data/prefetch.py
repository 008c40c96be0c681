"""Work in threads, ahead of the one who waits for it."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["Each", "prefetch"]

Part = TypeVar("Part")
Made = TypeVar("Made")
Each = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]  # gives what a function makes of each


def prefetch(
    make: Callable[[Part, Each], Made], parts: Iterable[Part], ahead: int = 2, threads: bool = False
) -> Iterator[Made]:
    """Yields what `make` gives for each of `parts`, in their order, made in two threads, `ahead` of the one in use.

    Leaving early, or an error in `make`, ends the threads.

    Args:
        make: Takes a part and a function like `map`.
        parts: What is to be made.
        ahead: How many are made before they are needed.
        threads: Whether that function runs in threads, one for each core.
    """
    waiting: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(_pool(os.cpu_count() or 1)) if threads else None

        def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            return list((map if workers is None else workers.map)(function, items))

        makers = stack.enter_context(_pool(2))
        for part in parts:
            waiting.append(makers.submit(make, part, each))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _pool(threads: int) -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads that end with the block; what they have not begun is left."""
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
