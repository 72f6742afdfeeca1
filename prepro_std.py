"""Canonical files to token caches.

    python prepro_std.py --model bert-base-uncased --root_dir data/canonical_data

tokenises every ``<task>_<split>.tsv`` there is and writes ``<root_dir>/cache/<model>/<max_seq_len>/<task>_<split>/``.
A cache that is there and fits its file is verified in full and kept; a stale or damaged one is named and made anew.
Training makes missing caches by itself; this makes them ahead of time, once for all runs.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError
from data_utils.names import check_name, slug
from data_utils.task_def import TaskDef, TaskDefs, find_prepro, load_task_defs
from data_utils.token_cache import TokenCache, cache_dir_for, ensure_cache
from data_utils.tokenizer import load_tokenizer
from experiments.benchmark import DEFAULT

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 a mistake in settings or files)."""
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return status_of(lambda: prepare(args))


def _parser() -> CommandParser:
    parser = CommandParser("prepro_std.py", __doc__)
    add = parser.add_argument
    add("--model", default="bert-base-uncased", help="hub name or local folder [%(default)s]")
    add("--root_dir", type=Path, default=Path("data/canonical_data"), help="canonical files [%(default)s]")
    add("--cache_dir", type=Path, help="root of the caches [<root_dir>/cache]")
    add("--task_def", type=Path, default=DEFAULT.task_def, help="task definitions [%(default)s]")
    add("--tasks", help="comma-separated names of the task definition [all that have a file]")
    add("--max_seq_len", type=int, default=512, help="most tokens of an example; longer ones are cut [%(default)s]")
    add("--workers", type=int, help="threads of the tokenizer [all cores]")
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Make or check the cache of every data set asked for, and print a line about each.

    Raises:
        SettingError: a wrong setting, an unknown model, or a malformed file.
        OSError: a file cannot be read or written.
    """
    # Threads and not processes: the tokenizer spends nearly all its time in its own threads, and one large file
    # (MNLI, QQP) would leave all processes but one idle.
    if args.workers is not None:
        if args.workers < 1:
            raise SettingError(f"--workers is {args.workers}; it must be at least 1")
        os.environ["RAYON_NUM_THREADS"] = str(args.workers)
    datasets = find_datasets(args.root_dir, load_task_defs(args.task_def), args.tasks)

    from mt_dnn.encoder.source import tokenizer_folder  # here, so that --help and a wrong folder do not wait for it
    from mt_dnn.run_reference import pretrained_of

    model = pretrained_of(args.model)  # a run has the tokenizer of its encoder
    name = check_name("model", slug(model))
    tokenizer = load_tokenizer(tokenizer_folder(model), name)
    for dataset, task_def in datasets:
        folder = cache_dir_for(args.cache_dir or args.root_dir / "cache", name, args.max_seq_len, dataset)
        tsv = args.root_dir / f"{dataset}.tsv"
        cache = ensure_cache(tsv, task_def, tokenizer, folder, args.max_seq_len, read_all=True)
        print(describe(cache), flush=True)


def find_datasets(root: Path, task_defs: TaskDefs, tasks: str | None) -> list[tuple[str, TaskDef]]:
    """Return (data set name, task) for every canonical file that is there.

    Args:
        root: folder of the canonical files.
        task_defs: all tasks.
        tasks: comma-separated names, or None for all that have a file.

    Raises:
        SettingError: an unknown task, a named task without any file, or no file at all.
    """
    names = list(task_defs) if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    if tasks is None:
        for error in task_defs.refused.values():
            _log.warning("%s; left out", error)
    found = []
    for name in names:
        task_def = task_defs.find(name, "--tasks")
        datasets = [task_def.dataset_name(split) for split in task_def.split_names]
        present = [dataset for dataset in datasets if (root / f"{dataset}.tsv").is_file()]
        if tasks is not None and not present:
            looked = f"looked for {', '.join(datasets)}, each .tsv"
            raise SettingError(f"{root}: no file of task {name} ({looked}); {_remedy(task_defs)}")
        found += [(dataset, task_def) for dataset in present]
    if not found:
        raise SettingError(f"{root}: no canonical file of {', '.join(names)}; {_remedy(task_defs)}")
    return found


def _remedy(task_defs: TaskDefs) -> str:
    prepro = find_prepro(Path(task_defs.path))
    return f"make them with {prepro.name}" if prepro else "docs/data.md tells the form of <task>_train.tsv"


def describe(cache: TokenCache) -> str:
    """Return a line with a cache's place, size and number of truncated examples."""
    manifest = cache.manifest
    line = f"{cache.path}: {len(cache)} examples, {len(cache.tokens)} tokens, longest {cache.lengths.max()}"
    if manifest["truncated"]:
        line += f", {manifest['truncated']} cut to {manifest['max_seq_len']}"
    return line


if __name__ == "__main__":
    sys.exit(main())
