"""The downloader against a file server on this machine; official row counts are scaled down to files of a few rows."""

import dataclasses
import hashlib
import io
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_utils.errors import error_line
from experiments.glue import download, glue_prepro, glue_readers
from experiments.glue.fetch import fetch

ROOT = Path(__file__).resolve().parents[2]
COLA = {"train.tsv": "gj\t1\t\ta\n" * 5, "dev.tsv": "gj\t0\t*\tb\n" * 3, "test.tsv": "index\tsentence\n0\tc\n1\td\n"}
COUNTS = {"train": 5, "dev": 3, "test": 2}
MSR = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(f"1\t{i}\t{i}\ta\tb\n" for i in range(8))
COLA_URL = "/glue/data/CoLA.zip"
MSR_URLS = {
    "/senteval/senteval_data/msr_paraphrase_train.txt": MSR.encode(),
    "/senteval/senteval_data/msr_paraphrase_test.txt": "".join(MSR.splitlines(keepends=True)[:3]).encode(),
    "/glue/data/mrpc_dev_ids.tsv": b"0\t0\n4\t4\n5\t5\n",
}


def archive(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        for name, text in members.items():
            content.writestr(name, text)
    return buffer.getvalue()


def cola_zip(**changes: str) -> bytes:
    return archive({f"CoLA/{name}": text for name, text in (COLA | changes).items()})


class Server:
    """Serves ``files``; knows byte ranges unless told not to, and can break off in the middle."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.break_after: int | None = None
        self.answer: bytes | None = None  # to every request, word for word
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if outer.answer is not None:
                    self.wfile.write(outer.answer)
                    self.close_connection = True
                    return
                wanted = self.headers.get("Range")
                outer.requests.append((self.path, wanted))
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and outer.ranges else 0  # type: ignore[index]
                if start and start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                end = len(data) if outer.break_after is None else start + outer.break_after
                self.wfile.write(data[start:end])
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()
    thread = threading.Thread(target=served.server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


@pytest.fixture(autouse=True)
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cola", "mrpc"):
        task = glue_readers.TASKS[name]
        splits = {split: dataclasses.replace(source, rows=COUNTS[split]) for split, source in task.splits.items()}
        monkeypatch.setitem(glue_readers.TASKS, name, dataclasses.replace(task, splits=splits))


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Callable[..., int]:
    def call(*more: str, tasks: str = "cola") -> int:
        return download.main(["--out_dir", str(tmp_path / "data"), "--base_url", server.url, "--tasks", tasks, *more])

    return call


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_archive_is_fetched_checked_and_cleared_away(
    server: Server, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[COLA_URL] = archive(
        {f"CoLA/{name}": text for name, text in COLA.items()}
        | {"CoLA/original/raw/train.tsv": "other", "__MACOSX/train.tsv": "other", "README": "x"}
    )
    assert run() == 0
    assert files(tmp_path / "data" / "CoLA") == COLA
    assert os.listdir(tmp_path / "data" / ".download") == ["lock"]
    assert "fetched and checked" in capsys.readouterr().out


def test_what_is_complete_is_not_fetched_again(server: Server, run: Callable[..., int]) -> None:
    server.files[COLA_URL] = cola_zip()
    assert run() == 0
    assert run() == 0
    assert len(server.requests) == 1


def test_mrpc_comes_as_the_original_corpus(server: Server, run: Callable[..., int], tmp_path: Path) -> None:
    server.files.update(MSR_URLS)
    assert run(tasks="mrpc") == 0
    folder = tmp_path / "data" / "MRPC"
    assert sorted(os.listdir(folder)) == ["dev_ids.tsv", "msr_paraphrase_test.txt", "msr_paraphrase_train.txt"]
    assert run(tasks="mrpc") == 0
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.tsv": "gj\t1\t\ta\n" * 4}, "CoLA/train.tsv: 4 rows for train, the official file has 5"),
        ({"dev.tsv": COLA["train.tsv"]}, "CoLA/dev.tsv: 5 rows for dev, the official file has 3"),
        ({"train.tsv": COLA["train.tsv"][:-9]}, "train.tsv: 4 rows"),
        ({"train.tsv": "gj\t1\t\ta\n" * 4 + "gj\t1\t\n"}, "train.tsv: line 5: 3 columns instead of 4"),
    ],
)
def test_swapped_and_truncated_files_are_refused(
    server: Server,
    run: Callable[..., int],
    tmp_path: Path,
    changes: dict[str, str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.files[COLA_URL] = cola_zip(**changes)
    assert run() == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "data" / "CoLA").exists()
    server.files[COLA_URL] = cola_zip()  # the wrong archive is gone: the next run gets the right one
    assert run() == 0
    assert files(tmp_path / "data" / "CoLA") == COLA


def test_swapped_corpus_is_refused(server: Server, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    urls = list(MSR_URLS)
    server.files.update(MSR_URLS)
    server.files[urls[1]] = MSR_URLS[urls[0]]
    assert run(tasks="mrpc") == 2
    assert "msr_paraphrase_test.txt: 8 rows for test, the official file has 2" in capsys.readouterr().err


def big_cola() -> bytes:
    # Stored, so that the archive has a size worth resuming.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as content:
        for name, text in COLA.items():
            content.writestr(f"CoLA/{name}", text)
        content.writestr("CoLA/original/big", os.urandom(300_000))
    return buffer.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(
    server: Server, run: Callable[..., int], tmp_path: Path, ranges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[COLA_URL] = big_cola()
    server.break_after = 100_000
    assert run() == 2
    assert "broke off" in capsys.readouterr().err
    part = tmp_path / "data" / ".download" / "CoLA.zip.part"
    assert part.read_bytes() == server.files[COLA_URL][:100_000]
    server.break_after = None
    server.ranges = ranges
    assert run() == 0
    assert server.requests[-1] == (COLA_URL, "bytes=100000-")
    assert files(tmp_path / "data" / "CoLA") == COLA


def test_a_file_that_changed_between_two_attempts_is_found_out(
    server: Server, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[COLA_URL] = big_cola()
    server.break_after = 100
    assert run() == 2
    server.break_after = None
    server.files[COLA_URL] = archive({"x": "y"}) + big_cola()[::-1]
    assert run() == 2
    assert "damaged archive" in capsys.readouterr().err
    server.files[COLA_URL] = big_cola()
    assert run() == 0


def test_a_part_as_long_as_the_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = b"content"
    (tmp_path / "x.part").write_bytes(b"garbage")
    assert fetch(f"{server.url}/x", tmp_path / "x").read_bytes() == b"content"
    assert [wanted for _, wanted in server.requests] == ["bytes=7-", None]


@pytest.mark.parametrize("name", ["../evil.tsv", "/etc/evil", "CoLA/../../evil", "..\\evil", "C:\\evil", "C:/evil"])
def test_an_archive_that_points_outside_is_refused_whole(
    server: Server, run: Callable[..., int], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {f"CoLA/{file}": text for file, text in COLA.items()}
    server.files[COLA_URL] = archive(members | {name: "evil"})
    assert run() == 2
    assert "points outside; nothing unpacked" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("*.tsv"))


def test_a_link_in_an_archive_is_refused(
    server: Server, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO(cola_zip())
    with zipfile.ZipFile(buffer, "a") as content:
        link = zipfile.ZipInfo("CoLA/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        content.writestr(link, "/etc/passwd")
    server.files[COLA_URL] = buffer.getvalue()
    assert run() == 2
    assert "'CoLA/link' points outside" in capsys.readouterr().err


def test_a_file_that_would_fill_the_disk_is_refused(
    server: Server, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "_MAX_UNPACKED", 20)
    server.files[COLA_URL] = cola_zip()
    assert run() == 2
    assert "would unpack to 40 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>sorry</html>", "CoLA.zip: damaged archive"),
        (cola_zip()[:-30], "CoLA.zip: damaged archive"),
        (archive({"CoLA/train.tsv": COLA["train.tsv"]}), "CoLA.zip: has no dev.tsv; it holds CoLA/train.tsv"),
    ],
)
def test_damaged_archives_are_refused_and_fetched_anew(
    server: Server, run: Callable[..., int], data: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[COLA_URL] = data
    assert run() == 2
    assert reason in capsys.readouterr().err
    server.files[COLA_URL] = cola_zip()
    assert run() == 0


def test_a_flipped_bit_in_an_archive_is_found(
    server: Server, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = big_cola()
    at = data.index(COLA["dev.tsv"].encode())
    server.files[COLA_URL] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert run() == 2
    assert "damaged archive" in capsys.readouterr().err


def test_one_task_that_fails_does_not_stop_the_others(
    server: Server, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files.update(MSR_URLS)
    assert run(tasks="cola,mrpc") == 2
    err = capsys.readouterr().err
    assert f"error: cola: {server.url}{COLA_URL}: HTTP 404" in err
    assert "error: not fetched: cola; run the same command again" in err
    assert (tmp_path / "data" / "MRPC").is_dir()


@pytest.mark.parametrize("length", ["x", "-5", "", "1e3", "9" * 5000, "²"])
def test_a_length_that_is_none_is_passed_over(
    server: Server, run: Callable[..., int], tmp_path: Path, length: str
) -> None:
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    server.answer = head.encode("latin-1") + cola_zip()
    assert run() == 0  # whether the archive is whole is seen from itself
    assert files(tmp_path / "data" / "CoLA") == COLA


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", "HTTP 302 The HTTP server returned"),
        ("HTTP/1.1 301 Gone\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n", "no address that can be fetched"),
        ("HTTP/1.1 301 Gone\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "HTTP 301"),
        ("nonsense\r\n\r\n", "the connection broke off"),
    ],
)
def test_a_server_out_of_its_mind_is_one_line(
    server: Server, run: Callable[..., int], answer: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = answer.encode()
    assert run() == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: cola: {server.url}{COLA_URL}: {reason}")
    assert last == "error: not fetched: cola; run the same command again to go on, or with --source hub"


def test_a_full_disk_names_the_part(server: Server, tmp_path: Path) -> None:
    server.files = {COLA_URL: cola_zip()}
    (tmp_path / "CoLA.zip.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(server.url + COLA_URL, tmp_path / "CoLA.zip")
    assert error_line(caught.value) == f"cannot write {tmp_path / 'CoLA.zip.part'}: No space left on device"


def test_no_connection_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound and not listening: nobody answers
        assert download.main(["--out_dir", str(tmp_path), "--base_url", url, "--tasks", "cola"]) == 2
    assert f"error: cola: {url}{COLA_URL}: no connection" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--base_url", "file:///etc"], "must begin with http:// or https://"),
        (["--tasks", "imdb"], "'imdb' is none of cola"),
    ],
)
def test_wrong_settings_are_refused(
    run: Callable[..., int], options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == 2
    assert reason in capsys.readouterr().err


def test_defaults_are_the_eight_tasks_and_the_public_server() -> None:
    assert download.DEFAULT_TASKS == ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst", "stsb")
    assert set(download.DOWNLOADS) == set(glue_readers.TASKS)
    assert download.BASE_URL.startswith("https://")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An active environment whose Python is this one and whose pip does nothing."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"pip "*) exit 0 ;; *sys.prefix*) echo "{tmp_path}/venv"; exit 0 ;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"VIRTUAL_ENV": str(tmp_path / "venv")}


def test_the_script_calls_it_and_takes_the_server_from_the_environment(
    server: Server, tmp_path: Path, environment: dict[str, str]
) -> None:
    server.files[COLA_URL] = cola_zip()
    command = ["bash", str(ROOT / "scripts/download_glue.sh"), "--out_dir", "out", "--tasks", "cola"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"GLUE_BASE_URL": server.url},
        capture_output=True,
        text=True,
        check=False,
    )
    # Another process, so the true counts apply: our five rows are refused, with both numbers.
    assert done.returncode == 2
    assert "CoLA/train.tsv: 5 rows for train, the official file has 8551; not kept" in done.stderr
    assert not (tmp_path / "out" / "CoLA").exists()


def test_real_files_pass_the_script(
    server: Server, glue_dir: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    for folder in ("CoLA", "RTE", "STS-B"):
        texts = {f"{folder}/{name}": (glue_dir / folder / name).read_bytes().decode() for name in COLA}
        server.files[f"/glue/data/{folder}.zip"] = archive(texts)
    for url, name in zip(MSR_URLS, ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "dev_ids.tsv"), strict=True):
        server.files[url] = (glue_dir / "MRPC" / name).read_bytes()
    command = [
        "bash",
        str(ROOT / "scripts/download_glue.sh"),
        "--base_url",
        server.url,
        "--tasks",
        "cola,mrpc,rte,stsb",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COLA:
        assert (tmp_path / "data" / "STS-B" / name).read_bytes() == (glue_dir / "STS-B" / name).read_bytes()
    assert done.stdout.count("fetched and checked") == 4


def test_the_official_server_is_held_to_the_official_checksums(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "BASE_URL", server.url)
    server.files[COLA_URL] = cola_zip()
    arguments = ["--out_dir", str(tmp_path), "--tasks", "cola", "--base_url", server.url]
    assert download.main(arguments) == 2
    assert re.search(
        "CoLA.zip: SHA-256 is [0-9a-f]{64}, the official file's f212fcd8.*; not kept", capsys.readouterr().err
    )
    assert not (tmp_path / "CoLA").exists()
    assert not (tmp_path / ".download/CoLA.zip").exists()
    (item,) = download.DOWNLOADS["cola"]
    right = dataclasses.replace(item, sha256=hashlib.sha256(cola_zip()).hexdigest())
    monkeypatch.setitem(download.DOWNLOADS, "cola", (right,))
    server.files[COLA_URL] = cola_zip()
    assert download.main(arguments) == 0


def test_every_file_has_a_checksum_and_a_real_one_fits(glue_dir: Path) -> None:
    sums = [item.sha256 for items in download.DOWNLOADS.values() for item in items]
    assert len(set(sums)) == len(sums) == 11
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in sums)
    (ids,) = (item for item in download.DOWNLOADS["mrpc"] if item.name == "dev_ids.tsv")
    download.check_sum(glue_dir / "MRPC/dev_ids.tsv", ids.sha256)


def test_the_second_source_is_fetched_and_counted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (requirements-parquet.txt)")
    from pyarrow import parquet

    monkeypatch.setenv("GLUE_HUB_URL", f"{server.url}/glue/")
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        buffer = io.BytesIO()
        rows = COUNTS[split]
        parquet.write_table(pa.table({"sentence": ["a"] * rows, "label": [0] * rows, "idx": list(range(rows))}), buffer)
        server.files[f"/glue/cola/{name}-00000-of-00001.parquet"] = buffer.getvalue()
    arguments = ["--out_dir", str(tmp_path), "--tasks", "cola", "--source", "hub"]
    assert download.main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path}/cola: fetched and checked\n"
    assert glue_prepro.main(["--root_dir", str(tmp_path), "--tasks", "cola"]) == 0
    assert (tmp_path / "canonical_data/cola_dev.tsv").read_text() == "".join(f"{i}\t0\ta\n" for i in range(3))
    asked = len(server.requests)
    assert download.main(arguments) == 0
    assert len(server.requests) == asked, "complete, kept"
    (tmp_path / "cola/test-00000-of-00001.parquet").unlink()
    server.files["/glue/cola/test-00000-of-00001.parquet"] = server.files["/glue/cola/train-00000-of-00001.parquet"]
    assert download.main(arguments) == 2
    told = "cola: rows {'dev': 3, 'test': 5, 'train': 5}, the official files have {'train': 5, 'dev': 3, 'test': 2}"
    assert told in capsys.readouterr().err.replace("'test': 5, 'train': 5, 'dev': 3", "'dev': 3, 'test': 5, 'train': 5")
