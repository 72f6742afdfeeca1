"""Runs with trouble in them, for the tests of the report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from data_utils.json_file import read_json
from mt_dnn.results import Status
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json

EVIL = "\"'><script>window.evil=1<script><img src=x onerror=window.evil=1>&amp;"


def write_study(runs: Path, seeds: int = 3) -> Path:
    """A ``study.json`` beside the folder that wants the seeds from 1 of every cell in it; returns its path."""
    cells = [
        {"encoder": encoder, "method": method, "task": task, "run_id": run_id, "seeds": list(range(1, seeds + 1))}
        for task, encoder, method, run_id in sorted(path.relative_to(runs).parts for path in runs.glob("*/*/*/*"))
    ]
    path = runs.parent / "some_study" / "study.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": cells}))
    return path


def fail(folder: Path, error: str) -> None:
    """Make a finished run a failed one."""
    directory = RunDirectory(folder)
    result = directory.read_result()
    assert result is not None
    directory.write_result(dataclasses.replace(result, status=Status.FAILED, error=error, best=None, last=None))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings in a run's ``run.json``."""
    config = read_json(folder / "run.json")["config"]
    edit_json(folder / "run.json", config=config | changes)


def call_method(folder: Path, name: str) -> Path:
    """Give a run's method another name; returns the run's new folder."""
    method = folder.parents[1]
    moved = method.rename(method.with_name(name)) / folder.relative_to(method)
    for result_json in moved.parents[1].glob("*/seed=*/result.json"):
        edit_json(result_json, method=name)
    return moved
