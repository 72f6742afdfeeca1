"""A table of texts as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.study.table.latex import escape_latex, latex_table
from experiments.study.table.markdown import markdown_table


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts, before a format is chosen."""

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Markdown, columns aligned so that it reads in a terminal too."""
        parts = [f"## {self.title}", self.caption, markdown_table(self.columns, self.rows), *self.notes]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """LaTeX for the package booktabs."""
        body = [" & ".join(map(escape_latex, row)) + r" \\" for row in self.rows]
        notes = list(map(escape_latex, self.notes))
        alignment = "l" * len(self.columns)
        return latex_table(self.title, self.caption, alignment, self.columns, [r"\midrule", *body], notes) + "\n"


def join_markdown(tables: Sequence[TextTable]) -> str:
    """Several tables in one Markdown text."""
    return "\n".join(table.markdown() for table in tables)


def join_latex(tables: Sequence[TextTable]) -> str:
    """Several tables in one LaTeX text."""
    return "\n".join(["% needs \\usepackage{booktabs}", *(table.latex() for table in tables)])


def setting_text(value: Any) -> str:
    """A setting's value, short: ``8e-5``, ``0.75``, ``normal``; None is a dash."""
    if value is None:
        return "-"
    if isinstance(value, float) and value != 0.0 and math.isfinite(value) and not 1e-2 <= abs(value) < 1e4:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if isinstance(value, float):
        return f"{value:z.6g}"
    return value if isinstance(value, str) else json.dumps(value)
