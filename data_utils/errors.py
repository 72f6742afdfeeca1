"""The exception for mistakes that a user can mend, and the form of values and system errors in messages."""

import errno
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SettingError(ValueError):
    """A wrong setting, file or row: one line that names it, the legal values and the fix.

    Command lines print the message behind ``error:`` and exit with 2; everything else that is raised is a defect of
    this code and keeps its traceback.

    Args:
        message: what is wrong, and where.
        setting: the flag that says otherwise, put in front.
        remedy: the fix, put behind; where other commands have no such flag, they can tell another (`published`).
    """

    def __init__(self, message: str, setting: str = "", remedy: str = "") -> None:
        super().__init__((f"{setting}: " if setting else "") + message + (f"; {remedy}" if remedy else ""))
        self.message, self.has_flag = message, bool(setting) or "--" in remedy


@contextmanager
def published() -> Iterator[None]:
    """Name no flag of an import in the errors of this block: it reads published files, whose form is given."""
    try:
        yield
    except SettingError as error:
        if not error.has_flag:
            raise
        remedy = "is it the published file? Any other table: python -m data_utils.import_dataset"
        raise SettingError(error.message, remedy=remedy) from None


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 6

# These come from writing alone.
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_REMEDIES = {
    errno.EMFILE: "; the limit of open files is reached, raise it with ulimit -n",
    errno.ENFILE: "; the machine's limit of open files is reached",
    errno.ENOMEM: "; memory is short here, or limited (ulimit -v)",
}


def shown(value: object) -> str:
    """Return ``repr(value)`` for a message: cut where it is long, so that no value of a file can flood it."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return f"a huge {type(value).__name__}"


def one_line(text: str) -> str:
    """Return a text with escapes for control characters and line ends, such as a path may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def in_one_line(error: BaseException) -> str:
    """Return an error's message, or its beginning, in one line; for errors of libraries, which write many."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 300 else f"{text[:300]}..."


def error_line(error: BaseException) -> str:
    """Return the printed line of a mistake or of a system error: it names the file and has no error number."""
    if isinstance(error, MemoryError):
        return one_line(f"not enough memory {error}".rstrip() + _REMEDIES[errno.ENOMEM])
    return one_line(_system_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__)


@contextmanager
def naming(path: str | Path, scratch: Path | None = None) -> Iterator[None]:
    """Name a file in the system errors of this block.

    Args:
        path: the file.
        scratch: a folder that stands for it meanwhile; with it, errors that name a file outside keep that.
    """
    try:
        yield
    except OSError as error:
        named = str(error.filename or "")
        if error.errno is not None and (scratch is None or not named or named.startswith(str(scratch))):
            error.filename, error.filename2 = str(path), None
        raise


def _system_error(error: OSError) -> str:
    reason = error.strerror
    if error.errno is None or reason is None:
        return str(error) or type(error).__name__
    reason += _REMEDIES.get(error.errno, "")
    does = "cannot write" if error.errno in _WRITE_ERRORS else ""
    named = error.filename2 if does and error.filename2 is not None else error.filename  # of a copy, the target
    if not isinstance(named, str | bytes):
        return f"{does} standard output or a file: {reason}" if does else reason
    name = os.fsdecode(named)
    if error.errno == errno.ENOENT:
        folder = Path(name).parent
        return f"{name} does not exist" if folder.is_dir() else f"{name}: the folder {folder} does not exist"
    return f"{does or 'cannot use'} {name}: {reason}"
