"""A map that makes the next item while the present one is in use."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """Map a function over items, one item ahead of the consumer, in a thread.

    Args:
        items: taken one after the other, one more than were yielded.
        make: called in their order, never twice at once; its exceptions are raised when their item is due.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming: Future[Made] | None = None
        for item in items:
            current, coming = coming, thread.submit(make, item)
            if current is not None:
                yield current.result()
        if coming is not None:
            yield coming.result()
