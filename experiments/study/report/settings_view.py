"""The settings of the runs, and their differences beyond the compared ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from experiments.study.report.run_view import RunView
from experiments.study.table.cells import Cell

# Names of the run, and where it was computed: they differ by nature.
_NAMES = frozenset(
    {
        "run_id", "task", "encoder", "method", "seed", "recipe", "command", "config.seed", "config.recipe",
        "config.method", "config.train_datasets", "config.test_datasets", "config.init_checkpoint", "config.device",
        "config.task_def", "config.data_dir", "config.cache_dir", "config.output_dir",
    }
)  # fmt: skip
_OF_METHODS = "config.method_settings."
# Equal within one task, or within one encoder, when all is well.
_WITHIN: Mapping[str, Callable[[Cell], str]] = {
    "identity.data.": lambda cell: cell.task,
    "identity.task_def.": lambda cell: cell.task,
    "identity.encoder.": lambda cell: cell.encoder,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A value of one cell."""

    text: str
    """Values of several seeds stand beside each other, parted by a bar."""
    odd: bool
    """Unlike most methods' on this encoder and task, or not the same for all seeds."""


@dataclass(frozen=True, slots=True)
class CellSettings:
    """The settings of one cell."""

    cell: Cell
    views: tuple[RunView, ...]
    values: Mapping[str, Setting]
    """Every key of ``run.json``, dotted."""

    @property
    def of_method(self) -> dict[str, Setting]:
        """The method's own settings; of methods joined with ``+`` by their names on the command line."""
        prefix = _OF_METHODS if "+" in self.cell.method else f"{_OF_METHODS}{self.cell.method}."
        return {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of all cells."""

    cells: tuple[CellSettings, ...]
    differing: tuple[str, ...]
    """Keys that are not the same everywhere, names and methods' own settings left out."""


def compare_settings(views: Sequence[RunView]) -> Settings:
    """Gather the settings of every cell.

    Args:
        views: Runs, those of a cell one after the other.
    """
    grouped = [(of_cell[0].cell, of_cell) for _, group in groupby(views, lambda v: id(v.cell)) if (of_cell := [*group])]
    flat = [[dict(_flatten(v.description)) for v in of_cell if v.description] for _, of_cell in grouped]
    usual = _usual((cell, values) for (cell, _), of_seeds in zip(grouped, flat, strict=True) for values in of_seeds)
    found = []
    for (cell, of_cell), of_seeds in zip(grouped, flat, strict=True):
        values = {}
        for key in dict.fromkeys(key for one in of_seeds for key in one):
            texts = list(dict.fromkeys(one.get(key, "") for one in of_seeds))
            odd = key not in _NAMES and (len(texts) > 1 or texts[0] != usual[_place(cell, key)])
            values[key] = Setting(" | ".join(texts), odd)
        found.append(CellSettings(cell, tuple(of_cell), values))
    return Settings(tuple(found), tuple(_differing(found)))


def config_text(key: str) -> str:
    """A key as it is given on the command line, such as ``epochs``; keys outside the configuration as they are."""
    return key.removeprefix("config.")


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _place(cell: Cell, key: str) -> tuple[str, ...]:
    """The group in which a value is compared: its method's tasks for a method's setting, else the task's methods."""
    return (key, cell.encoder, "" if key.startswith(_OF_METHODS) else cell.task)


def _usual(of_runs: Iterable[tuple[Cell, Mapping[str, str]]]) -> dict[tuple[str, ...], str]:
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for cell, values in of_runs:
        for key, text in values.items():
            counts.setdefault(_place(cell, key), Counter())[text] += 1
    return {place: counter.most_common(1)[0][0] for place, counter in counts.items()}


def _differing(found: Sequence[CellSettings]) -> Iterable[str]:
    for key in dict.fromkeys(key for one in found for key in one.values):
        if key in _NAMES or key.startswith(_OF_METHODS):
            continue
        group = next((group for prefix, group in _WITHIN.items() if key.startswith(prefix)), lambda cell: "")
        texts: dict[str, set[str]] = {}
        for one in found:
            if one.values:
                texts.setdefault(group(one.cell), set()).add(one.values[key].text if key in one.values else "")
        if any(len(some) > 1 for some in texts.values()):
            yield key
