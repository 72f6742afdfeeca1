"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from data_utils.errors import naming

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_OWNER = re.compile(r"\.tmp-([0-9]+)-[0-9a-f]{8}")
_MAX_LINKS = 40  # Linux follows as many


class NamedFile(io.FileIO):
    """A binary file, unbuffered, whose errors of writing name ``path``."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write some or all of the data and return how many bytes."""
        with naming(self._path):
            return super().write(data)


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name beside ``path`` (same file system, so a rename is atomic)."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing so that ``path`` holds the old content or the new one at any instant.

    The data goes to a temporary file in the same folder, is flushed to disk and renamed over ``path`` at the end of
    the block; on an error the temporary file is removed. Parent folders are not made. A symbolic link stays, the file
    that it leads to is replaced. What is no regular file (a device, a pipe, ``/dev/stdout``) is never replaced: the
    data is written into it as it comes.

    Raises:
        OSError: disk full, folder missing or read-only, a folder of that name, ...; names ``path``.
    """
    path = Path(path)
    with naming(path):
        target = _replaceable(path)
    if target is None:
        with naming(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        with io.BufferedWriter(NamedFile(descriptor, path)) as file:
            yield file
        return
    _remove_leftovers(target)
    temporary = temporary_sibling(target)
    with naming(path):
        # Not tempfile.mkstemp: its mode 0600 would lock other users out of shared results.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with io.BufferedWriter(NamedFile(descriptor, path)) as file:
            _lock(descriptor)
            yield file
            file.flush()
            with naming(path):
                os.fsync(descriptor)
        with naming(path):
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _replaceable(path: Path) -> Path | None:
    """Return the file to be replaced, at the end of symbolic links; None where ``path`` is to be written into.

    Raises:
        OSError: it is a folder, or links run in a circle.
    """
    target = path
    for _ in range(_MAX_LINKS):
        if not target.is_symlink():
            break
        if target.parent.resolve().is_relative_to("/proc"):  # /dev/stdout: an open file, whatever its name
            return None
        target = target.parent / target.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return target if stat.S_ISREG(mode) else None


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; false where another holds it, or where files cannot be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of ``path`` left."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        owner = _OWNER.fullmatch(leftover.name.removeprefix(f".{path.name}"))
        if owner is None or _is_alive(int(owner[1])):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK)
            try:
                # A process of another machine that shares the folder is not among this one's, but holds the lock.
                if _lock(descriptor):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data``, whole or not at all; see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(data)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, line ends untouched; see `open_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))


def replace_dir(source: str | Path, target: str | Path) -> None:
    """Rename folder ``source`` to ``target`` (same file system), which is replaced if it exists.

    Between the two renames ``target`` is missing for an instant; it never holds a mixture. Callers that may race
    for one target hold a lock. Processes that have files of the old folder open keep them.

    Raises:
        OSError: the rename failed; an old ``target`` is put back and ``source`` is left as it was. Names ``target``.
    """
    source, target = Path(source), Path(target)
    with naming(target):
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


@contextlib.contextmanager
def build_dir(target: Path) -> Iterator[Path]:
    """Give a new, empty folder that takes the place of ``target`` at the end of the block; after an error it is gone.

    Raises:
        OSError: as `replace_dir`, or the folder cannot be made or filled; names ``target``.
    """
    scratch = temporary_sibling(target)
    with naming(target, scratch):
        scratch.mkdir()
        try:
            yield scratch
            replace_dir(scratch, target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
