"""The settings that a search may choose: a recipe's grid, with values as a run holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.errors import SettingError
from experiments.study.recipe import Recipe, nested, run_configs
from mt_dnn.config import RunConfig

Point = tuple[int, ...]
"""Index of the value on each axis, from 0."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting and its values; numbers in ascending order, anything else as the recipe lists it."""

    key: str
    """Dotted setting, e.g. ``pats.noise_scale``."""
    values: tuple[Any, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether the values are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True, slots=True)
class Space:
    """All combinations of the axes' values."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Values of each axis."""
        return tuple(len(axis.values) for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    def point(self, number: int) -> Point:
        """The point of a number in [0, size), the last axis fastest."""
        return tuple(int(i) for i in np.unravel_index(number, self.shape))

    def settings(self, point: Point) -> dict[str, Any]:
        """Dotted setting -> value."""
        return {axis.key: axis.values[i] for axis, i in zip(self.axes, point, strict=True)}

    def configure(self, config: RunConfig, point: Point) -> RunConfig:
        """A run with the settings of a point.

        Raises:
            SettingError: settings that do not go together.
        """
        changes = nested(self.settings(point), config.method)
        try:
            settings = {
                name: dataclasses.replace(given, **changes.pop(name, {}))
                for name, given in config.method_settings.items()
            }
            return dataclasses.replace(config, **changes, method_settings=settings)
        except ValueError as error:
            raise SettingError(f"{config.method} with {self.settings(point)}: {error}") from None


def search_space(recipe: Recipe, task: str, fixed: Collection[str], task_def: Path) -> Space:
    """The space of a recipe's grid.

    Args:
        recipe: The recipe.
        task: One of its tasks, to read the values with.
        fixed: Dotted settings that are not searched although the grid has them.
        task_def: File with the task definitions.

    Raises:
        SettingError: nothing is left to search, a value out of its range, or a setting that the method does not have.
    """
    parts = recipe.method.split("+")
    grid = {key: list(values) for key, values in recipe.grid.items() if key not in fixed}
    strange = [key for key in grid if "." in key and key.partition(".")[0] not in parts]
    if strange:
        raise SettingError(f"{recipe.path}: grid.{strange[0]} is no setting of {recipe.method}; drop it from the grid")
    if not grid:
        raise SettingError(
            f"{recipe.path} has nothing to search{' that --set does not fix' if recipe.grid else ''}: give it a grid, "
            "such as grid: {learning_rate: [1.0e-5, 1.0e-4]}"
        )
    read: dict[str, list[Any]] = {key: [] for key in grid}
    # Each value once, those of different settings together: parsing is what takes time.
    for number in range(max(map(len, grid.values()))):
        given = {key: values[number % len(values)] for key, values in grid.items()}
        (config,) = run_configs(recipe, [task], [0], given, task_def=task_def, origin=f"{recipe.path}, grid:")
        for key, values in read.items():
            if number < len(grid[key]):
                values.append(_value(config, key))
    axes = []
    for key, values in read.items():
        axis = Axis(key, tuple(dict.fromkeys(values)))
        axes.append(Axis(key, tuple(sorted(axis.values))) if axis.is_ordered else axis)
    return Space(tuple(axes))


def _value(config: RunConfig, key: str) -> Any:
    group, dot, name = key.partition(".")
    return getattr(config.method_settings[group], name) if dot else getattr(config, group)
