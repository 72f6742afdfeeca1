"""The progress display of a study: a line per finished run and, on a terminal, a bar."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from experiments.study.launch.job import Job
from experiments.study.launch.worker import Ended, Outcome, evaluates_next
from experiments.study.texts import number_text


class StudyDisplay:
    """Steps of all runs in one bar, with counts of runs by phase.

    Args:
        jobs: The runs that are to be computed.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = len(jobs)
        self._total = {job.folder: job.steps for job in jobs}
        self._made: dict[Path, int] = {}
        self._phases: dict[Path, str] = {}
        self._done = self._failed = 0
        self._bar = tqdm(
            total=sum(self._total.values()), unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._show_counts()

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def started(self, job: Job) -> None:
        """Show that a worker has taken a run; it loads encoder and data first."""
        self._phases[job.folder] = "loading"
        self._show_counts()

    def put_back(self, job: Job) -> None:
        """Show that a run waits again."""
        self._phases.pop(job.folder, None)
        self._show_counts()

    def advanced(self, job: Job, step: int, total_steps: int) -> None:
        """Show that a run stands at ``step`` of ``total_steps``."""
        self._total[job.folder] = total_steps
        phase = "evaluating" if evaluates_next(job.config, step, total_steps) else "training"
        if self._phases.get(job.folder) != phase:
            self._phases[job.folder] = phase
            self._show_counts()
        self._move(job, step)

    def ended(self, job: Job, ended: Ended) -> None:
        """Show that a run is over."""
        failed = ended.outcome is Outcome.FAILED
        self._failed += failed
        self._done += not failed
        self._phases.pop(job.folder, None)
        self._move(job, self._total[job.folder])
        self._show_counts()
        took = "" if ended.seconds is None else f", {ended.seconds:.0f} s"
        before = "already done: " if ended.seconds is None and not failed else ""
        best = f", best {number_text(ended.score)}" if ended.score is not None else ""
        what = f"failed: {ended.error}" if failed else f"{before}{ended.status}{best}{took}"
        self.message(f"[{self._done + self._failed}/{self._jobs}] {job.label}: {what}")

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def tick(self) -> None:
        """Let the clock of the bar go on while no step is reported."""
        self._bar.refresh()

    def _move(self, job: Job, step: int) -> None:
        self._made[job.folder] = step
        self._bar.total = sum(self._total.values())
        self._bar.update(sum(self._made.values()) - self._bar.n)

    def _show_counts(self) -> None:
        counts = Counter(self._phases.values())
        doing = [f"{n} {phase}" for phase in ("loading", "training", "evaluating") if (n := counts[phase])]
        doing += [f"{self._failed} failed"] if self._failed else []
        self._bar.set_description(", ".join([f"{self._done}/{self._jobs} runs", *doing]))
