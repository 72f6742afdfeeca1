"""The page itself: a study as read from disk, written as one HTML file."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from experiments.study.comparison.text import LEGEND, sections
from experiments.study.report import charts
from experiments.study.report.run_view import MEANINGS, RunView, State, view_runs
from experiments.study.report.settings_view import compare_settings, config_text
from experiments.study.table.cells import SELECTIONS, Table, chosen_held_out
from experiments.study.table.layout import layout
from experiments.study.table.markdown import interval_text
from experiments.study.table.paper import load_paper
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title
from experiments.study.table.which_runs import Runs
from experiments.study.texts import number_text

if TYPE_CHECKING:
    from experiments.study.significance import Significance

_FOLDER = Path(__file__).resolve().parent
_NEEDS_ATTENTION = (State.FAILED, State.DIVERGED, State.SILENT)


@dataclass(frozen=True, slots=True)
class Study:
    """A study as it is on disk, for a page."""

    title: str
    runs: Path
    table: Table
    views: tuple[RunView, ...]
    read_at: float
    """Seconds since the epoch."""

    @property
    def counts(self) -> dict[State, int]:
        """Runs in each state that occurs."""
        counts = {state: sum(view.state is state for view in self.views) for state in State}
        return {state: n for state, n in counts.items() if n}

    @property
    def over(self) -> bool:
        """Whether every wanted run has ended, if only with an error."""
        return all(view.result is not None for view in self.views)


def read_study(runs: Runs, now: float) -> Study:
    """Read every run's files, each once.

    Args:
        runs: The runs to show.
        now: Seconds since the epoch.

    Raises:
        SettingError: see :meth:`experiments.study.table.which_runs.Runs.gather`.
        OSError: a file cannot be read.
    """
    table = runs.gather()
    title = runs.study.resolve().parent.name if runs.study else "/".join(runs.folder.resolve().parts[-2:])
    return Study(title, runs.folder, table, tuple(view_runs(table, runs.folder, now)), now)


def render(
    study: Study,
    significance: Significance | None = None,
    watch_seconds: float | None = None,
    without_tests: str = "",
) -> str:
    """The page as HTML; it needs no other file and no network.

    Args:
        study: The study to show.
        significance: Tests to show.
        watch_seconds: The page is written anew so often, and reloads itself; None for a page that stays as it is.
        without_tests: Why there are no tests; shown in their place.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number_text, "interval": interval_text, "method": method_title, "task": task_title,
        "metric": metric_title, "duration": duration, "sort_key": sort_key, "config": config_text,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    settings = compare_settings(study.views)
    return environment.get_template("page.html").render(
        study=study,
        table=study.table,
        encoders=layout(study.table, load_paper(study.table.benchmark)),
        charts=charts,
        settings=settings,
        setting_of={(c.cell.encoder, c.cell.method, c.cell.task): i for i, c in enumerate(settings.cells)},
        panels={(view.cell.encoder, view.cell.task) for view in study.views if view.result or view.log.curve},
        metrics=_metrics,
        attention=[view for view in study.views if view.state in _NEEDS_ATTENTION],
        meanings=MEANINGS,
        selections={s: selection_title(s, chosen_held_out(study.table.cells.values())) for s in SELECTIONS},
        sections=sections(significance.seeds, significance.examples, significance.alone) if significance else [],
        legend=[paragraph.replace("\n", " ") for paragraph in LEGEND.strip().split("\n\n")],
        without_tests=without_tests,
        watch_seconds=watch_seconds,
        written=datetime.fromtimestamp(study.read_at).astimezone(),
        **_inlined(),
    )


@functools.cache
def _inlined() -> dict[str, Markup]:
    """Style and scripts as they stand in the page, and the policy that allows these and nothing else."""
    texts = {
        name.replace(".", "_"): (_FOLDER / name).read_text(encoding="utf-8")
        for name in ("page.css", "theme.js", "page.js")
    }
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in texts.items()}
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes['page_css']}'; "
        f"script-src 'sha256-{hashes['theme_js']}' 'sha256-{hashes['page_js']}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return {name: Markup(text) for name, text in texts.items()} | {"policy": Markup(policy)}


def _metrics(views: Collection[RunView]) -> list[tuple[str, str]]:
    """(dev set, metric) that the runs were scored by, primary ones first."""
    found = {
        (dataset, metric): metric != view.result.primary_metric
        for view in views
        if view.result is not None
        for epoch in (view.result.best, view.result.last)
        if epoch is not None
        for dataset, values in epoch.metrics.items()
        for metric in values
    }
    return sorted(found, key=lambda key: found[key])


def sort_key(value: Any) -> str:
    """A number for sorting in the page; nothing where there is none."""
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``2 h 05 min``, ``3 d 4 h``."""
    minutes = int(seconds // 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
