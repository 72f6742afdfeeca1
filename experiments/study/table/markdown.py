"""A table as Markdown; it reads in a terminal too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

from experiments.study.statistics.intervals import Interval
from experiments.study.table.cells import Table
from experiments.study.table.layout import Entry, layout
from experiments.study.table.paper import Paper
from experiments.study.texts import number_text


def has_deviation(std: float | None) -> TypeGuard[float]:
    """Whether there is one to show."""
    return std is not None and not math.isnan(std)


def markdown(table: Table, paper: Paper) -> str:
    """The table as Markdown; it reads in a terminal too."""
    parts = []
    for shown in layout(table, paper):
        parts += [f"## {shown.encoder}", shown.heading]
        for title, rows in shown.blocks:
            lines = [[row.label, *(_markdown_entry(entry) for entry in row.entries)] for row in rows]
            parts += [f"### {title[0].upper()}{title[1:]}", markdown_table(shown.columns, lines)]
        if shown.notes:
            parts.append("\n".join(f"[{i}] {text}  " for i, text in enumerate(shown.notes, start=1)))
    parts += [f"Command: `{table.command}`"] if table.command else []
    return "\n\n".join(parts or ["No runs."]) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under their columns, padded so that they stand in line."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = ["| " + " | ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) + " |" for line in lines]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def _markdown_entry(entry: Entry) -> str:
    note = f" [{entry.note}]" if entry.note is not None else ""
    if entry.mean is None:
        return entry.printed + note
    number = number_text(entry.mean, entry.signed)
    text = f"**{number}**" if entry.bold else number
    text += f" ± {number_text(entry.std)}" if has_deviation(entry.std) else ""
    if entry.interval is not None and (interval := interval_text(entry.interval)):
        text += f" {interval}"
    return text + (f" ({entry.remark})" if entry.remark else "") + note


def interval_text(interval: Interval) -> str:
    """``[-0.31, +1.20]``, or nothing where there is no interval."""
    if math.isnan(interval.low):
        return ""
    return f"[{number_text(interval.low, signed=True)}, {number_text(interval.high, signed=True)}]"
