"""One progress display for a whole study: a bar on a terminal, a line per finished run elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from experiments.glue.launch.pool import Job
from experiments.glue.launch.worker import Ended, Outcome
from experiments.glue.table.number_text import number_text


class StudyDisplay:
    """Steps of all runs in one bar, with counts of finished and failed runs.

    Args:
        jobs: The runs that are to be computed.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = len(jobs)
        self._total = {job.folder: job.steps for job in jobs}
        self._made: dict[Path, int] = {}
        self._started: dict[Path, float] = {}
        self._done = self._failed = 0
        self._bar = tqdm(
            total=sum(self._total.values()), unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._show_counts()

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advanced(self, job: Job, step: int, total_steps: int) -> None:
        """A run stands at ``step`` of ``total_steps``."""
        self._started.setdefault(job.folder, time.monotonic())
        self._total[job.folder] = total_steps
        self._move(job, step)

    def ended(self, job: Job, ended: Ended) -> None:
        """A run is over."""
        failed = ended.outcome is Outcome.FAILED
        self._failed += failed
        self._done += not failed
        self._move(job, self._total[job.folder])
        self._show_counts()
        began = self._started.get(job.folder)
        took = f", {time.monotonic() - began:.0f} s" if began is not None else ""
        best = f", best {number_text(ended.score)}" if ended.score is not None else ""
        what = f"failed: {ended.error}" if failed else f"{ended.status}{best}{took}"
        if failed or not sys.stderr.isatty():
            self.message(f"[{self._done + self._failed}/{self._jobs}] {job.label}: {what}")

    def message(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _move(self, job: Job, step: int) -> None:
        self._made[job.folder] = step
        self._bar.total = sum(self._total.values())
        self._bar.update(sum(self._made.values()) - self._bar.n)

    def _show_counts(self) -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        self._bar.set_description(f"{self._done}/{self._jobs} runs{failed}")
