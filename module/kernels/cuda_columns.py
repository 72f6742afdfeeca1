"""Columns of the tables as Triton's constants, ``<table>_<column>``: its kernels read globals as constexpr only."""

import triton.language as tl

from .rows import AS_STATED, DRAW, RECORD, SETTINGS, TENSOR, Flag

_TABLES = {
    "TENSOR": TENSOR.names,
    "SETTING": SETTINGS.names,
    "RECORD": RECORD.names,
    "DRAW": DRAW.names,
    "FLAG": tuple(flag.name for flag in Flag),
}
_CONSTANTS = {
    f"{table}_{name.upper()}": tl.constexpr(number)
    for table, names in _TABLES.items()
    for number, name in enumerate(names or ())
}
_CONSTANTS |= {f"{table}_COLUMNS": tl.constexpr(len(names or ())) for table, names in _TABLES.items()}
_CONSTANTS["AS_STATED"] = tl.constexpr(len(AS_STATED))
globals().update(_CONSTANTS)
__all__ = list(_CONSTANTS)
