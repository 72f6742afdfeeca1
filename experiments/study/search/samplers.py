"""Samplers of a search space: all points, a random part, or a quasi-random sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from experiments.study.search.space import Point, Space

QuasiRandom = Literal["sobol", "halton"]


class Sampler(Protocol):
    """A source of the points of one (encoder, method, task)."""

    @property
    def trials(self) -> int:
        """Number of points that it proposes altogether."""

    def asked(self) -> Sequence[Point]:
        """Points proposed so far, in order."""

    def ask(self, told: Mapping[Point, float]) -> Sequence[Point]:
        """Propose points, earlier ones included.

        Args:
            told: Score of every point whose trial is over; NaN for one that came to nothing.
        """


class Planned:
    """Points that are known from the start."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = tuple(points)

    @property
    def trials(self) -> int:
        """Number of points."""
        return len(self._points)

    def asked(self) -> Sequence[Point]:
        """All points."""
        return self._points

    def ask(self, told: Mapping[Point, float]) -> Sequence[Point]:
        """All points."""
        return self._points


def grid_points(space: Space, trials: int | None, seed: int) -> list[Point]:
    """Every point in order, or with ``trials`` the first of a random permutation; a larger number keeps a smaller's."""
    if trials is None or trials >= space.size:
        return [space.point(number) for number in range(space.size)]
    return [space.point(int(number)) for number in np.random.default_rng(seed).permutation(space.size)[:trials]]


def quasi_random_points(space: Space, trials: int, seed: int, sequence: QuasiRandom) -> list[Point]:
    """The first distinct points of a scrambled Sobol or Halton sequence over the grid's indices.

    Args:
        space: The grid; each axis is cut into as many equal parts as it has values.
        trials: How many, >= 1; never more than the grid has. A larger number keeps the points of a smaller.
        seed: Of the scrambling.
        sequence: Which.
    """
    from scipy.stats import qmc

    engine = (qmc.Sobol if sequence == "sobol" else qmc.Halton)(len(space.axes), scramble=True, seed=seed)
    wanted = min(trials, space.size)
    shape = np.array(space.shape)
    found: dict[Point, None] = {}
    while len(found) < wanted:
        # A power of two at a time: Sobol's points are balanced in such blocks.
        block = engine.random(2 ** max(4, math.ceil(math.log2(wanted))))
        indices = np.minimum((block * shape).astype(np.int64), shape - 1)
        found |= dict.fromkeys(tuple(int(i) for i in row) for row in indices)
    return list(found)[:wanted]
