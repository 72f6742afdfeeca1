"""A table arranged by encoder, before a format is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.study.statistics.difference import Difference
from experiments.study.statistics.intervals import Interval
from experiments.study.table.cells import (
    SELECTIONS,
    Average,
    Cell,
    Selection,
    Table,
    chosen_held_out,
    known_control,
)
from experiments.study.table.notes import cell_note
from experiments.study.table.paper import Paper, PaperRow
from experiments.study.table.protocol import about_protocol, about_rates, about_recipes, about_settings
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title


@dataclass(frozen=True, slots=True)
class Entry:
    """The content of one place of the table."""

    mean: float | None
    """Percent; None is a missing cell."""
    std: float | None = None
    remark: str = ""
    """Such as ``n=3`` or ``5/8 tasks``, when it differs from the header."""
    note: int | None = None
    """Number of the footnote."""
    bold: bool = False
    printed: str = ""
    """Text that replaces the number, such as a dash."""
    signed: bool = False
    """A difference, shown with its sign."""
    interval: Interval | None = None
    """Stands where the deviation would."""


_DASH = Entry(None, printed="-")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the table."""

    label: str
    entries: tuple[Entry, ...]
    """Of the table's tasks, then, from two tasks on, of their average."""
    published: bool = False
    method: str = ""


@dataclass(frozen=True, slots=True)
class EncoderTable:
    """Everything shown for one encoder, before a format is chosen."""

    encoder: str
    heading: str
    columns: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[TableRow, ...]], ...]
    """Title and rows."""
    notes: tuple[str, ...]


def layout(table: Table, paper: Paper) -> list[EncoderTable]:
    """Arrange a table by encoder; independent of the output format."""
    return [_encoder_table(table, paper, encoder) for encoder in table.encoders]


def _encoder_table(table: Table, paper: Paper, encoder: str) -> EncoderTable:
    cells = [c for m in table.methods for t in table.tasks if (c := table.cell(encoder, m, t)) is not None]
    seeds = max((len(cell.expected) for cell in cells), default=0)
    notes = {(c.method, c.task): text for c in cells if (text := cell_note(c))}
    numbers = {key: i for i, key in enumerate(notes, start=1)}
    blocks: list[tuple[str, tuple[TableRow, ...]]] = []
    for selection in SELECTIONS:
        title = selection_title(selection, chosen_held_out(cells))
        rows: list[TableRow] = []
        for method in table.rows_of(encoder):
            entries = [
                _cell_entry(table.cell(encoder, method, task), selection, seeds, numbers.get((method, task)))
                for task in table.tasks
            ]
            if len(table.averaged) > 1:
                entries.append(_average_entry(table.average(encoder, method, selection), len(table.averaged), seeds))
            entries += _time_entries(table, method)
            rows.append(TableRow(_label(table, encoder, method), tuple(entries), method=method))
            published = paper.row(encoder, method, table.tasks)
            if published is not None and selection == "best":
                paper_row = _paper_row(published, table, method)
                none = (Entry(None, printed="-"),) if table.step_times else ()
                rows.append(replace(paper_row, entries=paper_row.entries + none))
        blocks.append((title, _with_bold(rows, table)))
        if gains := _gains(table, encoder, selection, seeds):
            blocks.append((f"{title}, minus the control", gains))
    blocks += _kept_blocks(table, encoder, seeds) + _shown_blocks(table, encoder, seeds)
    columns = [" ".join(filter(None, (task_title(t), metric_title(table.metric(t))))) for t in table.tasks]
    return EncoderTable(
        encoder=encoder,
        heading=_heading(cells, seeds, len(table.averaged), any(row.published for _, rows in blocks for row in rows))
        + about_settings(table, encoder)
        + _about_controls(table, encoder)
        + about_recipes(table, encoder)
        + about_rates(table, encoder)
        + about_protocol(table, encoder)
        + _about_parts(table)
        + (" Step time: over plain fine-tuning's, measured apart." if table.step_times else ""),
        columns=(
            "method",
            *columns,
            *(["average"] if len(table.averaged) > 1 else []),
            *(["step time"] if table.step_times else []),
        ),
        blocks=tuple(blocks),
        notes=tuple(f"{task_title(task)}, {method_title(m)}: {notes[m, task]}" for m, task in notes),
    )


def _kept_blocks(table: Table, encoder: str, seeds: int) -> list[tuple[str, tuple[TableRow, ...]]]:
    """A block for the epoch of runs with several tasks whose weights are kept; other columns have a dash."""
    kept, rows = table.at_kept_weights(), []
    for method in table.rows_of(encoder):
        cells = [kept.cell(encoder, method, task) for task in table.tasks]
        entries = [_DASH if cell is None else _cell_entry(cell, "best", seeds, None) for cell in cells]
        entries += [_DASH] * (len(table.averaged) > 1) + _time_entries(table, method)
        if any(cell is not None for cell in cells):
            rows.append(TableRow(_label(table, encoder, method), tuple(entries), method=method))
    return [("tasks of a run with several, at the epoch best on average", tuple(rows))] if rows else []


def _shown_blocks(table: Table, encoder: str, seeds: int) -> list[tuple[str, tuple[TableRow, ...]]]:
    """A block for each set that was scored and is not in the score; tasks without it have a dash."""
    blocks = []
    for dataset in table.shown_sets:
        judged, rows = table.on(dataset), []
        if not any(key[0] == encoder for key in judged.cells):
            continue
        for method in table.rows_of(encoder):
            cells = [judged.cell(encoder, method, task) for task in table.tasks]
            entries = [_DASH if cell is None else _cell_entry(cell, "best", seeds, None) for cell in cells]
            entries += [_DASH] * (len(table.averaged) > 1) + _time_entries(table, method)
            rows.append(TableRow(_label(table, encoder, method), tuple(entries), method=method))
        title = selection_title("best", chosen_held_out(c for key, c in judged.cells.items() if key[0] == encoder))
        title += f", on {dataset}, which is not in the score"
        blocks.append((title, tuple(rows)))
        if gains := _gains(judged, encoder, "best", seeds):
            blocks.append((f"{title}, minus the control", tuple(_widened(row, judged, table) for row in gains)))
    return blocks


def _widened(row: TableRow, judged: Table, table: Table) -> TableRow:
    """A row of a table of some tasks as one of all: dashes for the others, and for the average."""
    of_task = dict(zip(judged.tasks, row.entries, strict=False))
    entries = [of_task.get(task, _DASH) for task in table.tasks]
    entries += [_DASH] * (len(table.averaged) > 1)
    return replace(row, entries=(*entries, *_time_entries(table, row.method)))


def _label(table: Table, encoder: str, method: str) -> str:
    trials = {cell.trials for task in table.tasks if (cell := table.cell(encoder, method, task)) is not None}
    searched = f", best of {max(trials)} settings" if trials and max(trials) > 1 else ""
    return method_title(method) + searched


def _gains(table: Table, encoder: str, selection: Selection, seeds: int) -> tuple[TableRow, ...]:
    """Rows of each method minus its control, paired over seeds; methods without one in the table are left out."""
    rows = []
    for method in table.rows_of(encoder):
        control = known_control(method)
        if control is None:
            continue
        found = [table.minus(encoder, method, control, task, selection) for task in table.tasks]
        there = [difference for difference in found if difference is not None]
        if not there:
            continue
        unlike = [table.stops_unlike(encoder, method, control, task) for task in table.tasks]
        entries = [_difference_entry(d, seeds, stop) for d, stop in zip(found, unlike, strict=True)]
        if len(table.averaged) > 1:
            entries.append(_average_gain(table, encoder, method, control, selection, seeds, any(unlike)))
        entries += _time_entries(table, method)
        rows.append(TableRow(f"{method_title(method)} - {method_title(control)}", tuple(entries), method=method))
    return tuple(rows)


def _average_gain(
    table: Table, encoder: str, method: str, control: str, selection: Selection, seeds: int, unlike: bool
) -> Entry:
    average = table.average_minus(encoder, method, control, selection)
    if average is not None:
        return _difference_entry(average, seeds, unlike)
    found = [table.minus(encoder, method, control, task, selection) for task in table.averaged]
    there = [difference.mean for difference in found if difference is not None]
    if not there:
        return Entry(None, printed="missing")
    remark = f"{len(there)}/{len(found)} tasks" if len(there) < len(found) else "seeds differ"
    return Entry(math.fsum(there) / len(there), remark=remark, signed=True)


def _about_parts(table: Table) -> str:
    """A sentence on the columns of runs with several tasks; empty where there are none."""
    if len(table.run_tasks) == len(table.tasks):
        return ""
    return (
        " A run with several tasks has a column for its mean over them, whose best epoch is best on average, and one "
        "for each task, with the task's own best epoch."
    )


def _difference_entry(difference: Difference | None, seeds: int, stops_unlike: bool) -> Entry:
    if difference is None:
        return Entry(None, printed="missing")
    interval = difference.interval
    remarks = [f"n={difference.n}"] if difference.n != seeds else []
    if stops_unlike:
        remarks.append("stopped early by unlike patience")
    if difference.n > 1 and math.isnan(interval.low) and not math.isnan(difference.mean):
        remarks.append(f"no interval: {interval.degenerate}")
    return Entry(difference.mean, remark=", ".join(remarks), signed=True, interval=interval)


def _heading(cells: Sequence[Cell], seeds: int, averaged: int, in_paper: bool) -> str:
    datasets = {dataset for cell in cells for result in cell.results for dataset in result.datasets}
    splits = sorted({"dev" if name.endswith("dev") else name for name in datasets}) or ["dev"]
    fewer = " (fewer where a cell says so)" if any(cell.missing for cell in cells) else ""
    means = "".join(f" {task_title(task)} is the mean of {sets}." for task, sets in _means(cells).items())
    best, chosen_on = selection_title("best", chosen_held_out(cells)), _chosen_on(cells)
    average = " The average is the mean of the task means." if averaged > 1 else ""
    published = " Rows marked paper: the published means of 5 seeds, best dev epoch." if in_paper else ""
    return (
        f"Split: {', '.join(splits)}. Percent, mean ± sample standard deviation over n = {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}{fewer}.{means} {best.capitalize()}: each run's best epoch, {chosen_on}. "
        f"Last epoch: no choice{_about_stops(cells)}.{average}{published}"
    )


def _means(cells: Sequence[Cell]) -> dict[str, str]:
    """Task -> the dev sets whose mean its score is, where they are several."""
    found = {}
    for cell in cells:
        names = dict.fromkeys(name for result in cell.results for name in result.datasets)
        sets = [name.removeprefix(f"{cell.scored_task}_").removesuffix("_dev") for name in names]
        if len(sets) > 1:
            found[cell.task] = f"{', '.join(sets[:-1])} and {sets[-1]}"
    return found


def _chosen_on(cells: Sequence[Cell]) -> str:
    """A phrase with the split that the best epochs were chosen on."""
    held_out = chosen_held_out(cells)
    if held_out:
        return "chosen on a part of the training set that was held out, not on the split that is scored"
    some = ", in some rows on a part of the training set that was held out" if held_out is None else ""
    return f"chosen on the split that is scored{some}"


def _about_stops(cells: Sequence[Cell]) -> str:
    """A clause on runs that stopped early; empty where none did."""
    if not any(cell.stopped_early for cell in cells):
        return ""
    return f"; of runs that stopped early (footnotes) the one at which they did, {_chosen_on(cells)}"


def _about_controls(table: Table, encoder: str) -> str:
    methods = table.rows_of(encoder)
    wanted = {method: control for method in methods if (control := known_control(method)) is not None}
    absent = [f"{method_title(m)} ({method_title(c)})" for m, c in wanted.items() if c not in methods]
    text = ""
    if len(absent) < len(wanted):
        text = (
            " Minus the control: mean difference of the same seeds with Student's 95 % interval, not corrected for the "
            "number of comparisons; the control is plain fine-tuning with the same changes of protocol."
        )
    return text + (f" Without their control in this table: {', '.join(absent)}." if absent else "")


def _cell_entry(cell: Cell | None, selection: Selection, seeds: int, note: int | None) -> Entry:
    if cell is None or not cell.n(selection):
        return Entry(mean=None, printed="missing", note=note)
    n = cell.n(selection)
    remark = f"n={n}" if n != seeds else ""
    return Entry(cell.mean(selection), cell.std(selection), remark, note)


def _average_entry(average: Average | None, tasks: int, seeds: int) -> Entry:
    if average is None:
        return Entry(mean=None, printed="missing")
    if average.tasks < tasks:
        remark = f"{average.tasks}/{tasks} tasks"
    elif average.n not in (None, seeds):
        remark = f"n={average.n}"
    else:
        remark = "" if average.whole and average.n == seeds else "seeds missing"
    return Entry(average.mean, average.std, remark)


def _paper_row(published: PaperRow, table: Table, method: str) -> TableRow:
    scores = {task: published.scores.get(task) for task in table.tasks}
    entries = [Entry(mean=score, printed="" if score is not None else "-") for score in scores.values()]
    known = [score for task in table.averaged if (score := scores[task]) is not None]
    if (tasks := len(table.averaged)) > 1:
        average = math.fsum(known) / len(known) if known else None
        remark = f"{len(known)}/{tasks} tasks" if len(known) < tasks else ""
        entries.append(Entry(average, remark=remark, printed="" if known else "-"))
    label = f"{method_title(method)}, paper" + (" (row inferred)" if published.inferred else "")
    return TableRow(label, tuple(entries), published=True, method=method)


def _time_entries(table: Table, method: str) -> list[Entry]:
    """The last column of a table with step times, else nothing."""
    if not table.step_times:
        return []
    factor = table.step_times.get(method)
    return [Entry(None, printed="-" if factor is None else f"{factor:.2f}x")]


def _with_bold(rows: Sequence[TableRow], table: Table) -> tuple[TableRow, ...]:
    """Mark the best mean of each column as it is printed; published rows, part averages and lone rows are not."""
    ours = [row for row in rows if not row.published]
    bold: set[tuple[int, int]] = set()
    tasks = len(table.tasks)
    for column in range(tasks + (len(table.averaged) > 1)):
        means = {
            i: round(e.mean, 2)
            for i, row in enumerate(ours)
            if (e := row.entries[column]).mean is not None
            and not math.isnan(e.mean)
            and not (column == tasks and e.remark)
        }
        if len(means) > 1:
            bold |= {(i, column) for i, mean in means.items() if mean == max(means.values())}
    marked = {
        id(row): replace(
            row, entries=tuple(replace(e, bold=(i, column) in bold) for column, e in enumerate(row.entries))
        )
        for i, row in enumerate(ours)
    }
    return tuple(marked.get(id(row), row) for row in rows)
