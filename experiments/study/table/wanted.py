"""The cells that a study consists of, read from its ``study.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.errors import SettingError
from data_utils.json_file import read_json
from experiments.study.fields import Fields


@dataclass(frozen=True, slots=True)
class Wanted:
    """The cells of a study."""

    cells: Mapping[tuple[str, str, str], tuple[str, tuple[int, ...]]]
    """(encoder, method, task) -> (run id, seeds)."""
    trials: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """Of the same keys -> settings tried; 1 where a study says nothing."""
    command: str = ""
    """Command line of the study; empty where it says nothing."""

    @classmethod
    def read(cls, path: Path) -> Wanted:
        """Read ``study.json``.

        Raises:
            SettingError: there is no such file, or it is not a study's.
        """
        try:
            content = Fields(read_json(path), str(path))
        except FileNotFoundError:
            raise SettingError(f"--study: no file {path}; give the study.json that a study wrote") from None
        if "cells" not in content.values:
            raise SettingError(
                f"--study: {path} has no cells; give the study.json of experiments.study or figure2 (not that of "
                "an ablation, a search or figure3)"
            )
        return cls._of(content.mappings("cells"), content.text("command", ""))

    @classmethod
    def of(cls, cells: Iterable[Mapping[str, Any]]) -> Wanted:
        """The cells of ``study.json``, each a mapping of encoder, method, task, run_id, seeds and trials."""
        return cls._of([Fields(cell, f"cells[{i}]") for i, cell in enumerate(cells)])

    @classmethod
    def _of(cls, cells: Iterable[Fields], command: str = "") -> Wanted:
        found: dict[tuple[str, str, str], tuple[str, tuple[int, ...]]] = {}
        trials = {}
        for cell in cells:
            key = (cell.name("encoder"), cell.name("method"), cell.name("task"))
            if key in found:
                raise SettingError(f"{cell.where}: {', '.join(key)} stands there twice; keep one")
            found[key] = (cell.name("run_id"), cell.seeds("seeds"))
            trials[key] = cell.integer("trials", 1, default=1)
        return cls(found, trials, command)
