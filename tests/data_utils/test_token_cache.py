import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_utils import cache_arrays, stamp, token_cache
from data_utils.array_file import ArrayWriter
from data_utils.canonical_tsv import write_canonical
from data_utils.errors import SettingError, error_line
from data_utils.json_file import json_bytes
from data_utils.task_def import TaskDef
from data_utils.token_cache import TokenCache, cache_dir_for, ensure_cache, open_cache, verify_cache
from data_utils.tokenizer import TokenizerHandle, load_tokenizer, wrap_tokenizer
from tests.data_utils.conftest import PAIRS, make_wordpiece

FILES = ("tokens.npy", "offsets.npy", "segment.npy", "labels.npy", "uids.npy", "manifest.json")
ROOT = Path(__file__).resolve().parents[2]


def example(cache: TokenCache, i: int) -> list[int]:
    return cache.tokens[cache.offsets[i] : cache.offsets[i + 1]].tolist()


def test_layout(pair_cache: TokenCache, wordpiece: TokenizerHandle) -> None:
    assert sorted(os.listdir(pair_cache.path)) == sorted(FILES)
    assert len(pair_cache) == len(PAIRS)
    dtypes = [getattr(pair_cache, n).dtype for n in ("tokens", "offsets", "segment", "labels")]
    assert dtypes == [np.uint16, np.int64, np.uint16, np.int64]
    assert [uid.decode() for uid in pair_cache.uids] == [row[0] for row in PAIRS]
    assert pair_cache.labels.tolist() == [("no", "yes").index(row[1]) for row in PAIRS]
    assert pair_cache.lengths.tolist() == np.diff(pair_cache.offsets).tolist()
    assert all(isinstance(getattr(pair_cache, n), np.memmap) for n in ("tokens", "offsets", "segment", "labels"))
    assert not pair_cache.tokens.flags.writeable
    for i, (_, _, premise, hypothesis) in enumerate(PAIRS):
        full = wordpiece.tokenizer.encode(premise, hypothesis)
        assert pair_cache.lengths[i] == min(len(full), 40)
        if len(full) <= 40:
            assert example(pair_cache, i) == full.ids
            assert pair_cache.segment[i] == full.type_ids.index(1)
    assert pair_cache.manifest["truncated"] == 1
    assert pair_cache.manifest["n_tokens"] == len(pair_cache.tokens)


def test_folder_names(tmp_path: Path) -> None:
    assert cache_dir_for("r", "bert", 128, "mnli_matched_dev") == Path("r/bert/128/mnli_matched_dev")
    for tokenizer, dataset in (("../x", "cola_dev"), ("bert", "a/b")):
        with pytest.raises(SettingError):
            cache_dir_for(tmp_path, tokenizer, 128, dataset)


def test_a_fresh_cache_is_kept(make_cache: Callable[[], TokenCache]) -> None:
    first = make_cache()
    before = {name: (first.path / name).stat().st_mtime_ns for name in FILES}
    assert make_cache().fingerprint == first.fingerprint
    assert {name: (first.path / name).stat().st_mtime_ns for name in FILES} == before


@pytest.mark.parametrize("what", ["tsv", "tokenizer", "task_def", "max_seq_len", "format"])
def test_any_change_means_rebuild(
    what: str,
    tmp_path: Path,
    pair_task: TaskDef,
    wordpiece: TokenizerHandle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tsv, folder = tmp_path / "pair_train.tsv", tmp_path / "cache"
    write_canonical(tsv, ["0"], ["yes"], ["a cat"], ["newword dog " * 10])
    old = ensure_cache(tsv, pair_task, wordpiece, folder, 12)
    limit = 12
    if what == "tsv":
        write_canonical(tsv, ["0"], ["yes"], ["a dog"], ["newword dog " * 10])
    elif what == "tokenizer":
        tokenizer = make_wordpiece()
        tokenizer.add_tokens(["newword"])
        wordpiece = wrap_tokenizer(tokenizer, wordpiece.name)
    elif what == "task_def":
        pair_task = dataclasses.replace(pair_task, labels=("yes", "no"))
    elif what == "max_seq_len":
        limit = 10
    else:
        monkeypatch.setattr(token_cache, "FORMAT_VERSION", 2)
    new = ensure_cache(tsv, pair_task, wordpiece, folder, limit)
    assert "building it anew" in caplog.text
    assert new.manifest != old.manifest
    assert (new.fingerprint == old.fingerprint) == (what == "format")
    assert {p.name for p in tmp_path.iterdir()} == {tsv.name, "cache", ".cache.lock"}


def test_fingerprint_is_of_the_content(make_cache: Callable[[], TokenCache], pair_cache: TokenCache) -> None:
    assert make_cache().fingerprint == pair_cache.fingerprint  # built elsewhere, at another time


def test_the_bytes_are_those_of_format_version_1(pair_cache: TokenCache) -> None:
    # Written down from the first version of this code, which held whole data sets in memory.
    assert pair_cache.fingerprint == "603e83e1d7c21e21e806066055bb2e5b7a5748cd431017d9780def70b56036f7"


@pytest.mark.parametrize("pair", [True, False])
def test_pieces_make_the_bytes_of_whole_arrays(
    pair: bool,
    tmp_path: Path,
    pair_task: TaskDef,
    single_task: TaskDef,
    wordpiece: TokenizerHandle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, limit = 23, 12
    task = pair_task if pair else single_task
    premise = ["cat " * (i % 15) for i in range(n)]
    hypothesis = ["dog " * (i % 7) for i in range(n)] if pair else None
    uids = ["u" * (1 + i) for i in range(n)]  # the widest comes last
    tsv = tmp_path / "some_train.tsv"
    write_canonical(tsv, uids, ["yes" if pair else "1"] * n, premise, hypothesis)
    monkeypatch.setattr(cache_arrays, "_PIECE", 4)
    cache = ensure_cache(tsv, task, wordpiece, tmp_path / "cache", limit)

    wordpiece.tokenizer.enable_truncation(limit, strategy="longest_first")
    texts = premise if hypothesis is None else list(zip(premise, hypothesis, strict=True))
    encodings = wordpiece.tokenizer.encode_batch(texts)
    wordpiece.tokenizer.no_truncation()
    whole = {
        "tokens": np.array([i for e in encodings for i in e.ids], dtype=np.uint16),
        "offsets": np.cumsum([0, *map(len, encodings)]),
        "segment": np.array([e.type_ids.index(1) if pair else 0 for e in encodings], dtype=np.uint16),
        "labels": np.full(n, 1, dtype=np.int64),
        "uids": np.array([uid.encode() for uid in uids]),
    }
    for name, array in whole.items():
        np.save(tmp_path / name, array)
        expected = (tmp_path / f"{name}.npy").read_bytes()
        assert (cache.path / f"{name}.npy").read_bytes() == expected
        entry = {"bytes": len(expected), "sha256": hashlib.sha256(expected).hexdigest(), "dtype": array.dtype.str}
        assert cache.manifest["files"][name] == entry
    assert cache.manifest["truncated"] == sum(bool(e.overflowing) for e in encodings) > 0


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, single_task: TaskDef, wordpiece: TokenizerHandle) -> None:
    def peak(n: int) -> int:
        tsv = tmp_path / f"single{n}_train.tsv"
        write_canonical(tsv, [str(i) for i in range(n)], ["0"] * n, ["the cat sat on the mat"] * n)
        tracemalloc.start()
        ensure_cache(tsv, single_task, wordpiece, tmp_path / str(n), 64)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(3_000), peak(18_000)
    # Kept of 15,000 rows more: their uids, some bytes each (twice while they are joined). Texts and tokens as Python's
    # objects would be hundreds of bytes a row.
    assert many - few < 15_000 * 60


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "longer"])
def test_damaged_files_are_named_on_opening(
    make_cache: Callable[[], TokenCache], caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    cache = make_cache()
    file = cache.path / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"truncated": data[:-1], "empty": b"", "longer": data + b"\0"}[damage])
    with pytest.raises(SettingError) as caught:
        open_cache(cache.path)
    assert str(file if damage != "missing" else name) in str(caught.value)
    assert "prepro_std.py" in str(caught.value)
    again = make_cache()  # named in a warning, and built anew
    assert name in caplog.text
    assert again.fingerprint == cache.fingerprint
    assert file.read_bytes() == data


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(make_cache: Callable[[], TokenCache], name: str) -> None:
    cache = make_cache()
    file = cache.path / name
    data = file.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.choice(len(data), min(len(data), 200), replace=False):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(generator.integers(8))
        file.write_bytes(flipped)
        with pytest.raises(SettingError, match=name):
            verify_cache(cache.path)
    file.write_bytes(data)
    verify_cache(cache.path)


def test_ensure_finds_and_mends_a_flipped_bit(
    make_cache: Callable[[], TokenCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache()
    file = cache.path / "tokens.npy"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    open_cache(cache.path)  # sizes and headers are still right
    make_cache()
    assert f"{file}: damaged" in caplog.text
    assert file.read_bytes() == data


def test_a_folder_that_is_no_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no token cache"):
        open_cache(tmp_path)
    with pytest.raises(SettingError, match="no token cache"):
        open_cache(tmp_path / "missing")


def test_a_manifest_of_another_version_is_named(make_cache: Callable[[], TokenCache]) -> None:
    cache = make_cache()
    manifest = {**cache.manifest, "format_version": 99}
    (cache.path / "manifest.json").write_bytes(json_bytes(manifest))
    with pytest.raises(SettingError, match="format version 99 instead of 1"):
        open_cache(cache.path)


def test_a_cache_of_older_code_is_right(make_cache: Callable[[], TokenCache], caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache()
    file = cache.path / "manifest.json"
    # As the code wrote it that had its own checksum, word for word.
    checksum = hashlib.sha256(json.dumps(cache.manifest, sort_keys=True).encode()).hexdigest()
    file.write_bytes((json.dumps({**cache.manifest, "checksum": checksum}, indent=2) + "\n").encode())
    written = file.stat().st_mtime_ns
    assert make_cache().manifest == cache.manifest
    assert file.stat().st_mtime_ns == written
    assert not caplog.records


@pytest.mark.parametrize("data", [b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"format": "pats token cache"}'])
def test_a_manifest_that_is_none_is_damaged(make_cache: Callable[[], TokenCache], data: bytes) -> None:
    cache = make_cache()
    (cache.path / "manifest.json").write_bytes(data)
    with pytest.raises(SettingError, match="its checksum does not fit"):
        open_cache(cache.path)


@pytest.mark.parametrize("name", ["pair_train.tsv", *(name for name in FILES if name.endswith(".npy"))])
@pytest.mark.parametrize("reason", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_a_machine_in_trouble_is_no_damage(
    make_cache: Callable[[], TokenCache], monkeypatch: pytest.MonkeyPatch, name: str, reason: int
) -> None:
    cache = make_cache()
    before = (cache.path / "tokens.npy").stat().st_ino
    real_open = open

    def fail(file: Any, *more: Any, **options: Any) -> Any:
        if os.fspath(file).endswith(name):
            raise OSError(reason, os.strerror(reason), os.fspath(file))
        return real_open(file, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", fail)  # NumPy's
        patch.setattr("io.open", fail)  # pathlib's
        with pytest.raises(OSError) as caught:  # noqa: PT011
            make_cache()
    assert os.strerror(reason) in error_line(caught.value)
    assert name in error_line(caught.value)
    assert (cache.path / "tokens.npy").stat().st_ino == before
    assert make_cache().fingerprint == cache.fingerprint


def test_opening_is_fast(tmp_path: Path, single_task: TaskDef, wordpiece: TokenizerHandle) -> None:
    tsv = tmp_path / "single_train.tsv"
    n = 20_000
    write_canonical(tsv, [str(i) for i in range(n)], ["0"] * n, ["the cat sat on the mat"] * n)
    cache = ensure_cache(tsv, single_task, wordpiece, tmp_path / "cache", 64)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        open_cache(cache.path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be stamped once a tick of the file system's clock has passed."""
    monkeypatch.setattr(stamp, "_SETTLED_NS", 0)


def tick() -> None:
    time.sleep(0.03)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    whole = token_cache.sha256_of
    monkeypatch.setattr(token_cache, "sha256_of", lambda path: (reads.append(path.name), whole(path))[1])
    return reads


def test_what_was_verified_and_not_touched_is_not_read_again(
    make_cache: Callable[[], TokenCache], settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    built = make_cache()
    tick()
    reads.clear()
    make_cache()
    assert reads == ["pair_train.tsv", *(name for name in FILES if name.endswith(".npy"))]
    reads.clear()
    assert make_cache().fingerprint == built.fingerprint
    assert reads == []


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_though_the_file_was_verified_before(
    make_cache: Callable[[], TokenCache], settled: None, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    cache = make_cache()
    tick()
    make_cache()
    file = cache.path / name
    data, times = file.read_bytes(), file.stat()
    tick()
    with file.open("r+b") as stream:  # in place: the same inode
        stream.seek(len(data) // 2)
        stream.write(bytes([data[len(data) // 2] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time of change
    assert make_cache().fingerprint == cache.fingerprint
    assert f"{file}: damaged" in caplog.text
    assert file.read_bytes() == data


def test_a_changed_tsv_is_seen_though_it_was_hashed_before(
    tmp_path: Path, single_task: TaskDef, wordpiece: TokenizerHandle, settled: None
) -> None:
    tsv, folder = tmp_path / "single_train.tsv", tmp_path / "cache"

    def tokens(text: str) -> list[int]:
        tsv.write_text(f"0\t1\t{text}\n")
        ensure_cache(tsv, single_task, wordpiece, folder, 16)
        tick()
        return ensure_cache(tsv, single_task, wordpiece, folder, 16).tokens.tolist()

    assert tokens("the cat") != tokens("the dog")  # as long as each other


def test_another_setting_is_seen_though_the_cache_was_verified_before(
    tmp_path: Path, single_task: TaskDef, wordpiece: TokenizerHandle, settled: None
) -> None:
    tsv = tmp_path / "single_train.tsv"
    write_canonical(tsv, ["0"], ["1"], ["the cat sat on the mat"])
    for limit in (4, 6):
        for _ in range(2):
            tick()
            assert ensure_cache(tsv, single_task, wordpiece, tmp_path / "cache", limit).lengths.tolist() == [limit]


def test_everything_is_read_on_request_and_while_files_are_new(
    make_cache: Callable[[], TokenCache],
    pair_tsv: Path,
    pair_task: TaskDef,
    wordpiece: TokenizerHandle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache()
    make_cache()
    assert not (cache.path / "verified.json").exists()  # written less than two seconds ago
    tick()
    monkeypatch.setattr(stamp, "_SETTLED_NS", 0)
    make_cache()
    assert (cache.path / "verified.json").exists()
    reads = count_reads(monkeypatch)
    ensure_cache(pair_tsv, pair_task, wordpiece, cache.path, 40, read_all=True)
    assert len(reads) == len(FILES)  # the TSV and five arrays


def test_a_damaged_or_unwritable_stamp_only_costs_time(
    make_cache: Callable[[], TokenCache], settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    tick()

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(stamp, "write_text_atomic", refuse)
        make_cache()
    reads = count_reads(monkeypatch)
    for stamped in (b"{", b"null", b"[" * 100_000, b"\xff"):
        (cache.path / "verified.json").write_bytes(stamped)
        reads.clear()
        assert make_cache().fingerprint == cache.fingerprint
        assert reads


def test_a_failed_build_leaves_the_old_cache_and_no_litter(
    make_cache: Callable[[], TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    (cache.path / "tokens.npy").write_bytes(b"")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full_disk)
        with pytest.raises(OSError, match="No space left"):
            make_cache()
    assert {path.name for path in cache.path.parent.iterdir()} == {cache.path.name, f".{cache.path.name}.lock"}
    make_cache()


def test_malformed_rows_are_reported_and_nothing_is_built(
    tmp_path: Path, pair_task: TaskDef, wordpiece: TokenizerHandle
) -> None:
    tsv = tmp_path / "pair_train.tsv"
    tsv.write_text("0\tyes\ta\tb\n1\tyes\ta\n")
    with pytest.raises(SettingError, match="line 2"):
        ensure_cache(tsv, pair_task, wordpiece, tmp_path / "cache", 16)
    assert not (tmp_path / "cache").exists()


def test_leftovers_of_a_killed_build_are_no_cache_and_go(make_cache: Callable[[], TokenCache], tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / ".pair_train.tmp-1-abc"
    leftover.mkdir(parents=True)
    (leftover / "tokens.npy").write_bytes(b"half")
    make_cache()
    assert not leftover.exists()


CHILD = """
import sys
from pathlib import Path
from data_utils.task_def import DataFormat, Metric, TaskDef, TaskType
from data_utils import cache_arrays, stamp, token_cache
from data_utils.array_file import ArrayWriter
from data_utils.tokenizer import load_tokenizer

builds = []
build = token_cache._build
token_cache._build = lambda *arguments: (builds.append(1), build(*arguments))
task = TaskDef("single", DataFormat.PremiseOnly, TaskType.Classification, 3, (Metric.ACC,))
tsv, tokenizer, cache = map(Path, sys.argv[1:])
handle = load_tokenizer(tokenizer)
print("ready", flush=True)
sys.stdin.readline()
print(token_cache.ensure_cache(tsv, task, handle, cache, 64).fingerprint, len(builds), flush=True)
"""


def start_child(tsv: Path, tokenizer: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(tsv), str(tokenizer), str(cache)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.fixture
def long_tsv(tmp_path: Path) -> Path:
    tsv = tmp_path / "single_train.tsv"
    n = 4000
    write_canonical(tsv, [str(i) for i in range(n)], ["0"] * n, [f"the cat sat on the mat {i} " * 3 for i in range(n)])
    return tsv


def test_of_processes_that_want_a_cache_at_once_one_builds_it(
    tmp_path: Path, long_tsv: Path, wordpiece_folder: Path
) -> None:
    cache = tmp_path / "cache" / "single_train"
    children = [start_child(long_tsv, wordpiece_folder, cache) for _ in range(3)]
    for child in children:
        go(child)
    answers = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert {fingerprint for fingerprint, _ in answers} == {open_cache(cache).fingerprint}
    assert sorted(builds for _, builds in answers) == ["0", "0", "1"]  # one builds, the others wait for it
    verify_cache(cache)
    assert {path.name for path in cache.parent.iterdir()} == {cache.name, f".{cache.name}.lock"}


def test_a_build_killed_at_any_time_leaves_no_cache_or_a_whole_one(
    tmp_path: Path, long_tsv: Path, wordpiece_folder: Path, single_task: TaskDef
) -> None:
    cache = tmp_path / "cache" / "single_train"
    for delay in (0.0, 0.03, 0.1):
        child = start_child(long_tsv, wordpiece_folder, cache)
        go(child)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=60)
        if cache.exists():
            verify_cache(cache)
    handle = load_tokenizer(wordpiece_folder)
    built = ensure_cache(long_tsv, single_task, handle, cache, 64)
    verify_cache(cache)
    assert len(built) == 4000
    assert not list(cache.parent.glob("*.tmp-*"))


def test_an_open_cache_survives_its_replacement(make_cache: Callable[[], TokenCache], tmp_path: Path) -> None:
    cache = make_cache()
    before = cache.tokens[:].tolist()
    (cache.path / "labels.npy").write_bytes(b"")
    make_cache()
    assert cache.tokens[:].tolist() == before  # the old file lives as long as it is mapped


def test_a_cache_in_a_read_only_folder_opens(
    make_cache: Callable[[], TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(token_cache, "_build_lock", refuse)  # root may write anywhere, so modes cannot test this
    make_cache()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\t\r\n\0\ufeff", exclude_categories=["Cs"]), max_size=6),
            st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), max_size=20),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[0],
    )
)
def test_any_text_comes_back_out_of_a_cache(
    tmp_path: Path, single_task: TaskDef, bytelevel: TokenizerHandle, rows: list[tuple[str, str]]
) -> None:
    tsv = tmp_path / "single_train.tsv"
    write_canonical(tsv, [uid for uid, _ in rows], [str(i % 3) for i in range(len(rows))], [text for _, text in rows])
    cache = ensure_cache(tsv, single_task, bytelevel, tmp_path / "cache", 500)
    assert [uid.decode() for uid in cache.uids] == [uid for uid, _ in rows]
    decoded = [bytelevel.tokenizer.decode(example(cache, i), skip_special_tokens=True) for i in range(len(rows))]
    assert decoded == [text for _, text in rows]
    assert cache.labels.tolist() == [i % 3 for i in range(len(rows))]


def test_repeated_uids_are_refused_with_their_lines(
    tmp_path: Path, single_task: TaskDef, wordpiece: TokenizerHandle
) -> None:
    tsv = tmp_path / "single_train.tsv"
    tsv.write_text("".join(f"{uid}\t0\ta\n" for uid in ("b", "é", "c", "é", "b", "é")), encoding="utf-8")
    told = r"3 rows repeat the uid of another, the first 'b' \(lines 1 and 5\); give each row a uid of its own"
    with pytest.raises(SettingError, match=told):
        ensure_cache(tsv, single_task, wordpiece, tmp_path / "cache", 40)
    assert not (tmp_path / "cache").exists()
