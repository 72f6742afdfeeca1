"""The report's pictures as inline SVG: seed strips, learning curves, training losses.

Colours and fonts are the page's: shapes carry classes, ``page.css`` gives them colours for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from experiments.study.report.run_view import RunView, State
from experiments.study.report.svg import Point, Scale, element, polyline, scale_of
from experiments.study.table.cells import SELECTIONS, Cell, Selection, Table, chosen_held_out
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title
from experiments.study.texts import number_text
from mt_dnn.loss_settings import changed_loss

WIDTH = 360.0  # a phone's width less its margins, so that text is not scaled there
_COLOURS = 7
_DASHES = 4
_LANE = 34.0  # of one method in a strip: its name above, its dots below
_DOT_ROWS: dict[Selection, float] = {"best": 19.0, "last": 27.0}
_BINS = 120  # points of a loss curve
_LONGEST_LABEL = 58


def method_class(table: Table, method: str) -> str:
    """CSS classes that give a method its colour and, past seven methods, its dashes."""
    place = table.methods.index(method)
    return f"m{place % _COLOURS} d{place // _COLOURS % _DASHES}"


def strip_panel(table: Table, encoder: str, task: str) -> Markup:
    """Every seed of every method of a task as a dot, mean and standard deviation behind them."""
    cells = [(m, c) for m in table.rows_of(encoder) if (c := table.cell(encoder, m, task)) is not None]
    scale = scale_of([value for _, cell in cells for value in _extent(cell)], 6.0, WIDTH - 6.0)
    bottom = 6.0 + _LANE * len(cells)
    lanes = [_lane(table, method, cell, scale, 6.0 + i * _LANE) for i, (method, cell) in enumerate(cells)]
    label = f"{_score_name(table, task)} of every seed, {task_title(task)}, {encoder}"
    return _panel(bottom + 34.0, label, _x_axis(scale, 4.0, bottom, _score_name(table, task)), *lanes)


def _extent(cell: Cell) -> list[float]:
    """Scores of a cell and the ends of its shades."""
    values = []
    for selection in SELECTIONS:
        mean, std = cell.mean(selection), cell.std(selection)
        values += list(cell.scores(selection).values())
        values += [mean - std, mean + std] if mean is not None and std is not None else []
    return values


def _lane(table: Table, method: str, cell: Cell, scale: Scale, top: float) -> Markup:
    name = method_title(method)
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    parts = [element("text", element("title", name), short, x=6.0, y=top + 10.0, class_="lane")]
    if remark := _without_score(cell):
        parts.append(element("text", remark, x=WIDTH - 6.0, y=top + 10.0, class_="remark", text_anchor="end"))
    for selection, height in _DOT_ROWS.items():
        parts += _dots(cell, selection, scale, top + height)
    return element("g", *parts, class_=method_class(table, method), data_method=method)


def _without_score(cell: Cell) -> str:
    """The number of runs without a dot, by selection rule if it differs."""
    if not cell.n("best"):
        return "no result that counts" if cell.results else "no result yet"
    nan = {
        selection: sum(not math.isfinite(score) for score in cell.scores(selection).values())
        for selection in SELECTIONS
    }
    if len(set(nan.values())) == 1:
        return f"{nan['best']} of {cell.n('best')} NaN" if nan["best"] else ""
    return ", ".join(f"{selection}: {n} of {cell.n(selection)} NaN" for selection, n in nan.items() if n)


def _dots(cell: Cell, selection: Selection, scale: Scale, y: float) -> list[Markup]:
    parts = []
    mean, std = cell.mean(selection), cell.std(selection)
    # As in the table, a mean that would leave runs out is not shown: it is NaN.
    if mean is not None and math.isfinite(mean):
        if std is not None:
            x = scale(mean - std)
            parts.append(element("rect", x=x, y=y - 3.0, width=scale(mean + std) - x, height=6.0, class_="spread"))
        parts.append(element("path", d=f"M{scale(mean):.2f} {y - 4:.2f}v8", class_="mean"))
    for seed, score in cell.scores(selection).items():
        if math.isfinite(score):
            rule = selection_title(selection, chosen_held_out([cell]))
            text = f"{method_title(cell.method)}, seed {seed}, {rule}: {number_text(score)}"
            title = element("title", text)
            parts.append(element("circle", title, cx=scale(score), cy=y, r=3.2, class_=f"dot {selection}"))
    return parts


def curve_panel(table: Table, encoder: str, task: str, views: Sequence[RunView]) -> Markup:
    """Dev score after each epoch: a thin line per seed, the mean of the finished ones bold."""
    shown = [v for v in views if v.cell.encoder == encoder and v.cell.task == task and v.log.curve]
    height = 230.0
    y = scale_of([s for v in shown for s in v.log.curve.values()], height - 36.0, 10.0)
    last = max((epoch for v in shown for epoch in v.log.curve), default=1)
    x = Scale(1.0, max(2.0, float(last)), 42.0, WIDTH - 18.0)
    lines = []
    for method in table.rows_of(encoder):
        of_method = [v for v in shown if v.cell.method == method]
        if of_method:
            lines.append(_curves(table, method, of_method, x, y))
    label = f"{_score_name(table, task)} after each epoch, {task_title(task)}, {encoder}"
    many = "many" if len(lines) > _COLOURS else None
    epochs = [tick for tick in x.ticks(8) if tick == int(tick)]
    frame = _frame(x, y, epochs, height, "epoch")
    return _panel(height, label, frame, element("g", *lines, class_=many))


def _curves(table: Table, method: str, views: Sequence[RunView], x: Scale, y: Scale) -> Markup:
    parts = [element("title", method_title(method))]
    for view in views:
        text = f"{method_title(method)}, seed {view.seed}"
        line = polyline(((x(e), y(s)) for e, s in sorted(view.log.curve.items())), class_="seed")
        parts.append(element("g", element("title", text), line))
    mean = _mean_curve([v.log.curve for v in views if v.result is not None])
    points = [(x(epoch), y(score)) for epoch, score in mean.items()]
    parts.append(polyline(points, class_="line"))
    return element("g", *parts, class_=method_class(table, method), data_method=method)


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean at the epochs that all have."""
    epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return {epoch: math.fsum(curve[epoch] for curve in curves) / len(curves) for epoch in epochs}


def loss_panel(views: Sequence[RunView]) -> Markup:
    """Training loss of the seeds of one cell by step."""
    curves = {view.seed: thin(view.log.losses) for view in views if view.log.losses}
    height = 150.0
    y = scale_of([loss for points in curves.values() for _, loss in points], height - 36.0, 8.0)
    last = max((step for points in curves.values() for step, _ in points), default=1.0)
    x = Scale(0.0, max(1.0, last), 42.0, WIDTH - 18.0)
    lines = [
        element(
            "g",
            element("title", f"seed {seed}"),
            polyline(((x(s), y(loss)) for s, loss in points), class_="line"),
            class_=f"m{i % _COLOURS} d{i // _COLOURS % _DASHES}",
        )
        for i, (seed, points) in enumerate(curves.items())
    ]
    label = f"training loss{loss_kind(views)} of every seed by step"
    return _panel(height, label, _frame(x, y, x.ticks(5), height, "step"), element("g", *lines, class_="losses"))


def loss_kind(views: Sequence[RunView]) -> str:
    """The kind of training loss of the seeds of one cell, where it is not the task's own; else empty."""
    changed = changed_loss(views[0].cell.settings) if views else ""
    return f" ({changed})" if changed else ""


def thin(points: Sequence[tuple[int, float]]) -> list[Point]:
    """Means of neighbouring points, so that a long log is a short line; NaN where one of them is."""
    size = math.ceil(len(points) / _BINS) if points else 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(float(some[-1][0]), math.fsum(value for _, value in some) / len(some)) for some in bins]


def progress_bar(views: Sequence[RunView]) -> Markup:
    """A bar of the work done, by state: an ended run counts whole, another by the share of its steps."""
    x, parts = 0.0, []
    counts = {state: n for state in State if (n := sum(view.state is state for view in views))}
    for state, n in counts.items():
        width = 1000.0 * math.fsum(_made(view) for view in views if view.state is state) / len(views)
        parts.append(
            element("rect", element("title", f"{n} {state}"), x=x, y=0.0, width=width, height=10.0,
                    class_=f"state-{state}")
        )  # fmt: skip
        x += width
    label = ", ".join(f"{n} {state}" for state, n in counts.items())
    return element("svg", *parts, viewBox="0 0 1000 10", preserveAspectRatio="none", role="img", aria_label=label,
                   class_="progress")  # fmt: skip


def _made(view: RunView) -> float:
    """Share of a run that is done, in [0, 1]; 0 where it is not known how many steps it will make."""
    if view.result is not None:
        return 1.0
    return min(1.0, view.log.step / view.total_steps) if view.total_steps else 0.0


def swatch(table: Table, method: str) -> Markup:
    """A method's colour and dashes for a legend."""
    line = element("path", d="M1 5h26", class_="line")
    group = element("g", line, class_=method_class(table, method))
    return element("svg", group, viewBox="0 0 28 10", width=28.0, height=10.0, aria_hidden="true")


def _panel(height: float, label: str, *children: Markup) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label, class_="panel")


def _x_axis(scale: Scale, top: float, bottom: float, name: str) -> Markup:
    parts = []
    for tick in scale.ticks(6):
        parts.append(element("path", d=f"M{scale(tick):.2f} {top:.2f}V{bottom:.2f}", class_="grid"))
        parts.append(element("text", f"{tick:,g}", x=scale(tick), y=bottom + 13.0, class_="tick", text_anchor="middle"))
    parts.append(
        element("text", name, x=(scale.start + scale.end) / 2, y=bottom + 28.0, class_="axis", text_anchor="middle")
    )
    return element("g", *parts)


def _frame(x: Scale, y: Scale, x_ticks: Iterable[float], height: float, name: str) -> Markup:
    bottom = y.start
    parts = []
    for tick in y.ticks(6):
        parts.append(element("path", d=f"M{x.start:.2f} {y(tick):.2f}H{x.end:.2f}", class_="grid"))
        parts.append(element("text", f"{tick:,g}", x=x.start - 6.0, y=y(tick) + 3.5, class_="tick", text_anchor="end"))
    for tick in x_ticks:
        parts.append(element("text", f"{tick:,g}", x=x(tick), y=bottom + 15.0, class_="tick", text_anchor="middle"))
    parts.append(element("text", name, x=(x.start + x.end) / 2, y=height - 4.0, class_="axis", text_anchor="middle"))
    return element("g", *parts)


def _score_name(table: Table, task: str) -> str:
    return f"{metric_title(table.metric(task)) or 'score'} (%), dev"
