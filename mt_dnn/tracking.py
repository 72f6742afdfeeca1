"""The metrics of one run: metrics.jsonl, cut back to the checkpoint when the run goes on, and reports to trackers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from data_utils.errors import SettingError, in_one_line
from data_utils.json_file import read_json, write_json
from mt_dnn.config import RunConfig
from mt_dnn.metrics_log import read_records
from mt_dnn.reporters import REPORTERS, ReportedRun, Reporter
from mt_dnn.results import EpochScore
from mt_dnn.run_directory import RunDirectory

log = logging.getLogger(__name__)


class Tracker:
    """Writes the metrics of a run, and reports them to the places that ``report_to`` names.

    Args:
        config: The run.
        directory: The run's directory.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self._config, self._directory = config, directory
        self._reporters: dict[str, Reporter] = {}
        self._told: dict[str, set[tuple[int, bool]]] = {}

    def start(self, metrics_size: int, step: int) -> None:
        """Begin, or go on from a checkpoint.

        A tracker cannot take a point back. What an earlier session told it is not told again: a resumed run has the
        same numbers.

        Args:
            metrics_size: Length of ``metrics.jsonl`` at the checkpoint, bytes; 0 at the start.
            step: Optimizer steps at the checkpoint, 0 at the start; TensorBoard hides later records of other sessions.

        Raises:
            SettingError: A tracker cannot be started, or a file of the run is damaged.
        """
        directory = self._directory
        logged = {(line["step"], "evaluation" in line) for line in read_records(directory.metrics_jsonl, strict=False)}
        directory.truncate_metrics(metrics_size)
        known: dict[str, str] = read_json(directory.trackers_json) if directory.trackers_json.is_file() else {}
        for name in self._config.trackers:
            run = ReportedRun(self._config, directory, step, known.get(name))
            try:
                self._reporters[name] = reporter = REPORTERS[name](run)
            except Exception as error:  # of a library: no account, no server, a setting of its own
                raise SettingError(
                    f"report_to: {name} cannot be started ({in_one_line(error)}); set it up, or leave it out and start "
                    "the same command again"
                ) from error
            self._told[name] = logged if name in known else set()
            if reporter.known is not None:
                known[name] = reporter.known
        if known:
            write_json(directory.trackers_json, known)

    def log(self, record: Mapping[str, Any]) -> None:
        """Write the record of a logging step: ``step``, ``epoch`` and named numbers."""
        self._directory.append_metrics(record)
        numbers = {f"train/{name}": value for name, value in record.items() if name not in ("step", "epoch")}
        self._report(numbers, record["step"], evaluation=False)

    def evaluated(self, step: int, scores: EpochScore, raw: EpochScore | None) -> None:
        """Write the record of an evaluation.

        Args:
            step: Optimizer steps made.
            scores: Of the weights that the method evaluates.
            raw: Of the weights as they are trained, where those are others.
        """
        record: dict[str, Any] = {"step": step, "epoch": scores.epoch}
        record |= {"score": scores.score, "evaluation": scores.metrics}
        if scores.held_out is not None:
            record["held_out"] = scores.held_out
        if raw is not None:
            record |= {"raw_score": raw.score, "raw_evaluation": raw.metrics}
        self._directory.append_metrics(record)
        numbers = {
            f"{prefix}/{dataset}/{metric}": value
            for prefix, metrics in (("dev", scores.metrics), ("dev_raw", raw.metrics if raw is not None else {}))
            for dataset, values in metrics.items()
            for metric, value in values.items()
        }
        self._report(numbers, step, evaluation=True)

    def flush(self) -> int:
        """Flush all files; returns the length of ``metrics.jsonl`` in bytes."""
        self._each(lambda _, reporter: reporter.flush())
        return self._directory.metrics_size()

    def close(self, done: bool = False) -> None:
        """Flush and close the files.

        Args:
            done: Whether the run is over. Trackers show a run that is not as broken off.
        """
        self._each(lambda _, reporter: reporter.close(done))
        self._reporters.clear()

    def _report(self, numbers: Mapping[str, Any], step: int, evaluation: bool) -> None:
        finite = {name: v for name, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}

        def tell(name: str, reporter: Reporter) -> None:
            if (step, evaluation) not in self._told[name]:
                reporter.report(finite, step)

        if finite:
            self._each(tell)

    def _each(self, act: Callable[[str, Reporter], None]) -> None:
        """Act on every reporter. A tracker that fails is left alone from then on: its server is no part of the run."""
        for name, reporter in list(self._reporters.items()):
            try:
                act(name, reporter)
            except Exception as error:
                if name == "tensorboard":  # whose files are the run's own
                    raise
                del self._reporters[name]
                log.warning(
                    "%s: %s failed (%s) and is told nothing more; metrics.jsonl has all",
                    self._directory.path, name, in_one_line(error),
                )  # fmt: skip
