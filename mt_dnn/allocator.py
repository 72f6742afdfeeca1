"""The memory of the process on the CPU, kept between steps.

A step frees its gradients and activations and the next one asks for the same again. By default glibc hands larger
blocks back to the system at once, and each comes back page by page through the kernel: for a small encoder a tenth of
a step. oneDNN and torch's layer above it each keep the code of the last 1,024 shapes they multiplied; packed batches
bring new shapes at every step, which makes gigabytes that are never used again.
"""

import ctypes
import os
from functools import cache

# glibc's mallopt: names of malloc.h; larger values of the first are refused.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # read at the first multiplication
_SHAPES = 64  # about those of one step


@cache
def keep_memory_between_steps() -> None:
    """Make glibc keep freed memory and oneDNN the shapes of one step only; call this before the first multiplication.

    Does nothing where there is no glibc. Environment variables of these libraries that are set take precedence.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_SHAPES))
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)


def return_free_memory() -> None:
    """Return free memory to the system: the next run may need other sizes. Without glibc it does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
