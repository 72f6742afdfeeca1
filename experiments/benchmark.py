"""A benchmark: a folder with the task definitions of some data sets, their recipes and published numbers.

``experiments/<name>/`` holds

    <name>_task_def.yml   the tasks (docs/data.md); all that a benchmark must have
    <name>_prepro.py      makes their canonical files
    titles.yml            the tasks in the order of tables, each with its title
    recipes/, ablations/  settings
    paper.yml             published numbers

What it does not have is taken from the default benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The folder of a task definition file."""

    task_def: Path

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> Benchmark | None:
        """The benchmark of a run's recorded settings; None where they do not name it."""
        from data_utils.task_def import in_this_project

        recorded = config.get("task_def")
        return cls(in_this_project(Path(recorded))) if isinstance(recorded, str) else None

    def places(self, name: str) -> tuple[Path, ...]:
        """Paths at which a file or folder is looked for: the benchmark's own folder, then the default benchmark's."""
        return tuple(dict.fromkeys(path.resolve().with_name(name) for path in (self.task_def, DEFAULT.task_def)))


DEFAULT = Benchmark(Path(__file__).resolve().with_name("glue") / "glue_task_def.yml")
"""The benchmark of a command that is told no task definition file."""


@functools.cache
def task_titles() -> dict[str, str]:
    """Task -> its title, of all benchmarks beside the default one, which comes first; in the order of tables."""
    from data_utils.yaml_file import read_yaml

    others = sorted(Path(__file__).resolve().parent.glob("*/titles.yml"))
    titles: dict[str, str] = {}
    for path in dict.fromkeys((*DEFAULT.places("titles.yml"), *others)):
        titles |= {task: str(title) for task, title in read_yaml(path).items() if task not in titles}
    return titles


def in_table_order(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of tables; those that no benchmark names come last, as they are given."""
    known = {task: place for place, task in enumerate(task_titles())}
    return sorted(tasks, key=lambda task: known.get(task, len(known)))
