import hashlib
import os
from pathlib import Path

import pytest

from data_utils import file_hash
from data_utils.file_hash import remembered_sha256

LONG_AGO = 1_600_000_000


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read in full, in order; what is remembered lies in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hash, "_known", {})
    monkeypatch.setattr(file_hash, "is_settled", lambda seen: True)
    read: list[Path] = []
    whole = file_hash.sha256_of
    monkeypatch.setattr(file_hash, "sha256_of", lambda path: (read.append(path), whole(path))[1])
    return read


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_read_once_and_again_when_it_was_touched(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    assert [remembered_sha256(file) for _ in range(3)] == [sha("one")] * 3
    assert len(reads) == 1
    file_hash._known.clear()  # another process
    assert remembered_sha256(file) == sha("one")
    assert len(reads) == 1
    os.utime(file, (LONG_AGO, LONG_AGO))
    assert remembered_sha256(file) == sha("one")
    other = tmp_path / "other"
    other.write_text("two")  # as long as the first, and then as old
    os.utime(other, (LONG_AGO, LONG_AGO))
    other.replace(file)
    assert remembered_sha256(file) == sha("two")
    assert len(reads) == 3


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("one")
    assert remembered_sha256(tmp_path / "file") == sha("one")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"/file": 3}', b"{" * 100_000, b"\xff"])
def test_a_damaged_or_read_only_memory_costs_only_time(tmp_path: Path, reads: list[Path], content: bytes) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    memory = tmp_path / "cache" / "pats_finetuning" / "file_hashes.json"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content)
    assert remembered_sha256(file) == sha("one")
    file_hash._known.clear()
    assert remembered_sha256(file) == sha("one")
    assert len(reads) == 1, "the damaged file was replaced"
    memory.unlink()
    memory.mkdir()  # in the way of the file
    file_hash._known.clear()
    assert remembered_sha256(file) == sha("one")
    assert len(reads) == 2


def test_what_is_remembered_does_not_grow_for_ever(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hash, "_MOST", 2)
    for name in "abc":
        (tmp_path / name).write_text(name)
        remembered_sha256(tmp_path / name)
    assert [Path(path).name for path in file_hash._stored()] == ["b", "c"]
