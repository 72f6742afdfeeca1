"""The report in a real browser; skipped where there is none."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.study.report.page import Study, read_study, render
from mt_dnn.results import Status
from tests.experiments.browser import Browser, find_browser, headless
from tests.experiments.fake_runs import write_run
from tests.experiments.report_runs import EVIL, call_method, edit_config, fail, write_study

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium on PATH: install one, or name it in the environment variable CHROMIUM"
)
ENCODERS = ("bert-base-uncased", "roberta-large")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with headless(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two encoders, three tasks, four methods, one with a nasty name, every state."""
    runs = tmp_path_factory.mktemp("study") / "runs"
    for encoder in ENCODERS:
        for task, base in (("cola", 60.0), ("rte", 70.0), ("mnli", 80.0)):
            for i, method in enumerate(("vanilla", "sage", "pats")):
                for seed in (1, 2, 3):
                    score = base + i + 0.4 * (seed * 7 % 5)
                    write_run(runs, task, method, seed, score, score - 0.3, init_checkpoint=encoder)
    write_run(runs, "rte", "pats", 3, None, None, Status.DIVERGED)
    write_run(runs, "rte", "sage", 2, 0.0, 0.0, Status.DEGENERATE)
    fail(write_run(runs, "cola", "sage", 1), f"RuntimeError: {EVIL}{'CUDA out of memory' * 30}")
    edit_config(call_method(write_run(runs, "cola", "hype", 1), EVIL.replace("/", "")), **{EVIL: EVIL * 9})
    write_run(runs, "mnli", "noisytune", 1, finished=False)
    return read_study(runs, write_study(runs, seeds=3), (), 1e9)


@pytest.fixture
def page(study: Study, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render(study), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.show(1280)
    browser.open(page)
    return browser


def column(browser: Browser, table: str, index: int) -> list[str]:
    """Texts of a column, top down, of the rows that are shown."""
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => row.offsetParent)"
        f".map(row => row.cells[{index}].textContent.trim())"
    )
    return found


def choose(browser: Browser, field: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const field = document.getElementById('filters').elements['{field}'];"
        f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


@pytest.mark.parametrize("width", [320, 375, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window_runs_no_foreign_script_and_fetches_nothing(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.show(width, dark=dark)
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("document.querySelectorAll('.scroll').length") > 10
    assert browser.evaluate("window.evil") is None
    assert browser.complaints() == []
    # Text stands out from its ground by more than 4.5 to 1 in both themes.
    colours = browser.evaluate(
        "['body', '.note', 'a', '.state-ok', '.state-failed', '.state-degenerate', '.state-running', '.state-missing',"
        " 'mark'].map(s => [getComputedStyle(document.querySelector(s)).color,"
        " getComputedStyle(document.querySelector(s === 'mark' ? s : 'body')).backgroundColor])"
    )
    assert [(ink, ground) for ink, ground in colours if contrast(ink, ground) < 4.5] == []


def contrast(ink: str, ground: str) -> float:
    """Of two rgb() colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_policy_stops_what_was_not_written_by_us(browser: Browser, page: Path) -> None:
    text = page.read_text().replace(
        "<main>", "<main><script>window.evil = 1</script><img src='https://example.org/x.png'>"
    )
    page.write_text(text)
    browser.open(page)
    assert browser.evaluate("window.evil") is None
    assert len([c for c in browser.complaints() if "Content Security Policy" in c]) == 2, (
        "so complaints() does see them"
    )


def test_tables_sort_by_click_and_by_keyboard(opened: Browser) -> None:
    before = column(opened, "all-runs", 5)
    assert "" in before
    click = "document.querySelectorAll('#all-runs thead th')[5].querySelector('button').click()"
    sorts = "document.querySelectorAll('#all-runs thead th')[5].getAttribute('aria-sort')"
    opened.evaluate(click)
    numbers = sorted((float(text) for text in before if text), reverse=True)
    assert [float(text) for text in column(opened, "all-runs", 5) if text] == numbers
    assert column(opened, "all-runs", 5)[-1] == "", "runs without a score stay last"
    assert opened.evaluate(sorts) == "descending"
    opened.evaluate("document.querySelectorAll('#all-runs thead th')[5].querySelector('button').focus()")
    opened.press("Enter", "\r")
    assert [float(text) for text in column(opened, "all-runs", 5) if text] == numbers[::-1]
    assert column(opened, "all-runs", 5)[-1] == ""
    assert opened.evaluate(sorts) == "ascending"
    opened.press(" ", " ")
    assert column(opened, "all-runs", 5) == before
    assert opened.evaluate(sorts) is None
    opened.evaluate("document.querySelector('#all-runs thead th button').click()")
    names = column(opened, "all-runs", 0)
    assert names == sorted(names, key=str.lower)
    assert opened.complaints() == []


def test_filters_by_encoder_task_method_status_and_text(opened: Browser) -> None:
    every = len(column(opened, "all-runs", 0))
    choose(opened, "method", "pats")
    assert set(column(opened, "all-runs", 0)) == {"PATS"}
    assert set(column(opened, "result-0-0", 0)) == {"PATS", "PATS, paper"}
    assert opened.evaluate("document.querySelectorAll('svg .lit').length") > 0
    choose(opened, "status", "diverged")
    assert column(opened, "all-runs", 3) == ["diverged"]
    assert opened.evaluate("document.getElementById('shown').textContent") == f"1 of {every} runs"
    opened.evaluate("document.querySelector('#filters [type=reset]').click()")
    opened.evaluate("new Promise(done => setTimeout(done, 20))")
    assert len(column(opened, "all-runs", 0)) == every
    choose(opened, "task", "rte")
    assert set(column(opened, "all-runs", 2)) == {"RTE"}
    shown = (
        "[...document.querySelectorAll('#result-0-0 thead th')].filter(th => th.offsetParent).map(th => th.textContent)"
    )
    assert opened.evaluate(shown) == ["method", "RTE acc", "average"]
    assert opened.evaluate("[...document.querySelectorAll('figure')].filter(f => f.offsetParent).length") == 4
    choose(opened, "encoder", ENCODERS[1])
    assert set(column(opened, "all-runs", 1)) == {ENCODERS[1]}
    opened.evaluate("document.querySelector('#filters [type=reset]').click()")
    choose(opened, "text", "cuda MEMORY")
    assert column(opened, "all-runs", 3) == ["failed"]
    choose(opened, "text", "")
    opened.evaluate("document.querySelector('[data-pick=status][data-value=missing] button').click()")
    assert set(column(opened, "all-runs", 3)) == {"missing"}
    opened.evaluate("document.querySelector('[data-pick=status][data-value=missing] button').click()")
    assert len(column(opened, "all-runs", 0)) == every
    assert opened.complaints() == []


def test_a_reload_keeps_what_the_reader_has_set(opened: Browser) -> None:
    opened.evaluate("document.querySelectorAll('#all-runs thead th')[6].querySelector('button').click()")
    opened.evaluate("document.getElementById('cell-2').open = true")
    choose(opened, "task", "cola")
    opened.evaluate("scrollTo(0, 700)")
    order = column(opened, "all-runs", 6)
    opened.reload()
    assert column(opened, "all-runs", 6) == order
    assert set(column(opened, "all-runs", 2)) == {"CoLA"}
    assert opened.evaluate("[...document.querySelectorAll('details.cell')].filter(f => f.open).map(f => f.id)") == [
        "cell-2"
    ]
    assert opened.evaluate("scrollY") == 700


def test_a_runs_link_opens_its_settings(opened: Browser) -> None:
    opened.evaluate("document.querySelector('#all-runs tbody a').click()")
    assert opened.evaluate("document.getElementById('cell-0').open")
    assert opened.evaluate("document.getElementById('setting-0').offsetHeight") > 100


def test_the_theme_is_the_systems_until_it_is_chosen(browser: Browser, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.show(800, dark=False)
    browser.open(page)
    light = browser.evaluate(ground)
    browser.show(800, dark=True)
    dark = browser.evaluate(ground)
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(22, 24, 28)"
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) == light
    browser.reload()
    assert browser.evaluate(ground) == light, "chosen once, kept"
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) == dark
    assert browser.evaluate("document.documentElement.dataset.theme") is None, "the system's again"


def test_without_scripts_the_content_is_there(browser: Browser, page: Path, study: Study) -> None:
    browser.show(375)
    browser.scripts(on=False)
    try:
        browser.open(page)
        text = browser.evaluate("document.body.innerText")
        assert len(column(browser, "all-runs", 0)) == len(study.views)
        assert "PATS" in text
        assert browser.evaluate("document.getElementById('filters').offsetParent") is None
        assert browser.evaluate("document.getElementById('theme').offsetParent") is None
        assert browser.evaluate("document.documentElement.scrollWidth") == 375
    finally:
        browser.scripts(on=True)


def test_on_paper_tables_are_whole_and_controls_are_gone(opened: Browser) -> None:
    opened.show(1000, dark=True, media="print")
    assert opened.evaluate("document.getElementById('filters').offsetParent") is None
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert opened.evaluate("document.getElementById('all-runs').offsetHeight") > 100


def test_a_watched_page_follows_the_file_and_stops_with_the_watcher(browser: Browser, study: Study, page: Path) -> None:
    pages = {at: render(dataclasses.replace(study, read_at=at), watch_seconds=0.3) for at in (1e9, 1e9 + 7)}
    last = render(study)

    def write(text: str) -> None:
        new = page.with_name("new.html")
        new.write_text(text, encoding="utf-8")
        new.replace(page)

    write(pages[1e9])
    browser.show(1280)
    browser.open(page)
    choose(browser, "task", "rte")
    browser.evaluate("scrollTo(0, 500)")
    browser.events.clear()
    write(pages[1e9 + 7])
    browser.wait_for("Page.loadEventFired")
    if browser.evaluate("document.documentElement.dataset.written") == str(1e9):
        browser.events.clear()
        browser.wait_for("Page.loadEventFired")  # it had begun to load before the new file was there
    assert browser.evaluate("document.documentElement.dataset.written") == str(1e9 + 7)
    assert set(column(browser, "all-runs", 2)) == {"RTE"}
    assert browser.evaluate("scrollY") == 500
    # The file stays as it is: after a few tries the page says so and rests.
    wait = "new Promise(done => setTimeout(done, 600))"
    for _ in range(40):
        if "has stopped" in browser.evaluate("document.getElementById('live-text').textContent"):
            break
        browser.wait_for("Page.loadEventFired")
        browser.events.clear()
    assert "The watcher has stopped" in browser.evaluate("document.getElementById('live-text').textContent")
    browser.evaluate(wait)
    assert browser.complaints() == []
    assert not [event for event in browser.events if event["method"] == "Page.loadEventFired"], "it no longer reloads"
    # The last page has no timer.
    write(last)
    browser.evaluate("document.getElementById('pause').click()")
    browser.wait_for("Page.loadEventFired")
    assert browser.evaluate("document.getElementById('live')") is None
    browser.events.clear()
    browser.evaluate(wait)
    browser.complaints()
    assert browser.events == []


def test_watching_can_be_paused(browser: Browser, study: Study, page: Path) -> None:
    page.write_text(render(study, watch_seconds=1.0), encoding="utf-8")
    browser.open(page)
    browser.evaluate("document.getElementById('pause').click()")
    browser.events.clear()
    browser.evaluate("new Promise(done => setTimeout(done, 1500))")
    assert not [event for event in browser.events if event["method"] == "Page.loadEventFired"]
    assert browser.evaluate("document.getElementById('pause').textContent") == "go on"
