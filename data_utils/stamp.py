"""Stamps: records that files were checked in full, with their look then, so that they are not read again.

A file's look is its inode, size, time of change and time of status change. The kernel sets the last one at every write,
rename or ``touch`` and no program can set it back, so a file with the same look has not been written since. A medium
that rots under an untouched file is not seen: only a full read finds it.
"""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from data_utils.atomic import write_text_atomic
from data_utils.errors import SettingError
from data_utils.json_file import read_json

# File times advance in ticks of some milliseconds: a file written within the same tick twice looks the same. What was
# written just now is therefore not stamped yet.
_SETTLED_NS = 2_000_000_000

Look = dict[str, list[int]]
"""Name of each file -> inode, size, time of change (ns), time of status change (ns)."""


def look(files: Iterable[Path]) -> Look | None:
    """Return how files look now, or None if one is missing."""
    try:
        states = {file.name: file.stat() for file in files}
    except OSError:
        return None
    return {name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in states.items()}


def is_stamped(stamp: Path, files: Iterable[Path]) -> bool:
    """Whether all files look as they did when they were last checked."""
    try:
        before = read_json(stamp)
    except (OSError, SettingError):
        return False
    return before == look(files)


def is_settled(seen: Look) -> bool:
    """Whether files were last written long enough ago that a later write would look different."""
    return max(max(times[2:]) for times in seen.values()) <= time.time_ns() - _SETTLED_NS


def write_stamp(stamp: Path, checked: Look | None) -> None:
    """Record that files were checked and found right, except files just written and in read-only folders.

    Args:
        stamp: the stamp's file.
        checked: how the files looked *before* they were checked.
    """
    if checked is None or not is_settled(checked):
        return
    with suppress(OSError):  # a read-only folder: every start checks again
        write_text_atomic(stamp, json.dumps(checked) + "\n")
