"""The check that runs of one table have the same data, task definition and encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from data_utils.errors import SettingError
from mt_dnn.identity import Identity
from mt_dnn.results import RunResult

Finished = tuple[Path, RunResult, Identity | None]
"""A finished run's folder, result and identity; None where an earlier version recorded none."""


def refuse_mixture(runs: Iterable[Finished]) -> None:
    """Refuse runs of one task on different data or definitions, or of one encoder's name on different encoders.

    Raises:
        SettingError: names two runs, what differs and what to do.
    """
    first: dict[tuple[str, ...], tuple[Path, Identity | None]] = {}
    for path, result, identity in runs:
        of_task = first.setdefault((result.task,), (path, identity))
        of_encoder = first.setdefault((result.task, result.encoder), (path, identity))
        _compare(of_task, (path, identity), Identity.task_difference)
        # Each seed may have begun with a run of its own, which is compared with that of the same seed.
        of_seed = first.setdefault((result.task, result.encoder, str(result.seed)), (path, identity))
        _compare(of_encoder, (path, identity), Identity.encoder_difference)
        _compare(of_seed, (path, identity), Identity.encoder_difference)


def _compare(
    one: tuple[Path, Identity | None],
    two: tuple[Path, Identity | None],
    difference: Callable[[Identity, Identity], str],
) -> None:
    (path, known), (other_path, other) = one, two
    remedy = "they cannot be compared: delete one of them, or show them apart with --study or another --output_dir"
    if known is not None and other is not None:
        if what := difference(known, other):
            raise SettingError(f"{path} and {other_path} were not run with the same contents, {what} differs; {remedy}")
    elif known is not other:
        old, new = (path, other_path) if known is None else (other_path, path)
        raise SettingError(
            f"{old} does not say what data and encoder it is of (an earlier version wrote it), {new} does; {remedy}"
        )
