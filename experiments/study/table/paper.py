"""The paper's numbers, as ``paper.yml`` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_utils.yaml_file import read_yaml

PAPER = Path(__file__).resolve().parents[2] / "glue" / "paper.yml"


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of Table 1."""

    scores: Mapping[str, float]
    """Task -> mean of 5 seeds, best dev epoch, percent."""
    average: float
    """Mean of the row, computed; the printed one is wrong in four rows."""
    inferred: bool
    """Whether the row's label is inferred from the order of rows."""


@dataclass(frozen=True, slots=True)
class Paper:
    """Table 1."""

    rows: Mapping[tuple[str, str], PaperRow]
    """(encoder slug, method) -> row."""

    def row(self, encoder: str, method: str) -> PaperRow | None:
        """The paper's row for a setting, or None when it has none."""
        return self.rows.get((encoder, method))


def load_paper(path: Path = PAPER) -> Paper:
    """Read Table 1 from ``paper.yml``."""
    rows = read_yaml(path)["table_1"]["rows"]
    return Paper(
        {
            (row["encoder"], row["method"]): PaperRow(
                scores=row["scores"],
                average=sum(row["scores"].values()) / len(row["scores"]),
                inferred=row["inferred"],
            )
            for row in rows
        }
    )


@dataclass(frozen=True, slots=True)
class PaperSearch:
    """Tables 2 and 3."""

    learning_rates: Mapping[tuple[str, str], Mapping[str, float]]
    """(encoder slug, method) -> task -> best learning rate."""
    ranges: Mapping[str, tuple[float, ...]]
    """Dotted setting -> values searched for PATS, on both of the paper's encoders."""


def load_paper_search(path: Path = PAPER) -> PaperSearch:
    """Read Tables 2 and 3 from ``paper.yml``."""
    content = read_yaml(path)
    rows, grid = content["table_2"]["rows"], content["table_3"]["grid"]
    return PaperSearch(
        {(row["encoder"], row["method"]): row["learning_rate"] for row in rows},
        {key: tuple(entry["values"]) for key, entry in grid.items()},
    )
