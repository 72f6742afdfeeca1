"""Compilation, caching and running of numba's kernels, and their access to memory by address.

Kernels are compiled at their first use and cached on disk. All arithmetic is float32 without contraction or
reassociation, so results do not depend on the vector width, the machine or the number of threads; layers alone sum a
row in whatever order is fast (:mod:`module.kernels.cpu_layers`). Inner loops are written for LLVM's vectoriser: no
calls, no branches, structure of arrays.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-arg"

import ctypes
import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, float32, float64, from_dtype, int32, int64, njit, types, uint8, void
from numba.extending import intrinsic

from .threads import run_on_threads

# Fields that every job begins with: chunks taken so far, blocks in all, blocks of a chunk.
_HEAD = [("taken", np.int64), ("blocks", np.int64), ("chunk", np.int64)]

_CODES = str.maketrans("lL", "qQ")  # numpy's letters of 64-bit integers on Linux, those of struct everywhere

# numba's cache notices changes of a function's own file, not of those whose functions and tables it takes in: their
# sum is part of the name. So is the package: the same file in an installation of the library must not get code that
# looks for this one.
_HERE = Path(__file__).parent
_SOURCES = [
    *sorted(_HERE.glob("cpu*.py")),
    Path(__file__),
    _HERE / "rows.py",
    _HERE / "polynomial.py",
    _HERE.parent / "noise.py",
]
_SUM = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES))
_VERSION = f"{__package__}.{_SUM.hexdigest()[:12]}"

# error_model: Python's check for a zero divisor is a branch, and a branch is not vectorised.
inlined = njit(error_model="numpy")


class Region:
    """A compiled loop that takes chunks of a job until none is left; every thread runs it.

    Args:
        function: Takes a pointer to the job.
        job: Names and types of what the function needs, besides the blocks: numbers and addresses.
    """

    def __init__(self, function: Callable[..., Any], job: list[tuple[str, Any]]) -> None:
        function.__qualname__ = f"{_VERSION}.{function.__qualname__}"
        self._function, self._job = function, np.dtype(_HEAD + job)
        # A table of one row in numpy takes several times as long to make.
        self._record = Struct("=" + "".join(np.dtype(kind).char for _, kind in _HEAD + job).translate(_CODES))

    @cached_property
    def _compiled(self) -> Any:
        signature = void(types.CPointer(from_dtype(self._job)))
        try:
            return cfunc(signature, error_model="numpy", cache=True)(self._function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return cfunc(signature, error_model="numpy")(self._function)

    @cached_property
    def _address(self) -> int:
        return int(self._compiled.address)

    def __call__(self, blocks: int, chunk: int, *values: Any) -> None:
        """Run all blocks.

        Args:
            blocks: Of the job.
            chunk: Blocks that a thread takes at a time. Which thread takes which is not fixed, so results must not
                depend on it.
            values: Of the job's fields, in their order.
        """
        if blocks:
            job = ctypes.create_string_buffer(self._record.size)
            self._record.pack_into(job, 0, 0, blocks, chunk, *values)
            run_on_threads(self._address, ctypes.addressof(job), -(-blocks // chunk))


def region(*job: tuple[str, Any]) -> Callable[[Callable[..., Any]], Region]:
    """Make a function a :class:`Region`."""
    return lambda function: Region(function, list(job))


def pointer_to(kind):
    """Intrinsic that makes a pointer to numbers of this kind of an address."""

    def at(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(int64), generate

    return intrinsic(at)


floats_at, doubles_at, bytes_at, integers_at = map(pointer_to, (float32, float64, uint8, int64))


@intrinsic
def bits(typing_context, value):
    """The bits of a float32 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return int32(float32), generate


@intrinsic
def as_float(typing_context, value):
    """The float32 of these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(int32), generate


@intrinsic
def prefetch(typing_context, address):
    """Ask the processor to fetch the cache line of an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, word(0), word(2), word(1)])  # to read, into the second-level cache, data
        return context.get_dummy_value()

    return types.void(int64), generate


@intrinsic
def _take(typing_context, jobs):
    """Add one to the job's first field, whoever else does; returns what it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "monotonic")

    return int64(jobs), generate


@inlined
def job_at(jobs):
    """The job of a region's argument."""
    return carray(jobs, 1)[0]


@inlined
def next_chunk(jobs):
    """The blocks to do next, (first, last); none are left where first >= last."""
    job = carray(jobs, 1)[0]
    first = _take(jobs) * job.chunk
    return first, min(first + job.chunk, job.blocks)
