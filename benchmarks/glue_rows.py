"""The rows that benchmarks train on: GLUE's own, or generated ones of the same lengths."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_utils.canonical_tsv import write_canonical
from data_utils.holdout import take
from data_utils.task_def import DataFormat, TaskDef, load_task_defs
from data_utils.token_cache import TokenCache
from experiments.glue.glue_prepro import GLUE_TASK_DEF, convert

ROOT = Path(__file__).resolve().parents[1]
# Mean and standard deviation of ln(tokens) in the real training sets, special tokens included, for generated rows.
LOG_LENGTHS = {"cola": (2.34, 0.36), "mrpc": (3.94, 0.24), "rte": (4.07, 0.52), "stsb": (3.23, 0.42)}
TASKS = tuple(LOG_LENGTHS)
GENERATED_ROWS = {"train": 2000, "dev": 400}


def find_data(data_dir: Path | None, scratch: Path, tasks: Sequence[str] = TASKS) -> tuple[str, Path]:
    """Find or make the canonical files ``<task>_train.tsv`` and ``<task>_dev.tsv``.

    Args:
        data_dir: folder that holds them; None converts GLUE's files of the folder PATS_GLUE_DIR, or generates rows
            where there is no such folder.
        scratch: folder to write into; its sub-folder ``canonical_data`` must not exist.
        tasks: names of ``TASKS``.

    Returns:
        What the rows are, for the report, and the folder.
    """
    if data_dir is not None:
        return "rows of --data_dir", data_dir
    raw = Path(os.environ.get("PATS_GLUE_DIR", ROOT.parent / "shared" / "glue"))
    canonical = scratch / "canonical_data"
    if raw.is_dir():
        with contextlib.redirect_stdout(io.StringIO()):  # its row counts; warnings go to stderr
            convert(raw, canonical, tasks=tuple(tasks))
        return "GLUE's rows", canonical
    canonical.mkdir()
    task_defs = load_task_defs(GLUE_TASK_DEF)
    for name in tasks:
        for split in GENERATED_ROWS:
            generate(task_defs[name], split, canonical)
    return "generated rows", canonical


def generate(task_def: TaskDef, split: str, folder: Path) -> None:
    """Write rows of one word over and over, as long as a task's rows are; labels take turns."""
    mean, deviation = LOG_LENGTHS[task_def.name]
    n = GENERATED_ROWS[split]
    rng = np.random.default_rng([TASKS.index(task_def.name), split == "dev"])
    single = task_def.data_format is DataFormat.PremiseOnly
    # [CLS] words [SEP], and word [SEP] of a second sentence.
    words = np.maximum(5, np.exp(rng.normal(mean, deviation, size=n))).astype(int) - (2 if single else 4)
    labels = task_def.labels or [str(i) for i in range(max(2, task_def.n_class))]
    write_canonical(
        folder / f"{task_def.dataset_name(split)}.tsv",
        [str(i) for i in range(n)],
        [labels[i % len(labels)] for i in range(n)],
        [" ".join(["movie"] * count) for count in words],
        None if single else ["movie"] * n,
    )


def evenly_spaced(cache: TokenCache, n: int) -> TokenCache:
    """Take ``n`` of a cache's rows, evenly spaced, into memory.

    Raises:
        ValueError: the cache does not have that many, or ``n`` is below 1.
    """
    if not 1 <= n <= len(cache):
        raise ValueError(f"n is {n}; {cache.path} has rows for 1 to {len(cache)}")
    rows = np.linspace(0, len(cache) - 1, n).round().astype(np.int64)
    return take(cache, rows)
