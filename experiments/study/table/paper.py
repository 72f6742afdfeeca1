"""The paper's numbers, as ``paper.yml`` holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_utils.yaml_file import read_yaml
from experiments.benchmark import DEFAULT, Benchmark


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of Table 1."""

    scores: Mapping[str, float]
    """Task -> mean of 5 seeds, best dev epoch, percent."""
    inferred: bool
    """Whether the row's label is inferred from the order of rows."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Table 1."""

    rows: Mapping[tuple[str, str], PaperRow]
    """(encoder slug, method) -> row."""

    def row(self, encoder: str, method: str, tasks: Iterable[str]) -> PaperRow | None:
        """The paper's row for a setting, or None when it has no score on any of these tasks."""
        row = self.rows.get((encoder, method))
        return row if row is not None and not row.scores.keys().isdisjoint(tasks) else None


def load_paper(benchmark: Benchmark = DEFAULT) -> Paper:
    """Read Table 1 from ``paper.yml``."""
    rows = _content(benchmark)["table_1"]["rows"]
    return Paper({(row["encoder"], row["method"]): PaperRow(row["scores"], row["inferred"]) for row in rows})


@dataclass(frozen=True, slots=True)
class PaperSearch:
    """Tables 2 and 3."""

    learning_rates: Mapping[tuple[str, str], Mapping[str, float]]
    """(encoder slug, method) -> task -> best learning rate."""
    ranges: Mapping[str, tuple[float, ...]]
    """Dotted setting -> values searched for PATS, on both of the paper's encoders."""


def load_paper_search(benchmark: Benchmark = DEFAULT) -> PaperSearch:
    """Read Tables 2 and 3 from ``paper.yml``."""
    content = _content(benchmark)
    rows, grid = content["table_2"]["rows"], content["table_3"]["grid"]
    return PaperSearch(
        {(row["encoder"], row["method"]): row["learning_rate"] for row in rows},
        {key: tuple(entry["values"]) for key, entry in grid.items()},
    )


def _content(benchmark: Benchmark) -> dict[str, Any]:
    return read_yaml(next(path for path in benchmark.places("paper.yml") if path.is_file()))
