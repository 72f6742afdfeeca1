"""Scores of a finished run on sets that gave it no score: ``evaluations.json`` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_utils.errors import SettingError
from data_utils.json_file import read_json, write_json
from mt_dnn.results import RunResult

FILE = "evaluations.json"


@dataclass(frozen=True, slots=True)
class ScoreElsewhere:
    """Scores of a run's best epoch on one set."""

    sha256: str
    """Of the set's file."""
    weights: str
    """SHA-256 of the weights, as ``result.json`` has it."""
    n: int
    """Examples."""
    metrics: Mapping[str, float]
    """Percent."""


def read_elsewhere(folder: Path, result: RunResult) -> dict[str, ScoreElsewhere]:
    """Read the scores of a run's present weights; set -> scores.

    Raises:
        SettingError: the file is damaged.
    """
    path = folder / FILE
    try:
        found = {name: ScoreElsewhere(**values) for name, values in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (SettingError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} cannot be read ({error}); delete it, and --evaluate_on makes it anew") from None
    return {name: score for name, score in found.items() if score.weights in result.files.values()}


def write_elsewhere(folder: Path, scores: Mapping[str, ScoreElsewhere]) -> None:
    """Write the scores of a run.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / FILE, {name: asdict(score) for name, score in scores.items()})
