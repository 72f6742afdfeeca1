import os
import stat
from pathlib import Path

import pytest

from data_utils import atomic
from data_utils.atomic import replace_dir, write_bytes_atomic, write_text_atomic


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
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


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
