"""A table as LaTeX (booktabs)."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.study.table.cells import Table
from experiments.study.table.layout import Entry, layout
from experiments.study.table.markdown import has_deviation, interval_text
from experiments.study.table.paper import Paper
from experiments.study.texts import number_text

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters as they must be written."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Table, paper: Paper) -> str:
    """The table as LaTeX for the package booktabs, one ``table*`` per encoder."""
    parts = ["% needs \\usepackage{booktabs}"]
    parts += [f"% made of the runs of: {table.command}"] if table.command else []
    for shown in layout(table, paper):
        width, body = len(shown.columns), []
        for title, rows in shown.blocks:
            body += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(title)}}}}} \\"]
            body += [" & ".join([escape_latex(row.label), *map(_latex_entry, row.entries)]) + r" \\" for row in rows]
        notes = [rf"$^{{{i}}}$ {escape_latex(text)}." for i, text in enumerate(shown.notes, start=1)]
        parts.append(latex_table(shown.encoder, shown.heading, "l" + "r" * (width - 1), shown.columns, body, notes))
    return "\n\n".join(parts) + "\n"


def latex_table(
    title: str, caption: str, alignment: str, columns: Sequence[str], body: Sequence[str], notes: Sequence[str]
) -> str:
    """A ``table*`` for the package booktabs, without a line end after it.

    Args:
        title: Beginning of the caption.
        caption: The rest of it.
        alignment: ``l`` or ``r`` of each column.
        columns: Names of the columns.
        body: Lines between the head and the last rule, as LaTeX.
        notes: Paragraphs under the table, as LaTeX.
    """
    lines = [
        r"\begin{table*}",
        r"\centering\small",
        rf"\caption{{{escape_latex(title)}. {escape_latex(caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(map(escape_latex, columns)) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {note}" for note in notes),
        r"\end{table*}",
    ]
    return "\n".join(lines)


def _latex_entry(entry: Entry) -> str:
    note = rf"$^{{{entry.note}}}$" if entry.note is not None else ""
    if entry.mean is None:
        return escape_latex(entry.printed) + note
    number = number_text(entry.mean, entry.signed)
    text = rf"\textbf{{{number}}}" if entry.bold else number
    text += rf" $\pm$ {number_text(entry.std)}" if has_deviation(entry.std) else ""
    if entry.interval is not None and (interval := interval_text(entry.interval)):
        text += rf" {{\scriptsize {interval}}}"
    return text + (f" ({escape_latex(entry.remark)})" if entry.remark else "") + note
