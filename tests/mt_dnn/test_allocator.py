"""Memory settings: freed blocks come back without the kernel's help, and shapes seen once are forgotten."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAULTS = """
import ctypes, os, resource, torch
from mt_dnn.allocator import keep_memory_between_steps
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # else glibc adapts by itself, more or less as the heap happens to lie
    ctypes.CDLL(None).mallopt(-3, 1 << 17)
def step(): [torch.ones(1 << 19) for _ in range(10)]  # 2 MiB each, all alive at once
def faults():
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20): step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
keep_memory_between_steps()
print(without, faults())
"""

GROWTH = """
import torch
from mt_dnn.allocator import keep_memory_between_steps
if {kept}: keep_memory_between_steps()
def resident(): return int(open("/proc/self/statm").read().split()[1])  # pages
torch.set_num_threads(1)
weight = torch.zeros(512, 512, dtype=torch.bfloat16)
def multiply(shapes):
    for n in shapes: torch.zeros(n, 512, dtype=torch.bfloat16) @ weight
multiply(range(1000, 1010))
before = resident()
multiply(range(300, 900, 2))
print(resident() - before)
"""

RETURNED = """
import torch
from mt_dnn.allocator import keep_memory_between_steps, return_free_memory
keep_memory_between_steps()
def resident(): return int(open("/proc/self/statm").read().split()[1])  # pages
held = [torch.ones(1 << 18) for _ in range(256)]  # 1 MiB each
kept = held[::8]
del held
before = resident()
by_itself = before - resident()
return_free_memory()
print(by_itself, before - resident())
"""


def measure(program, **environment):
    """The numbers that a program prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and not k.endswith("CACHE_CAPACITY")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return [int(number) for number in done.stdout.split()]


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")


@needs_glibc
def test_freed_memory_is_kept():
    without, kept = measure(FAULTS)
    assert kept < without / 10


@needs_glibc
def test_settings_of_the_user_win():
    without, kept = measure(FAULTS, MALLOC_MMAP_THRESHOLD_="131072")
    assert kept > 0.9 * without > 10_000


@needs_glibc
def test_shapes_that_do_not_come_back_are_forgotten():
    (kept,) = measure(GROWTH.format(kept=False))
    if kept < 20_000:
        pytest.skip("bf16 products of this processor leave nothing behind")
    assert measure(GROWTH.format(kept=True))[0] < kept / 2


@needs_glibc
def test_free_memory_between_blocks_in_use_goes_back_when_asked():
    megabyte = 2**20 // os.sysconf("SC_PAGE_SIZE")
    by_itself, asked = measure(RETURNED)
    assert by_itself < megabyte
    assert asked > 150 * megabyte
