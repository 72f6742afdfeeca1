"""The sensitivities that runs have recorded (``sensitivity.json``), gathered for figures, and their statistics."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_utils.errors import SettingError, shown
from data_utils.json_file import read_json
from experiments.study.fields import Fields
from experiments.study.launch.job import Job
from experiments.study.statistics.difference import Difference
from experiments.study.statistics.paired_tests import sign_flip
from experiments.study.table.cells import Cell, Table, baseline_of
from experiments.study.table.gathering import run_folders
from experiments.study.table.titles import method_title
from module.sensitivity_summary import FULL_RANGE, PAPER_RANGE, SensitivitySummary, bin_edges
from mt_dnn.results import RunResult, Status
from mt_dnn.run_directory import RunDirectory

BETA = 0.75
"""Of the watched moving average unless ``--set sensitivity_beta`` says otherwise: PATS's default here."""
DEFAULTS = ("save=none", f"sensitivity_beta={BETA}")
"""Settings of a figure's runs, weaker than ``--set``: their weights are not needed."""

STATISTICS = (
    "mean", "median", "std", "std_in_range", "std_log10", "gini", "entropy", "top_share", "below_range", "above_range",
)  # fmt: skip
"""Fields of :class:`SensitivitySummary` that are one number."""
CLAIMS = {
    "std_log10": "more tightly clustered", "entropy": "more tightly clustered", "std": "more tightly clustered",
    "below_range": "fewer insensitive parameters",
    "gini": "no few parameters dominate", "top_share": "no few parameters dominate",
}  # fmt: skip
"""Statistic -> what the paper says of its Figure 2 that would make it smaller with PATS."""
_PATH = re.compile(r"[^.]+\.\d+\..")


def read_summary(directory: RunDirectory, result: RunResult) -> SensitivitySummary:
    """Read a finished run's ``sensitivity.json``.

    Raises:
        SettingError: it is missing or damaged, or was not written with this result.
    """
    path = directory.sensitivity_json
    directory.check_file(path, result)
    try:
        values = read_json(path)
        _check(Fields(values, str(path)))
        return SensitivitySummary.from_json(values)
    except FileNotFoundError:
        raise SettingError(f"{path} is missing: the run did not record it, or it was removed; delete the run's folder "
                           "to run it again") from None  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error) if isinstance(error, SettingError) else f"{path} is damaged ({shown(str(error))})"
        raise SettingError(f"{reason}; delete the run's folder to run it again") from None


def _check(values: Fields) -> None:
    """Check the kinds of all fields, so that no picture meets with a text among its numbers."""

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    for name in ("beta", *STATISTICS):
        values.get(name, "a number", number)
    values.integer("n", 1)
    for name, span in (("paper_counts", PAPER_RANGE), ("full_counts", FULL_RANGE)):
        bins = len(bin_edges(*span)) + 1
        values.get(name, f"{bins} counts", functools.partial(_are_counts, bins))
    for tensor in values.mappings("tensors"):
        tensor.get("path", "such as layer.0.output.dense.weight", lambda v: isinstance(v, str) and bool(_PATH.match(v)))
        tensor.get("mean", "a number", number)


def _are_counts(bins: int, value: object) -> bool:
    return isinstance(value, list) and len(value) == bins and all(type(count) is int and count >= 0 for count in value)


def check_recorded(jobs: Iterable[Job]) -> None:
    """Refuse finished runs without the sensitivities of the figure, before hours go into the others.

    Raises:
        SettingError: names the first such run.
    """
    for job in jobs:
        directory, wanted = RunDirectory(job.folder), job.config.sensitivity_beta
        if wanted is None:
            raise SettingError("--set sensitivity_beta=null: the figure needs a beta in [0, 1), such as 0.75")
        result = directory.read_result()
        if result is None or not _has_model(result):
            continue
        recorded = read_summary(directory, result).beta if directory.sensitivity_json.is_file() else None
        if recorded != wanted:
            raise SettingError(
                f"{job.folder} is done, with sensitivity_beta {recorded} and not {wanted}: take another --output_dir, "
                "or delete the folder to run it again"
            )


def read_cell(cell: Cell, runs: Path) -> dict[int, SensitivitySummary]:
    """Seed -> sensitivities at the end of training; runs that failed or diverged have no end and are left out."""
    folders = run_folders(cell, runs)
    return {
        result.seed: read_summary(RunDirectory(folders[result.seed]), result)
        for result in cell.results
        if _has_model(result)
    }


def _has_model(result: RunResult) -> bool:
    return result.status in (Status.OK, Status.DEGENERATE)


def read_methods(table: Table, encoder: str, task: str, runs: Path) -> dict[str, dict[int, SensitivitySummary]]:
    """Method -> seed -> sensitivities, in the table's order; a method without a run has no seeds."""
    cells = {method: table.cell(encoder, method, task) for method in table.methods}
    return {method: read_cell(cell, runs) if cell is not None else {} for method, cell in cells.items()}


def statistics_rows(by_method: Mapping[str, Mapping[int, SensitivitySummary]]) -> list[list[object]]:
    """A line per run for a CSV, the header first."""
    rows: list[list[object]] = [["method", "seed", "beta", "n", *STATISTICS]]
    for method, by_seed in by_method.items():
        rows += [[method, seed, s.beta, s.n, *(getattr(s, name) for name in STATISTICS)] for seed, s in by_seed.items()]
    return rows


def statistics_markdown(by_method: Mapping[str, Mapping[int, SensitivitySummary]], heading: str) -> str:
    """The statistics as a Markdown table: a line per statistic, mean ± sample deviation over the seeds per method."""
    shown = {method: by_seed for method, by_seed in by_method.items() if by_seed}
    head = ["statistic of s̄", *(f"{method_title(method)} (n = {len(by_seed)})" for method, by_seed in shown.items())]
    lines = [head, ["---"] * len(head)]
    for name in STATISTICS:
        values = [[float(getattr(s, name)) for s in by_seed.values()] for by_seed in shown.values()]
        lines.append([name, *map(mean_and_deviation, values)])
    said = (
        "s̄ after the last step: mean ± sample standard deviation over n seeds; docs/figures.md defines each statistic."
    )
    return f"## {heading}\n\n{said}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass(frozen=True, slots=True)
class Concentration:
    """A statistic of s̄ that the paper says to be smaller with PATS: a method's minus its baseline's."""

    claim: str
    statistic: str
    method: str
    difference: Difference
    relative: float
    """Mean difference over the baseline's mean."""

    @property
    def verdict(self) -> str:
        """``yes``, or ``no`` where the opposite is shown; else ``not shown``, as the interval has both signs."""
        low, high = self.difference.interval.low, self.difference.interval.high
        if high < 0.0:
            return "yes"
        return "no, larger" if low > 0.0 else "not shown"


def concentrations(
    by_method: Mapping[str, Mapping[int, SensitivitySummary]],
) -> list[Concentration]:
    """Compare every method with its control or plain fine-tuning, by each statistic, over the seeds that both have."""
    there, found = [method for method, by_seed in by_method.items() if by_seed], []
    for method, ours in by_method.items():
        other = baseline_of(method, there)
        theirs = by_method.get(other, {}) if other is not None else {}
        both = [seed for seed in ours if seed in theirs]
        if other is None or not both:
            continue
        for statistic, claim in CLAIMS.items():
            a, b = ({seed: float(getattr(of[seed], statistic)) for seed in both} for of in (ours, theirs))
            difference = Difference.between(other, a, b)
            mean = math.fsum(b.values()) / len(b)
            relative = difference.mean / mean if mean else math.nan
            found.append(Concentration(claim, statistic, method, difference, relative))
    return found


def concentration_rows(found: Sequence[Concentration]) -> list[list[object]]:
    """A line per method and statistic for a CSV, the header first."""
    rows: list[list[object]] = [[
        "method", "baseline", "claim", "statistic", "pairs", "difference", "relative", "t_low", "t_high",
        "p_sign_flip", "smaller",
    ]]  # fmt: skip
    for one in found:
        d = one.difference
        told = [one.method, d.other, one.claim, one.statistic, d.n, d.mean, one.relative]
        rows.append([*told, d.interval.low, d.interval.high, sign_flip(d.values).p, one.verdict])
    return rows


def concentration_markdown(found: Sequence[Concentration]) -> str:
    """A table per method: the paper's claim, the difference with Student's 95 % interval, whether it is shown."""
    lines = [
        "",
        "The paper says of its Figure 2 what would make each of these smaller with PATS. Mean difference over the n "
        "seeds that both have, its Student's 95 % interval, not corrected for the number of comparisons, and its share "
        "of the baseline's mean. Smaller: yes where the interval is below 0, no where it is above, else not shown.",
    ]
    for method in dict.fromkeys(one.method for one in found):
        some = [one for one in found if one.method == method]
        head = f"{method_title(method)} - {method_title(some[0].difference.other)} (n = {some[0].difference.n})"
        lines += [
            "",
            f"| the paper says | statistic | {head} | 95 % | relative | smaller? |",
            "|---|---|---|---|---|---|",
        ]
        for one in some:
            low, high = one.difference.interval.low, one.difference.interval.high
            interval = "-" if math.isnan(low) else f"[{_number(low, 3)}, {_number(high, 3)}]"
            mean = _number(one.difference.mean, 3)
            relative = f"{100 * one.relative:+z.1f} %"
            lines.append(f"| {one.claim} | {one.statistic} | {mean} | {interval} | {relative} | {one.verdict} |")
    return "\n".join(lines) + "\n" if found else ""


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and deviation as ``1.23e-06 ± 4.5e-08``; NaN stays NaN; one value has no deviation."""
    mean = float(np.mean(values))
    text = _number(mean, 4)
    if len(values) > 1 and not math.isnan(mean):
        text += f" ± {_number(float(np.std(values, ddof=1)), 2)}"
    return text


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits - 1}e}" if value and abs(value) < 1e-2 else f"{value:z.{digits}g}"
