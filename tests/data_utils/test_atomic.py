import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data_utils import atomic
from data_utils.atomic import build_dir, open_atomic, replace_dir, write_bytes_atomic, write_text_atomic
from data_utils.errors import error_line

ROOT = Path(__file__).resolve().parents[2]


def test_text_is_utf8_with_line_ends_untouched(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a", "é\r\n\u2028\n")
    assert (tmp_path / "a").read_bytes() == "é\r\n\u2028\n".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_bytes_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os if broken == "fsync" else Path, broken, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes_atomic(path, b"new")
    assert error_line(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_links_stay_and_their_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file = tmp_path / "real" / "file"
    file.write_bytes(b"old")
    (tmp_path / "link").symlink_to("real/file")
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    (tmp_path / "dangling").symlink_to("real/new")
    opened = file.open("rb")
    write_bytes_atomic(tmp_path / "link to link", b"new")
    write_bytes_atomic(tmp_path / "dangling", b"first")
    assert opened.read() == b"old"  # replaced, not written over
    assert (tmp_path / "link").readlink() == Path("real/file")
    assert (tmp_path / "dangling").is_symlink()
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {"file": b"new", "new": b"first"}


def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes_atomic(tmp_path / "full", b"x")
    assert error_line(caught.value) == f"cannot write {tmp_path / 'full'}: No space left on device"
    write_bytes_atomic("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.listdir(tmp_path) == ["full"]


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_bytes_atomic(pipe, b"through")
    reader.join()
    assert read == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output_by_its_name_is_appended_to(tmp_path: Path) -> None:
    code = (
        "import sys; from data_utils.atomic import write_bytes_atomic as w; w(sys.argv[1], b'a'); w(sys.argv[1], b'b')"
    )
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        log = tmp_path / "log"
        log.write_bytes(b"kept ")
        with log.open("ab") as out:
            subprocess.run([sys.executable, "-c", code, name], stdout=out, cwd=ROOT, check=True)
        assert log.read_bytes() == b"kept ab"


def test_folders_and_circles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "to folder").symlink_to("folder")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name, reason in (("folder", "Is a"), ("to folder", "Is a"), ("a", "Too many levels"), ("no/x", "No such")):
        with pytest.raises(OSError, match=reason) as caught:
            write_bytes_atomic(tmp_path / name, b"x")
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "folder", "to folder"]


def test_other_files_errors_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, open_atomic(tmp_path / "out"):
        (tmp_path / "in").read_bytes()
    assert caught.value.filename == str(tmp_path / "in")
    assert os.listdir(tmp_path) == []


def test_the_next_write_removes_what_killed_ones_left(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from data_utils.atomic import open_atomic\n"
        "with open_atomic(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    for name in ("a[1]", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, check=False)
    assert len(os.listdir(tmp_path)) == 2
    write_bytes_atomic(tmp_path / "a[1]", b"whole")
    (left, whole) = sorted(os.listdir(tmp_path))
    assert left.startswith(".b.tmp-")
    assert whole == "a[1]"


def test_what_living_processes_write_is_left_alone(tmp_path: Path) -> None:
    with open_atomic(tmp_path / "a") as outer:
        outer.write(b"outer")
        write_bytes_atomic(tmp_path / "a", b"inner")
    assert (tmp_path / "a").read_bytes() == b"outer"


def test_a_lock_protects_what_another_machine_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_is_alive", lambda process: False)  # it is not among this machine's
    with open_atomic(tmp_path / "a") as outer:
        outer.write(b"outer")
        write_bytes_atomic(tmp_path / "a", b"inner")
    assert (tmp_path / "a").read_bytes() == b"outer"


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_replace_dir_replaces_and_cleans_up(tmp_path: Path) -> None:
    for text in ("first", "second"):
        replace_dir(make_folder(tmp_path / "new", text), tmp_path / "target")
        assert (tmp_path / "target" / "file").read_text() == text
        assert os.listdir(tmp_path) == ["target"]


def test_a_failed_replace_puts_the_old_folder_back(tmp_path: Path) -> None:
    make_folder(tmp_path / "target", "old")
    with pytest.raises(FileNotFoundError):
        replace_dir(tmp_path / "missing", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["target"]


def test_a_folder_that_cannot_be_filled_is_named_and_gone(tmp_path: Path) -> None:
    target = make_folder(tmp_path / "target", "old")

    def fill(error: OSError) -> None:
        with build_dir(target) as folder:
            (folder / "file").write_text("new")
            error.filename = error.filename or (str(folder / "file") if error.errno == 28 else None)
            raise error

    for error, named in ((OSError(28, "full"), target), (OSError(5, "bad"), target), (OSError(5, "bad", "tsv"), "tsv")):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fill(error)
        assert caught.value.filename == str(named)
    assert (target / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["target"]
    with build_dir(target) as folder:
        (folder / "file").write_text("new")
    assert (target / "file").read_text() == "new"
