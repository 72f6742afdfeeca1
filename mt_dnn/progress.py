"""The progress of one run: steps, epoch and best score, and the bar that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


@dataclass(frozen=True, slots=True)
class Progress:
    """The position of a run after a step, and its best score so far, percent."""

    step: int
    total_steps: int
    epoch: int
    best_score: float | None


@contextmanager
def progress_bar(label: str, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr, if that is a terminal.

    Args:
        label: Stands before the bar.
        shown: Whether this process shows one at all.

    Yields:
        The function to call after every step.
    """
    with (
        tqdm(desc=label, unit="step", disable=None if shown else True, dynamic_ncols=True) as bar,
        logging_redirect_tqdm(),
    ):

        def report(progress: Progress) -> None:
            bar.total = progress.total_steps
            best = "" if progress.best_score is None else f" best {progress.best_score:z.2f}"
            bar.set_postfix_str(f"epoch {progress.epoch}{best}", refresh=False)
            bar.update(progress.step - bar.n)

        yield report
