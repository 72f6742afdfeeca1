import base64
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from data_utils.errors import SettingError
from experiments.study.report.__main__ import main
from experiments.study.report.charts import progress_bar
from experiments.study.report.page import duration, read_study, render, sort_key
from experiments.study.report.run_view import State, read_log, view_runs
from experiments.study.report.settings_view import compare_settings
from experiments.study.report.watch import watch
from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.which_runs import Runs
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from tests.experiments.fake_runs import stop_early, write_run
from tests.experiments.report_runs import EVIL, call_method, edit_config, fail, write_study

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods on two tasks, three seeds, one of them diverged, one degenerate, one failed, one unfinished."""
    folder = tmp_path / "runs"
    for task, base in (("cola", 60.0), ("rte", 70.0)):
        for seed in (1, 2, 3):
            write_run(folder, task, "vanilla", seed, base + seed, base)
            write_run(folder, task, "pats", seed, base + 2 * seed, base + 1, finished=(task, seed) != ("rte", 3))
    write_run(folder, "rte", "vanilla", 3, None, None, Status.DIVERGED)
    write_run(folder, "cola", "pats", 2, 0.0, 0.0, Status.DEGENERATE)
    fail(write_run(folder, "cola", "vanilla", 3), "RuntimeError: CUDA out of memory")
    return folder


class Page(HTMLParser):
    """What a browser without scripts would see: tables as lists of rows, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.inlined: dict[str, list[str]] = {"style": [], "script": []}
        self._table: list[list[str]] | None = None
        self._in_cell = False
        self._inline: str | None = None
        self._open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in ("meta", "link", "input", "br", "img"):
            self._open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(str(values["id"]), [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")
            self._in_cell = True
        elif tag in self.inlined:
            self._inline = tag
            self.inlined[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)
        if tag == "table":
            self._table = None
        elif tag in ("td", "th"):
            self._in_cell = False
        elif tag in self.inlined:
            self._inline = None

    def handle_data(self, data: str) -> None:
        if self._inline is not None:
            self.inlined[self._inline][-1] += data
        elif self._in_cell and self._table is not None:
            self._table[-1][-1] = " ".join((self._table[-1][-1] + data).split())

    def table(self, start: str) -> list[list[str]]:
        """The only table whose id begins so."""
        (found,) = [rows for name, rows in self.tables.items() if name.startswith(start)]
        return found


def page_of(runs: Path, study: Path | None = None, **more: Any) -> tuple[str, Page]:
    text = render(read_study(Runs(runs, study), time.time()), **more)
    return text, Page(text)


def test_the_numbers_are_those_of_the_markdown_table(runs: Path) -> None:
    text, page = page_of(runs)
    assert not page.unbalanced
    lines = markdown(gather(runs), load_paper()).replace("**", "").splitlines()
    expected = [
        [re.sub(r" \[(\d+)\]$", r" \1", cell.strip()) for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and not line.startswith("|--")
    ]
    found = [row for name in sorted(page.tables) if name.startswith("result-") for row in page.tables[name]]
    # A footnote's number stands against its cell there, after a space here.
    assert [[cell.replace(" ", "") for cell in row] for row in found] == [
        [cell.replace(" ", "") for cell in row] for row in expected
    ]
    assert len(found) > 10
    for note in (line for line in lines if line.startswith("[")):
        assert note.strip().split("] ")[1] in text


def test_every_run_stands_with_its_state_and_reason(runs: Path) -> None:
    _, page = page_of(runs, write_study(runs, seeds=4))
    head, *rows = page.table("all-runs")
    by_run = {(row[0], row[1], int(row[3])): dict(zip(head, row, strict=True)) for row in rows}
    assert len(rows) == len(by_run) == 16
    states = Counter(row["state"] for row in by_run.values())
    assert states == {"ok": 8, "degenerate": 1, "diverged": 1, "failed": 1, "running": 1, "missing": 4}
    assert by_run["vanilla", "CoLA", 3]["what happened"] == "RuntimeError: CUDA out of memory"
    assert by_run["PATS", "CoLA", 1]["best"] == "62.00"
    assert by_run["PATS", "CoLA", 1]["last"] == "61.00"
    running = by_run["PATS", "RTE", 3]
    assert running["step"] == "3/10", "three epochs of one step each are in its log, of ten"
    assert running["what happened"].startswith("epoch 3; last sign of life ")
    assert by_run["PATS", "RTE", 4]["state"] == "missing"
    assert by_run["PATS", "RTE", 4]["step"] == ""


def test_a_run_that_stopped_early_says_where(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", seed=1, patience=2)
    stop_early(write_run(tmp_path / "runs", seed=2, patience=2), epochs=8)
    _, page = page_of(tmp_path / "runs")
    _, *rows = page.table("all-runs")
    assert [row[-1] for row in rows] == ["", "stopped early, after epoch 3 of 8"]


def test_a_run_that_writes_nothing_for_two_checkpoints_is_silent(runs: Path) -> None:
    (folder,) = [path.parent for path in runs.glob("rte/*/pats/*/seed=3/run.json")]
    edit_config(folder, checkpoint_seconds=1000.0)

    def state(age: float) -> tuple[State, float | None]:
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (NOW - age, NOW - age))
        (view,) = [view for view in view_runs(gather(runs), runs, NOW) if view.folder == folder]
        return view.state, view.silence

    assert state(1999) == (State.RUNNING, 1999)
    assert state(2001) == (State.SILENT, 2001)
    (folder / "log.txt").write_text("step 3")
    assert view_runs(gather(runs), runs, time.time())[-1].state is State.RUNNING, "any file is a sign of life"
    edit_config(folder, checkpoint_seconds=math.inf)
    assert state(601)[0] is State.SILENT


def test_total_steps_come_from_the_runs_own_epochs_or_from_an_equal_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, method="vanilla", seed=1)
    young = write_run(runs, method="pats", seed=1, best=None, last=None, finished=False)
    other = write_run(runs, method="sage", seed=1, best=None, last=None, finished=False, batch_size=8)
    for folder in (young, other):
        (folder / "metrics.jsonl").write_text('{"step": 5, "epoch": 1, "loss": 0.5}\n')
    views = {view.cell.method: view for view in view_runs(gather(runs), runs, time.time())}
    assert (views["vanilla"].total_steps, views["pats"].total_steps, views["sage"].total_steps) == (10, 10, None)
    assert views["pats"].log.step == 5


def test_a_log_is_read_past_torn_and_foreign_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 50, "epoch": 1, "loss": 0.7}\n'
        b'{"step": 100, "epoch": 1, "score": NaN, "evaluation": {}}\n'
        b"[1, 2]\n\xff\n"
        b'{"step": 150, "epoch": 2, "loss": NaN}\n'
        b'{"step": 200, "ep'
    )
    log = read_log(path)
    assert list(log.curve) == [1]
    assert math.isnan(log.curve[1])
    assert [step for step, _ in log.losses] == [50, 150]
    assert math.isnan(log.losses[1][1])
    assert (log.step, log.epoch, log.steps_per_epoch) == (150, 2, 100)
    assert read_log(tmp_path / "none").step == 0


def test_files_are_read_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()

    def count(real: Any) -> Any:
        def reading(path: Path, *args: Any, **more: Any) -> Any:
            read[path] += path.name in ("result.json", "metrics.jsonl", "run.json")
            return real(path, *args, **more)

        return reading

    for name in ("read_text", "read_bytes"):
        monkeypatch.setattr(Path, name, count(getattr(Path, name)))
    page_of(runs)
    names = ("metrics.jsonl", "run.json", "result.json")
    assert {path: n for path, n in read.items() if n} == {path: 1 for name in names for path in runs.rglob(name)}


def test_settings_that_differ_are_found_and_marked(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        for task, batch in (("cola", 32), ("rte", 16)):
            for method in ("vanilla", "noisytune", "sage"):
                rate = 2e-4 if method == "sage" else 1e-4
                folder = write_run(runs, task, method, seed, batch_size=batch, learning_rate=rate)
    edit_config(folder, threads=8)  # one seed of SAGE on RTE
    found = compare_settings(view_runs(gather(runs), runs, time.time()))
    assert found.differing == ("config.batch_size", "config.learning_rate", "config.threads")
    cells = {(one.cell.method, one.cell.task): one for one in found.cells}
    sage = cells["sage", "rte"].values
    assert (sage["config.learning_rate"].text, sage["config.learning_rate"].odd) == ("0.0002", True)
    assert (sage["config.threads"].text, sage["config.threads"].odd) == ("null | 8", True)
    assert not sage["config.batch_size"].odd, "as of the other methods on this task"
    assert not cells["vanilla", "rte"].values["config.learning_rate"].odd
    assert cells["noisytune", "cola"].of_method["noise_scale"].text == "0.15"
    _, page = page_of(runs)
    head, *rows = page.table("differing")
    assert head == ["method", "task", "batch_size", "learning_rate", "threads", "the method's own"]
    assert ["SAGE", "RTE", "16", "0.0002", "null | 8"] in [row[:5] for row in rows]


def test_another_training_loss_than_the_tasks_own_is_named(tmp_path: Path) -> None:
    for method, changes in (("vanilla", {"label_smoothing": 0.1, "class_weights": "balanced"}), ("pats", {})):
        directory = RunDirectory(write_run(tmp_path / "runs", method=method, **changes))
        directory.append_metrics({"step": 4, "epoch": 4, "loss": 0.5})
    text, _ = page_of(tmp_path / "runs")
    assert "Training loss (label_smoothing 0.1, class_weights balanced) of every seed" in text
    assert "Training loss of every seed" in text


def test_equal_settings_are_said_to_be_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", method="vanilla")
    write_run(tmp_path / "runs", method="noisytune")
    text, page = page_of(tmp_path / "runs")
    assert "differing" not in page.tables
    assert "all runs have the same settings" in text


def test_text_from_runs_is_text(runs: Path) -> None:
    name = EVIL.replace("/", "")
    call_method(write_run(runs, "cola", "hype", 2), name)
    edit_config(write_run(runs, "cola", "vanilla", 1), **{EVIL: EVIL, "recipe": EVIL})
    error = f"RuntimeError: {EVIL} </script></style><!-- ]]>"
    fail(write_run(runs, "rte", "vanilla", 1), error)
    text, page = page_of(runs)
    assert not page.unbalanced
    tags = Counter(tag for tag, _ in page.tags)
    assert (tags["script"], tags["style"], tags["img"]) == (2, 1, 0)
    assert not [values for _, values in page.tags if any(key.startswith("on") for key in values)]
    assert "<script>window" not in text
    # It is all there, as text.
    assert any(values.get("data-method") == name for _, values in page.tags)
    rows = page.table("all-runs")
    assert error in [row[-1] for row in rows]
    assert name in [row[0] for row in rows]
    assert EVIL in page.table("differing")[0]


def test_the_page_is_alone_and_its_policy_lets_nothing_else_in(runs: Path) -> None:
    text, page = page_of(runs)
    meta = {
        str(v.get("http-equiv") or v.get("name")): str(v["content"])
        for t, v in page.tags
        if t == "meta" and "content" in v
    }
    policy = meta["Content-Security-Policy"]
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
        for kind in ("style", "script")
        for inner in page.inlined[kind]
    }
    assert len(hashes) == 3
    assert set(re.findall(r"'sha256-[^']+'", policy)) == hashes
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert meta["viewport"] == "width=device-width, initial-scale=1"
    for _, values in page.tags:
        assert "style" not in values, "the policy would drop it"
        for key in ("src", "href", "action", "xlink:href"):
            assert values.get(key) is None or str(values[key]).startswith(("#", "data:,"))
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)
    anchors = {str(values["id"]) for _, values in page.tags if "id" in values}
    assert {str(v["href"])[1:] for t, v in page.tags if t == "a"} <= anchors
    assert len(anchors) == sum("id" in values for _, values in page.tags), "ids are unique"


def test_pictures_show_every_score(runs: Path) -> None:
    text, _ = page_of(runs)
    panels = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
    cola = next(svg for svg in panels if svg.get("aria-label") == "mcc (%), dev of every seed, CoLA, bert-base-uncased")
    dots = Counter(
        (lane.get("data-method"), dot.get("class")) for lane in cola.iter("g") for dot in lane.iter("circle")
    )
    # Failed runs do not count, degenerate ones do.
    assert dots == {
        ("vanilla", "dot best"): 2,
        ("vanilla", "dot last"): 2,
        ("pats", "dot best"): 3,
        ("pats", "dot last"): 3,
    }
    titles = [title.text for title in cola.iter("title")]
    assert "PATS, seed 1, best dev epoch: 62.00" in titles
    rte = next(svg for svg in panels if svg.get("aria-label") == "acc (%), dev of every seed, RTE, bert-base-uncased")
    assert [text.text for text in rte.iter("text") if text.get("class") == "remark"] == ["1 of 3 NaN"]
    means = [sum(path.get("class") == "mean" for path in lane.iter("path")) for lane in rte.findall("g")[1:]]
    assert means == [0, 2], "the mean of a cell with a NaN is NaN, and so not drawn"
    curves = next(svg for svg in panels if str(svg.get("aria-label")).startswith("mcc (%), dev after each epoch"))
    seeds = Counter(
        g.get("data-method") for g in curves.iter("g") for path in g.iter("path") if path.get("class") == "seed"
    )
    assert (seeds["vanilla"], seeds["pats"]) == (3, 3)


def test_tests_are_shown_or_the_reason_why_not(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report.html"
    assert main([str(runs), "--out", str(out)]) == 0
    assert f"{out}: 12 runs (8 ok, 1 degenerate, 1 diverged, 1 failed, 1 running)" in capsys.readouterr().err
    head, first, *_ = Page(out.read_text()).table("tests-0")
    assert head[:4] == ["comparison", "task", "n", "difference"]
    assert first[:4] == ["PATS - vanilla", "CoLA mcc", "2", "-30.50"], "mean of 62 - 61 and 0 - 62"
    assert main([str(runs), "--out", str(out), "--tests", "none"]) == 0
    assert "Left out" in out.read_text()
    assert not [name for name in Page(out.read_text()).tables if name.startswith("tests")]
    for folder in runs.glob("*/*/vanilla"):
        shutil.rmtree(folder)
    assert main([str(runs), "--out", str(out)]) == 0
    assert "No two methods here are to be compared" in out.read_text()


def test_an_empty_study_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    text, page = page_of(tmp_path / "runs")
    assert "No runs yet." in text
    assert not page.unbalanced


def test_the_bar_fills_with_what_is_done(runs: Path) -> None:
    def bar(folder: Path, study: Path | None = None) -> dict[str | None, float]:
        views = read_study(Runs(folder, study), time.time()).views
        rects = [values for tag, values in Page(str(progress_bar(views))).tags if tag == "rect"]
        return {values["class"]: float(str(values["width"])) for values in rects}

    # Of 16 wanted runs 11 have ended, one stands at 3 of its 10 steps, and 4 were not started.
    widths = bar(runs, write_study(runs, seeds=4))
    assert widths["state-ok"] == pytest.approx(1000 * 8 / 16)
    assert widths["state-running"] == pytest.approx(1000 * 0.3 / 16, abs=0.01)
    assert widths["state-missing"] == 0.0
    assert sum(widths.values()) == pytest.approx(1000 * 11.3 / 16, abs=0.01)
    for task in ("cola", "rte"):
        for method in ("vanilla", "pats"):
            (write_run(runs.parent / "new", task, method, finished=False) / "metrics.jsonl").unlink()
    assert bar(runs.parent / "new") == {"state-running": 0.0}, "0 of 4"


def test_odd_values_in_run_json_and_half_characters_in_messages_are_shown(runs: Path, tmp_path: Path) -> None:
    edit_config(next(runs.glob("rte/*/pats/*/seed=3")), batch_size=[1], checkpoint_seconds=10**400, train_size={"a": 1})
    fail(next(runs.glob("cola/*/vanilla/*/seed=3")), "half a \ud800")
    assert main([str(runs), "--out", str(tmp_path / "r.html"), "--tests", "none"]) == 0
    assert "half a ?" in (tmp_path / "r.html").read_text()


def test_the_page_names_the_studys_command(runs: Path) -> None:
    study = write_study(runs)
    assert "Command:" not in page_of(runs, study)[0]
    content = json.loads(study.read_text())
    study.write_text(json.dumps(content | {"command": "python -m x --set 'a<b'"}))
    assert "Command: <code>python -m x --set &#39;a&lt;b&#39;</code>" in page_of(runs, study)[0]


def test_mistakes_are_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.html"
    assert main([str(tmp_path / "none"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: no folder {tmp_path / 'none'}: give the output_dir of the runs\n"
    assert main([str(runs), "--out", str(out), "--watch", "0.5"]) == 2
    assert capsys.readouterr().err == "error: --watch 0.5: give seconds in [1, 86400]; the default is 30\n"
    assert main([str(runs), "--out", str(out), "--watch", "nan"]) == 2
    write_run(runs, epochs=3)
    assert main([str(runs), "--out", str(out)]) == 2
    assert "was run with 2 settings" in capsys.readouterr().err
    assert not out.exists()


def test_the_watcher_ends_with_the_study(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    command = [sys.executable, "-m", "experiments.study.report", str(runs), "--study", str(write_study(runs)),
               "--out", str(out), "--watch", "1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(out.is_file)
        text = out.read_text()
        assert 'data-watch="1.0"' in text
        assert '<noscript><meta http-equiv="refresh" content="1"></noscript>' in text
        assert "The tests come with the last page" in text
        write_run(runs, "rte", "pats", 3, 76.0, 71.0)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "(9 ok" in errors.splitlines()[-1]
    last = out.read_text()
    assert "data-watch=" not in last
    assert 'http-equiv="refresh"' not in last
    assert "tests-0" in Page(last).tables


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_whole_page_without_a_timer(runs: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "r.html"
    command = [sys.executable, "-m", "experiments.study.report", str(runs), "--out", str(out), "--watch"]
    # As a shell starts a script's background job: with SIGINT ignored.
    ignored = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    process = subprocess.Popen(ignored, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(out.is_file)
        assert 'data-watch="30.0"' in out.read_text()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    text = out.read_text()
    assert "data-watch" not in text.partition("<style>")[0]
    assert not Page(text).unbalanced
    assert text.rstrip().endswith("</html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "runs"], "no temporary file is left"


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_watcher_outlives_a_moment_in_which_files_come_and_go() -> None:
    said: list[str] = []
    rounds: list[Any] = [
        False,
        SettingError("damaged"),
        OSError("stale"),
        OSError("stale"),
        False,
        OSError("stale"),
        True,
    ]

    def write(stopped: bool) -> bool:
        step = rounds.pop(0)
        if isinstance(step, Exception):
            raise step
        return bool(step)

    assert watch(write, 0.0, said.append) == 0
    assert said == ["damaged; trying again", "stale; trying again", "stale; trying again"]
    rounds = [SettingError("no folder")]
    with pytest.raises(SettingError, match="no folder"):
        watch(write, 0.0, said.append)


def test_texts() -> None:
    assert [duration(s) for s in (3, 99, 100, 5999, 6000, 7500, 200_000)] == [
        "3 s", "99 s", "1 min", "99 min", "1 h 40 min", "2 h 05 min", "2 d 7 h",
    ]  # fmt: skip
    assert [sort_key(v) for v in (None, math.nan, 0.0, 1.5, 3)] == ["", "", "0.0", "1.5", "3"]
