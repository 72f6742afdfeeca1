"""A finished run on sets that gave it no score: ``evaluations.json`` and ``evaluations/<set>.npz`` in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_utils.atomic import write_bytes_atomic
from data_utils.errors import SettingError
from data_utils.file_hash import sha256_of
from data_utils.json_file import read_json, write_json
from data_utils.named_arrays import arrays_bytes, read_arrays
from mt_dnn.results import RunResult

FILE = "evaluations.json"
FOLDER = "evaluations"
_REMEDY = "delete {}, and --evaluate_on makes it anew"


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
    predictions: str = ""
    """SHA-256 of the file of its predictions; empty where an earlier version kept none."""


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
        raise SettingError(f"{path} cannot be read ({error}); {_REMEDY.format('it')}") from None
    return {name: score for name, score in found.items() if score.weights in result.files.values()}


def write_elsewhere(folder: Path, scores: Mapping[str, ScoreElsewhere]) -> None:
    """Write the scores of a run.

    Raises:
        OSError: it cannot be written.
    """
    write_json(folder / FILE, {name: asdict(score) for name, score in scores.items()})


def write_predictions_elsewhere(folder: Path, name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write a set's ``uids``, ``labels`` (N,) and ``best_logits`` (N, K) as ``<set>.<name>``; returns the SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    data = arrays_bytes({f"{name}.{key}": array for key, array in arrays.items()})
    path = predictions_file(folder, name)
    path.parent.mkdir(exist_ok=True)
    write_bytes_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_predictions_elsewhere(folder: Path, result: RunResult, name: str) -> dict[str, np.ndarray] | None:
    """Read the arrays of :func:`write_predictions_elsewhere`, none where they were not kept; None for another set.

    Raises:
        SettingError: the file is damaged, missing or not of these scores.
    """
    score = read_elsewhere(folder, result).get(name)
    if score is None or not score.predictions:
        return None if score is None else {}
    path, remedy = predictions_file(folder, name), _REMEDY.format(folder / FILE)
    if not path.is_file() or sha256_of(path) != score.predictions:
        told = "is damaged or of other scores ({} has another checksum)" if path.is_file() else "is missing"
        raise SettingError(f"{path} {told.format(FILE)}; {remedy}")
    return read_arrays(path, remedy)


def predictions_file(folder: Path, name: str) -> Path:
    """Return the file of a set's predictions."""
    return folder / FOLDER / f"{name}.npz"
