"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside ``path`` (same file system, so a rename is atomic)."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing so that ``path`` holds the old content or the new one, whatever happens in between.

    The data goes to a temporary file in the same folder, is flushed to disk and renamed over ``path`` at the end of
    the block; on an error the temporary file is removed. Parent folders are not made.

    Raises:
        OSError: disk full, folder missing or read-only, ...
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    # Not tempfile.mkstemp: its mode 0600 would lock other users out of shared results.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data``, whole or not at all; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, line ends untouched; see `open_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))


def replace_dir(source: str | Path, target: str | Path) -> None:
    """Rename folder ``source`` to ``target`` (same file system), in place of what is there.

    Between the two renames ``target`` is missing for an instant; it never holds a mixture. Callers that may race
    for one target hold a lock. Processes that have files of the old folder open keep them.

    Raises:
        OSError: the rename failed; an old ``target`` is put back and ``source`` is left as it was.
    """
    source, target = Path(source), Path(target)
    if not target.exists():
        source.rename(target)
        sync_folder(target.parent)
        return
    old = temporary_sibling(target)
    target.rename(old)
    try:
        source.rename(target)
    except BaseException:
        old.rename(target)
        raise
    sync_folder(target.parent)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
