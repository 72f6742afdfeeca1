"""Canonical files to token caches.

    python prepro_std.py --model bert-base-uncased --root_dir data/canonical_data

tokenises every ``<task>_<split>.tsv`` there is and writes ``<root_dir>/cache/<model>/<max_seq_len>/<task>_<split>/``.
What is there already and fits is verified and kept. Training makes missing caches by itself; this makes them ahead of
time, once for all runs.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from data_utils.errors import SettingError
from data_utils.task_def import TaskDef, load_task_defs
from data_utils.token_cache import cache_dir_for, ensure_cache
from data_utils.tokenizer import load_tokenizer

_ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Job:
    """One data set to tokenise; small and picklable, because it goes to a worker process."""

    tsv: Path
    task_def: TaskDef
    tokenizer: Path
    tokenizer_name: str
    cache_dir: Path
    max_seq_len: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 a mistake in settings or files)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base-uncased", help="hub name or local folder [%(default)s]")
    parser.add_argument(
        "--root_dir", type=Path, default=Path("data/canonical_data"), help="canonical files [%(default)s]"
    )
    parser.add_argument("--cache_dir", type=Path, help="root of the caches [<root_dir>/cache]")
    parser.add_argument(
        "--task_def", type=Path, default=_ROOT / "experiments/glue/glue_task_def.yml", help="[%(default)s]"
    )
    parser.add_argument("--tasks", help="comma-separated names of the task definition [all with a file]")
    parser.add_argument("--max_seq_len", type=int, default=512, help="most tokens of an example [%(default)s]")
    parser.add_argument("--workers", type=int, default=1, help="data sets tokenised at once [%(default)s]")
    args = parser.parse_args(argv)
    try:
        if args.workers < 1:
            raise SettingError(f"--workers is {args.workers}; it must be at least 1")
        from mt_dnn.encoder import resolve_encoder  # slow import, and not needed for --help

        source = resolve_encoder(args.model)
        load_tokenizer(source.folder, source.name)  # a model without a usable tokenizer fails here, once
        cache_root = args.cache_dir or args.root_dir / "cache"
        jobs = [
            Job(
                tsv=args.root_dir / f"{dataset}.tsv",
                task_def=task_def,
                tokenizer=source.folder,
                tokenizer_name=source.name,
                cache_dir=cache_dir_for(cache_root, source.name, args.max_seq_len, dataset),
                max_seq_len=args.max_seq_len,
            )
            for dataset, task_def in find_datasets(args.root_dir, load_task_defs(args.task_def), args.tasks)
        ]
        for line in run_jobs(jobs, args.workers):
            print(line, flush=True)
    except (SettingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_datasets(root: Path, task_defs: dict[str, TaskDef], tasks: str | None) -> list[tuple[str, TaskDef]]:
    """Return (data set name, task) for every canonical file that is there.

    Args:
        root: folder of the canonical files.
        task_defs: all tasks.
        tasks: comma-separated names, or None for all that have a file.

    Raises:
        SettingError: an unknown task, a named task without any file, or no file at all.
    """
    names = list(task_defs) if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    unknown = [name for name in names if name not in task_defs]
    if unknown:
        raise SettingError(f"--tasks: {unknown[0]!r} is not defined; defined: {', '.join(task_defs)}")
    found = []
    for name in names:
        task_def = task_defs[name]
        datasets = [task_def.dataset_name(split) for split in task_def.split_names]
        present = [dataset for dataset in datasets if (root / f"{dataset}.tsv").is_file()]
        if tasks is not None and not present:
            raise SettingError(f"{root}: no file of task {name} (looked for {', '.join(datasets)}, each .tsv)")
        found += [(dataset, task_def) for dataset in present]
    if not found:
        raise SettingError(
            f"{root}: no canonical file of {', '.join(names)}; experiments/glue/glue_prepro.py makes them"
        )
    return found


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterable[str]:
    """Make all caches, ``workers`` at a time, and yield a line about each as it is done."""
    if workers == 1 or len(jobs) == 1:
        yield from map(run_job, jobs)
        return
    # Largest first, so that no big data set starts last. "spawn": forking a process with threads is unsafe.
    ordered = sorted(jobs, key=lambda job: job.tsv.stat().st_size, reverse=True)
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_job, job) for job in ordered]):
            yield future.result()


def run_job(job: Job) -> str:
    """Make or check one cache and describe it in a line."""
    tokenizer = load_tokenizer(job.tokenizer, job.tokenizer_name)
    cache = ensure_cache(job.tsv, job.task_def, tokenizer, job.cache_dir, job.max_seq_len)
    truncated = cache.manifest["truncated"]
    return f"{job.cache_dir}: {len(cache)} examples, {len(cache.tokens)} tokens, longest {cache.lengths.max()}" + (
        f", {truncated} truncated to {job.max_seq_len}" if truncated else ""
    )


if __name__ == "__main__":
    sys.exit(main())
