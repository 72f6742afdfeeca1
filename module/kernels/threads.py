"""A small pool of threads for compiled loops that release the interpreter lock.

numba has its own threading layer; it would bring a second OpenMP runtime beside torch's, and is not safe after a fork.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

CHUNK = 256  # blocks a thread takes at a time

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def for_each_chunk(blocks: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(first, last)`` on ranges that cover ``range(blocks)``, on ``torch.get_num_threads()`` threads.

    The ranges are fixed; which thread takes which is not, so ``work`` must not depend on it.
    """
    chunks = -(-blocks // CHUNK)
    threads = min(torch.get_num_threads(), chunks)
    if threads <= 1:
        work(0, blocks)
        return
    ticket = itertools.count()  # next() on it is atomic

    def take() -> None:
        while (chunk := next(ticket)) < chunks:
            work(chunk * CHUNK, min((chunk + 1) * CHUNK, blocks))

    futures = [_pool(threads - 1).submit(take) for _ in range(threads - 1)]
    take()
    for future in futures:
        future.result()


def _pool(workers: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork: a child makes its own.
    key = (os.getpid(), workers)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(workers, thread_name_prefix="pats-step")
    return _pools[key]
