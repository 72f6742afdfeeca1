"""Optuna's tree-structured Parzen estimator over a grid, in a journal file that processes and restarts share.

Trials are asked for in rounds of a fixed size, each drawn from the scores of all rounds before it with a seed of its
own number. So the trials depend on the settings alone, not on how many processes and workers computed them, nor on when
one of them was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_utils.errors import SettingError
from experiments.study.search.space import Point, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

_TRIES = 20  # suggestions for one trial before a point that was not tried yet is taken at random


class TpeSampler:
    """The trials of one (encoder, method, task).

    Args:
        journal: File that holds them; made if missing, shared by all studies of a search.
        name: The study's name in it; a change of the search must change it.
        space: The grid.
        trials: Number of trials, >= 1; never more than the grid has points.
        seed: Of the suggestions.
        round_size: Trials asked for at a time, >= 1.

    Raises:
        SettingError: optuna is not installed.
    """

    def __init__(self, journal: Path, name: str, space: Space, trials: int, seed: int, round_size: int) -> None:
        try:
            import optuna
        except ImportError:
            raise SettingError("--search tpe needs optuna: pip install -r requirements-search.txt") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._journal, self._name, self._space = journal, name, space
        self._trials, self._seed, self._round = min(trials, space.size), seed, round_size

    @property
    def trials(self) -> int:
        """Number of trials that there will be."""
        return self._trials

    def asked(self) -> Sequence[Point]:
        """Points in the journal, the first first."""
        from optuna.study import get_all_study_names

        if not self._journal.is_file():
            return []
        with self._locked():
            if self._name not in get_all_study_names(self._storage()):
                return []
            return [self._point(trial) for trial in self._study().trials][: self._trials]

    def ask(self, told: Mapping[Point, float]) -> Sequence[Point]:
        """Points so far, after a new round has been asked for if all of them are told."""
        from optuna.trial import TrialState

        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            study = self._study()
            self._fill_round(study)
            for trial in study.trials:
                score = told.get(self._point(trial))
                if score is None or trial.state.is_finished():
                    continue
                if math.isnan(score):
                    study.tell(trial.number, state=TrialState.PRUNED)  # ranks behind every score
                else:
                    study.tell(trial.number, score)
            trials = study.trials
            if len(trials) < self._trials and all(trial.state.is_finished() for trial in trials):
                self._add_trial(study)
                self._fill_round(study)
            return [self._point(trial) for trial in study.trials][: self._trials]

    def _fill_round(self, study: Study) -> None:
        """Complete the round that has begun, as one whose process was killed may be cut short."""
        there = len(study.trials)
        end = min(self._trials, math.ceil(there / self._round) * self._round)
        for _ in range(there, end):
            self._add_trial(study)

    def _add_trial(self, study: Study) -> None:
        from optuna.trial import TrialState, create_trial

        point = self._suggest(study.trials)
        params = {axis.key: index for axis, index in zip(self._space.axes, point, strict=True)}
        shown = {key: str(value) for key, value in self._space.settings(point).items()}
        # One record, so that a kill leaves a whole trial or none.
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions(), user_attrs=shown)
        )

    def _suggest(self, trials: list[FrozenTrial]) -> Point:
        """A point that was not tried yet, from a study in memory with a seed of this trial's own."""
        import optuna

        tried = {self._point(trial) for trial in trials}
        for attempt in range(_TRIES):
            text = f"{self._seed}/{self._name}/{len(trials)}/{attempt}"
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # older versions call both options experimental
                # The liar takes trials that still run for bad ones, so that a round does not crowd at one place.
                sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            memory = optuna.create_study(direction="maximize", sampler=sampler)
            memory.add_trials(trials)
            point = self._point_of(memory.ask(self._distributions()).params)
            if point not in tried:
                return point
        order = np.random.default_rng(self._seed).permutation(self._space.size)
        return next(point for number in order if (point := self._space.point(int(number))) not in tried)

    def _distributions(self) -> dict[str, BaseDistribution]:
        """Indices of the values: in order for numbers, without for anything else."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            axis.key: IntDistribution(0, len(axis.values) - 1)
            if axis.is_ordered
            else CategoricalDistribution(range(len(axis.values)))
            for axis in self._space.axes
        }

    def _point(self, trial: FrozenTrial) -> Point:
        return self._point_of(trial.params)

    def _point_of(self, params: Mapping[str, int]) -> Point:
        return tuple(int(params[axis.key]) for axis in self._space.axes)

    def _study(self) -> Study:
        import optuna

        return optuna.create_study(
            storage=self._storage(), study_name=self._name, direction="maximize", load_if_exists=True
        )

    def _storage(self) -> JournalStorage:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self._drop_torn_line()
        try:
            return JournalStorage(JournalFileBackend(str(self._journal)))
        except (ValueError, KeyError, AssertionError, TypeError, RecursionError) as error:
            raise SettingError(
                f"{self._journal} is damaged ({type(error).__name__}); delete it: finished runs are kept, and the same "
                "trials are asked for again"
            ) from None

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a full disk or a kill left unfinished; its trial is asked for again."""
        if not self._journal.is_file():
            return
        content = self._journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        before = content.rfind(b"\n", 0, max(0, whole - 1)) + 1
        if whole and not _is_record(content[before:whole]):
            whole = before
        if whole < len(content):
            log.warning("%s: its last line is not whole (a full disk, or a kill) and is dropped", self._journal)
            os.truncate(self._journal, whole)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the journal; the operating system lets go of a killed process's."""
        with self._journal.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            except OSError as error:  # of a full disk optuna does not say which
                error.filename = error.filename or str(self._journal)
                raise


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
