"""How messages show values and errors of the system."""

import errno
import os
import pickle
from pathlib import Path

import pytest

from data_utils.errors import SettingError, error_line, in_one_line, naming, one_line, published, shown


def test_whole_numbers_that_python_does_not_write_are_shown() -> None:
    assert all(0 < len(shown(value)) < 200 for value in (10**5000, [10**5000], {"n_class": -(10**5000)}))


def test_a_command_without_the_flags_of_an_error_names_none() -> None:
    errors = [
        SettingError("a.csv has no column 'x'", "--text"),
        SettingError("a.csv: row 1 has no label", remedy="leave it out with --skip_label ''"),
        SettingError("a.csv: holds no rows", remedy="fetch it again"),
    ]
    assert str(errors[0]) == "--text: a.csv has no column 'x'"
    assert str(errors[1]) == "a.csv: row 1 has no label; leave it out with --skip_label ''"
    told = []
    for error in errors:
        with pytest.raises(SettingError) as caught, published():
            raise error
        told.append(str(caught.value))
    remedy = "is it the published file? Any other table: python -m data_utils.import_dataset"
    assert told == [f"a.csv has no column 'x'; {remedy}", f"a.csv: row 1 has no label; {remedy}", str(errors[2])]
    assert str(pickle.loads(pickle.dumps(errors[1]))) == str(errors[1]), "workers send theirs to the study"


def test_control_characters_are_escaped_and_letters_stay() -> None:
    assert one_line("a\nb\r\t\x1b[31m\u2028\x85 é 日本 \udcff") == "a\\nb\\r\\t\\x1b[31m\\u2028\\x85 é 日本 \\udcff"
    assert error_line(SettingError("no\nsuch")) == "no\\nsuch"


def test_an_error_of_a_library_is_one_line_that_says_something() -> None:
    assert in_one_line(RuntimeError("sizes differ:\n\tours  2,\n\ttheirs 3")) == "sizes differ: ours 2, theirs 3"
    assert in_one_line(RuntimeError()) == "RuntimeError"
    assert in_one_line(KeyError("weight")) == "KeyError 'weight'"
    assert in_one_line(ValueError("a" * 400)) == "a" * 300 + "..."


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "cannot write {0}: No space left on device"),
        (errno.EROFS, "cannot write {0}: Read-only file system"),
        (errno.EACCES, "cannot use {0}: Permission denied"),
        (
            errno.EMFILE,
            "cannot use {0}: Too many open files; the limit of open files is reached, raise it with ulimit -n",
        ),
        (errno.ENOENT, "{0} does not exist"),
    ],
)
def test_errors_of_the_system_are_told_with_their_file_and_without_number(
    tmp_path: Path, number: int, line: str
) -> None:
    file = tmp_path / "a"
    assert error_line(OSError(number, os.strerror(number), str(file))) == line.format(file)
    assert error_line(OSError(number, os.strerror(number), os.fsencode(file))) == line.format(file)


def test_of_a_copy_the_target_is_what_cannot_be_written() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, "target")  # as shutil.copyfile raises it
    assert error_line(full) == "cannot write target: No space left on device"


def test_a_missing_folder_is_what_is_told() -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        Path("/nowhere/a/b").read_bytes()
    assert error_line(caught.value) == "/nowhere/a/b: the folder /nowhere/a does not exist"


def test_errors_without_a_file_or_number() -> None:
    assert error_line(OSError(errno.ENOSPC, "No space left on device")) == (
        "cannot write standard output or a file: No space left on device"
    )
    assert error_line(OSError("https://a: HTTP 404")) == "https://a: HTTP 404"
    assert error_line(OSError()) == "OSError"
    assert error_line(MemoryError()) == "not enough memory; memory is short here, or limited (ulimit -v)"


def test_naming() -> None:
    def line(error: OSError, scratch: Path | None = None) -> str:
        with pytest.raises(OSError) as caught, naming("file", scratch):  # noqa: PT011
            raise error
        return error_line(caught.value)

    full = os.strerror(errno.ENOSPC)
    assert (
        line(OSError(errno.ENOSPC, full)) == line(OSError(errno.ENOSPC, full, "other")) == f"cannot write file: {full}"
    )
    assert line(OSError(errno.ENOSPC, full, "a/b", None, "c")) == f"cannot write file: {full}"
    assert line(OSError(errno.ENOSPC, full), Path("a")) == f"cannot write file: {full}"
    assert line(OSError(errno.ENOSPC, full, "a/b"), Path("a")) == f"cannot write file: {full}"
    assert line(OSError(errno.ENOSPC, full, "other"), Path("a")) == f"cannot write other: {full}"
    assert line(OSError("told by hand")) == "told by hand"
