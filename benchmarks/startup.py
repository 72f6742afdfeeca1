"""Seconds until command lines answer, until train.py has made its first step, and until a finished study's table.

    python -m benchmarks.startup --out startup.json

Every figure is a fresh process; they take turns, so that a busy machine slows all of them, and the first turn (cold
files, kernels to compile, caches to make) is dropped. Ratios are to ``import torch`` of the same turn. "floor of a
first step" is what no program of this kind can do without: import torch and transformers' BERT, load the weights.

The first step: from the start of ``train.py`` to the first line of ``metrics.jsonl``, on the packaged encoder and
generated rows of about CoLA's length; the process is then killed. The study: 8 tasks x 4 methods x 5 seeds, all done,
as made-up result files; the command prints the table and writes its files and figures.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark_figures import in_brackets, spread, write_json
from benchmarks.benchmark_parser import make_parser
from benchmarks.glue_rows import ROOT
from benchmarks.machine import machine_facts
from data_utils.canonical_tsv import write_canonical
from data_utils.command_line import status_of
from data_utils.task_def import TaskDef, load_task_defs
from experiments.glue.glue_prepro import GLUE_TASK_DEF
from experiments.study.arguments import build_parser
from experiments.study.plan import plan_jobs
from mt_dnn.config import RunConfig
from mt_dnn.encoder.source import PACKAGED, resolve_encoder
from mt_dnn.identity import KEY, identity_of
from mt_dnn.results import EpochScore, RunResult, Status
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_id

TASKS = ("cola", "mrpc", "rte", "stsb", "qqp", "qnli", "mnli", "sst")
ROWS = 256
FIRST_STEP, FLOOR, TORCH = "train.py, first step", "floor of a first step", "import torch"
LOAD = "import torch, sys; from transformers import BertModel; BertModel.from_pretrained(sys.argv[1])"


def write_data(folder: Path) -> None:
    """Write training and dev files of all tasks, eight words a row."""
    folder.mkdir()
    for name, task_def in load_task_defs(GLUE_TASK_DEF).items():
        if name not in TASKS:
            continue
        for split in (task_def.dataset_name("train"), *map(task_def.dataset_name, task_def.dev_splits)):
            labels = [_label(task_def, i) for i in range(ROWS)]
            text = ["a film about a film that is long"] * ROWS
            second = text if "OneHypothesis" in task_def.data_format.name else None
            write_canonical(folder / f"{split}.tsv", [str(i) for i in range(ROWS)], labels, text, second)


def _label(task_def: TaskDef, i: int) -> str:
    return task_def.labels[i % len(task_def.labels)] if task_def.labels else str(i % 2)


def finish_study(arguments: list[str]) -> int:
    """Write a made-up result for every run of a study; returns their number."""
    jobs = plan_jobs(build_parser().parse_args(arguments))
    task_defs = load_task_defs(GLUE_TASK_DEF)
    for number, job in enumerate(jobs):
        job.folder.mkdir(parents=True)
        directory = RunDirectory(job.folder)
        directory.start({"config": job.config.as_dict(), KEY: identity_of(job.config).as_dict()})
        directory.write_result(_result(job.config, task_defs[job.config.task], 60.0 + number % 17))
    return len(jobs)


def _result(config: RunConfig, task_def: TaskDef, score: float) -> RunResult:
    datasets = [task_def.dataset_name(split) for split in task_def.dev_splits]
    metrics = {dataset: {str(metric): score for metric in task_def.metric_meta} for dataset in datasets}
    epoch = EpochScore(1, score, metrics)
    return RunResult(
        status=Status.OK, task=config.task, encoder=config.encoder, method=config.method, seed=config.seed,
        run_id=run_id(config), primary_metric=str(task_def.primary_metric), datasets=datasets, epochs=config.epochs,
        steps=1, train_examples=ROWS, seconds=1.0, best=epoch, last=epoch, recipe=config.recipe,
    )  # fmt: skip


def commands(scratch: Path) -> dict[str, list[str]]:
    """Name -> command of everything that is timed; their data are made in ``scratch``."""
    data = scratch / "canonical_data"
    write_data(data)
    study = ["--encoder", PACKAGED, "--tasks", ",".join(TASKS), "--data_dir", str(data)]
    study += ["--output_dir", str(scratch / "runs"), "--results_dir", str(scratch / "results"), "--devices", "cpu"]
    print(f"study of {finish_study(study)} runs")
    step = ["--data_dir", str(data), "--method", "pats", "--log_per_updates", "1", "--epochs", "1"]
    folder = str(resolve_encoder(PACKAGED).folder)
    return {
        TORCH: ["-c", "import torch"],
        "import transformers": ["-c", "import transformers"],
        "train.py --help": ["train.py", "--help"],
        "prepro_std.py --help": ["prepro_std.py", "--help"],
        "study --help": ["-m", "experiments.study", "--help"],
        "finished study": ["-m", "experiments.study", *study],
        FLOOR: ["-c", LOAD, folder],
        FIRST_STEP: ["train.py", *step, "--output_dir", str(scratch / "first")],
    }


def time_command(command: list[str]) -> float:
    """Seconds until a command has ended well."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - started


def time_first_step(command: list[str], runs: Path) -> float:
    """Seconds until a run has logged its first step; it is killed then, and its folder removed."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not any(file.stat().st_size for file in runs.glob("**/metrics.jsonl")):
            if process.poll() is not None:
                raise RuntimeError(f"train.py ended with {process.returncode} before its first step")
            time.sleep(0.005)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(runs, ignore_errors=True)


def measure(timed: dict[str, list[str]], turns: int, scratch: Path) -> dict[str, np.ndarray]:
    """Seconds of every command, (turns,) each; the first turn is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(turns + 1):
        for name, command in timed.items():
            first = name == FIRST_STEP
            taken = time_first_step(command, scratch / "first") if first else time_command(command)
            if turn:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = make_parser("startup", __doc__)
    parser.add_argument("--turns", type=int, default=7, help="fresh processes of each kind; default: %(default)s")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"machine": machine_facts(), "turns": options.turns, "seconds": {}}
    with tempfile.TemporaryDirectory() as name:
        seconds = measure(commands(Path(name)), options.turns, Path(name))
    for name, values in seconds.items():
        figures, ratio = spread(values), float(np.median(values / seconds[TORCH]))
        result["seconds"][name] = {**figures, "over_import_torch": ratio}
        print(f"{name:22} {figures['median']:6.2f} s ({in_brackets(figures, 2)}), {ratio:5.2f} x import torch")
    write_json(options.out, result)


if __name__ == "__main__":
    sys.exit(status_of(main))
