"""Compiled loops on torch's own threads.

numba has a threading layer of its own; it would bring a second OpenMP runtime beside torch's, whose threads wait
actively for a while after each operation and would hold the cores meanwhile. So loops run in torch's runtime: with
GNU OpenMP (the Linux wheels), whose ``GOMP_parallel`` is public, a call costs microseconds. Elsewhere they run on a
small pool of threads.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from . import PROCESS

_Loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_on_threads(address: int, argument: int, most: int) -> None:
    """Call a compiled function on up to ``torch.get_num_threads()`` threads at a time, the caller's among them.

    Args:
        address: Of a C function that takes a pointer, returns nothing and does not use the interpreter.
        argument: The pointer.
        most: Threads that have something to do, >= 1.
    """
    threads = min(torch.get_num_threads(), most)
    if threads <= 1:
        _Loop(address)(argument)
    elif (parallel := _parallel()) is not None and os.getpid() == PROCESS:
        parallel(address, argument, threads, 0)
    else:
        loop = _Loop(address)
        futures = [_pool(threads - 1).submit(loop, argument) for _ in range(threads - 1)]
        loop(argument)
        for future in futures:
            future.result()


@cache
def _parallel() -> Any:
    """``GOMP_parallel`` of the runtime that torch has loaded; None where there is none."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no handle of the whole process
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


def _pool(workers: int) -> ThreadPoolExecutor:
    key = (os.getpid(), workers)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(workers, thread_name_prefix="pats-step")
    return _pools[key]
