"""Scores of a study's finished runs on other sets: ``--evaluate_on mnli:anlir1,advglue_mnli``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_utils.canonical_tsv import read_canonical, unique_uids
from data_utils.errors import SettingError, error_line, shown
from data_utils.file_hash import remembered_sha256
from experiments.study.launch.job import Job
from mt_dnn.data import dev_sets, find_task_def
from mt_dnn.run_directory import RunDirectory
from mt_dnn.scores_elsewhere import (
    ScoreElsewhere,
    read_elsewhere,
    write_elsewhere,
    write_predictions_elsewhere,
)


def parse_sets(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read ``mnli:anlir1,advglue_mnli`` and the like; task -> names of sets.

    Raises:
        SettingError: no task, or no set.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        task, _, names = text.partition(":")
        sets = tuple(name for part in names.split(",") if (name := part.strip()))
        if not task.strip() or not sets:
            raise SettingError(f"--evaluate_on {shown(text)}: give TASK:SET,SET such as mnli:anlir1,advglue_mnli")
        found[task.strip()] = found.get(task.strip(), ()) + sets
    return found


def find_sets(jobs: Sequence[Job], given: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Find the files of ``--evaluate_on`` and check them before anything is computed.

    Args:
        jobs: The study's runs.
        given: Values of ``--evaluate_on``.

    Returns:
        Task -> name of a set, such as ``anlir1_dev`` -> its canonical file.

    Raises:
        SettingError: a task that is not in the study, a missing file, one whose rows or labels are not the task's, or
            runs that keep no weights.
    """
    found: dict[str, dict[str, Path]] = {}
    for task, names in parse_sets(given).items():
        if "+" in task:
            raise SettingError(f"--evaluate_on {task}: other sets are for runs with one task; name one trained alone")
        config = next((job.config for job in jobs if job.config.task == task), None)
        if config is None:
            together = next((job.config.task for job in jobs if task in job.config.tasks), None)
            told = f"other sets are for runs with one task, and the study has {together}" if together else ""
            raise SettingError(f"--evaluate_on {task}: {told or 'the study has no run of it'}")
        if config.save not in ("best", "both"):
            raise SettingError(f"--evaluate_on {task}: its runs keep no weights (save: {config.save}); --set save=best")
        for name in names:
            files = [config.data_dir / f"{stem}.tsv" for stem in (f"{name}_dev", name)]
            path = next((path for path in files if path.is_file()), None)
            if path is None:
                raise SettingError(
                    f"--evaluate_on {task}:{name}: no file {files[0]}; docs/data.md tells how to make one"
                )
            task_def = find_task_def(config)
            if path.stem in dev_sets(config, task_def):
                raise SettingError(f"--evaluate_on {task}:{name}: every run is scored on {path.stem} already; drop it")
            unique_uids(np.char.encode(read_canonical(path, task_def).uids), path)
            found.setdefault(task, {})[path.stem] = path
    return found


def score_elsewhere(jobs: Sequence[Job], sets: Mapping[str, Mapping[str, Path]], device: str) -> None:
    """Score the best epoch of every finished run on its task's other sets; what is there of the same weights stays.

    A run that cannot be scored, of an earlier version or without weights, is named on standard error.
    """
    for job in jobs:
        wanted = sets.get(job.config.task, {})
        result = RunDirectory(job.folder).read_result() if wanted else None
        if result is None or not result.done or result.best is None:
            continue
        found = read_elsewhere(job.folder, result)
        digests = {name: remembered_sha256(path) for name, path in wanted.items()}
        kept = {name for name, score in found.items() if score.sha256 == digests.get(name) and score.predictions}
        todo = [name for name in wanted if name not in kept]
        if not todo:
            continue
        try:
            found |= {name: _score(job, wanted[name], digests[name], device) for name in todo}
        except SettingError as error:
            print(f"not scored on {', '.join(todo)}: {job.label}: {error_line(error)}", file=sys.stderr)
            continue
        write_elsewhere(job.folder, found)
        print(f"{job.label}: scored on {', '.join(todo)}", file=sys.stderr)


def _score(job: Job, tsv: Path, digest: str, device: str) -> ScoreElsewhere:
    # Slow imports: a study without other sets does without torch in this process.
    from mt_dnn.checkpoint import weights_file
    from mt_dnn.encoder.files import quiet_transformers
    from mt_dnn.trained.load import load_run, read_run
    from mt_dnn.trained.scoring import canonical_rows, logits_on, score

    run = read_run(job.folder)
    with quiet_transformers():
        model = load_run(run, "best", device)
    rows = canonical_rows(tsv, model.task_def)
    logits = logits_on([model], rows, job.config.eval_batch_tokens, str(tsv))
    arrays = {"uids": np.char.encode(rows.rows.uids), "labels": np.asarray(rows.labels), "best_logits": logits}
    weights = weights_file(run.directory.checkpoints, "best").relative_to(job.folder).as_posix()
    return ScoreElsewhere(
        digest, run.result.files.get(weights, ""), len(rows.labels), score(model.task_def, logits, rows.labels),
        write_predictions_elsewhere(job.folder, tsv.stem, arrays),
    )  # fmt: skip
