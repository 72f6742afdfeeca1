"""The difference of two methods' scores, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.study.statistics.intervals import Interval, t_interval


@dataclass(frozen=True, slots=True)
class Difference:
    """A method minus another one, over the seeds that both have; at least one."""

    other: str
    """The method that is subtracted."""
    by_seed: Mapping[int, float]
    """Seed -> points; NaN where one of the two has no score."""
    size: float = 100.0
    """Of the numbers that were subtracted; percent unless told otherwise."""

    @classmethod
    def between(cls, other: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
        """Subtract numbers of any unit, by seed: two mappings with the same seeds, at least one."""
        size = max(map(abs, (*ours.values(), *theirs.values())))
        return cls(other, {seed: value - theirs[seed] for seed, value in ours.items()}, size)

    @property
    def values(self) -> list[float]:
        """Differences in points, by seed."""
        return list(self.by_seed.values())

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Mean difference in points."""
        return math.fsum(self.by_seed.values()) / len(self.by_seed)

    @property
    def std(self) -> float | None:
        """Sample deviation of the differences of one seed; None with fewer than two."""
        return sample_std(self.values)

    @property
    def interval(self) -> Interval:
        """Student's 95 % interval of the mean."""
        return t_interval(self.values, self.size)


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None with fewer than two values, NaN when one is."""
    if len(values) < 2:
        return None
    return math.nan if any(math.isnan(v) for v in values) else statistics.stdev(values)
