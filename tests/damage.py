"""What damaged files do to the commands that read them: every file x flipped bits, truncations and an empty file.

    python -m tests.damage                          the table, for five places of each file (some minutes)
    python -m tests.damage --flips 40 --out damage.md

A damage is *named* where the command says which file is wrong, *harmless* where it gives what it gives without the
damage, *silent* where it gives something else without a word, and a *traceback* where it ends in anything but one line
or an answer: also a crash or a hang. Silent damages and tracebacks are faults.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

KINDS = ("named", "harmless", "silent", "traceback")
_SECONDS = 120  # after which a command hangs
_SETUP_SECONDS = 1800
_HANGS, _RAISED = 97, 98  # exit statuses of a child that no command has
# Clock times, when the report was written, and how long something took.
_TIMES = re.compile(r'\d+:\d\d(:\d\d)?|data-written="[\d.]+"|\d+(\.\d+)? ?s\b')

Command = Callable[[Path], int | None]
"""Runs in a process of its own, over a folder made by :func:`make`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    status: int
    """Exit status, negative after a signal."""
    answer: str
    """What it printed, and the hashes of what it wrote; without times."""
    errors: str


@dataclass(frozen=True, slots=True)
class Victim:
    """Files that are damaged one at a time, and the commands that read them."""

    label: str
    pattern: str
    """Relative to the folder; every file that matches is a victim."""
    commands: tuple[str, ...]


VICTIMS = (
    Victim("canonical TSV", "data/cola_train.tsv", ("again",)),
    Victim("canonical TSV of the dev set", "data/cola_dev.tsv", ("again",)),
    Victim("encoder weights", "encoder/model.safetensors", ("again", "go on")),
    Victim("encoder config", "encoder/config.json", ("again",)),
    Victim("encoder tokenizer", "encoder/tokenizer.json", ("again",)),
    Victim("encoder tokenizer config", "encoder/tokenizer_config.json", ("again",)),
    Victim("cache arrays", "data/cache/*/*/cola_*/*.npy", ("fresh",)),
    Victim("cache manifest", "data/cache/*/*/cola_*/manifest.json", ("fresh",)),
    Victim("cache stamp", "data/cache/*/*/cola_*/verified.json", ("fresh",)),
    Victim("run.json", "runs/cola/*/pats/*/seed=1/run.json", ("tables", "report", "predict", "again")),
    Victim("result.json", "runs/cola/*/pats/*/seed=1/result.json", ("tables", "significance", "report", "again")),
    Victim("predictions.npz", "runs/cola/*/pats/*/seed=1/predictions.npz", ("significance",)),
    Victim("metrics.jsonl", "runs/cola/*/pats/*/seed=1/metrics.jsonl", ("report",)),
    Victim("sensitivity.json", "runs/cola/*/pats/*/seed=1/sensitivity.json", ("figure2",)),
    Victim("kept weights", "runs/cola/*/pats/*/seed=1/checkpoints/*/model.safetensors", ("predict", "export")),
    Victim("resume checkpoint", "broken/cola/*/*/*/seed=1/checkpoints/last-*/*", ("go on",)),
    Victim("run.json of a run that broke off", "broken/cola/*/*/*/seed=1/run.json", ("go on",)),
    Victim("metrics.jsonl of a run that broke off", "broken/cola/*/*/*/seed=1/metrics.jsonl", ("go on",)),
    Victim("exported folder", "exported/*[!d]", ("predict exported",)),
    Victim("study.json", "results/study/study.json", ("tables", "significance", "report")),
    Victim("search.json", "results/search/search.json", ("search tables",)),
)


def _settings(root: Path, output: str, **changes: object) -> list[str]:
    values = {
        "data_dir": root / "data", "train_datasets": "cola", "init_checkpoint": root / "encoder", "method": "pats",
        "output_dir": root / output, "epochs": 5, "batch_size": 16, "learning_rate": 3e-2, "seed": 1,
        "precision": "fp32", "tensorboard": "false", "device": "cpu", "threads": 1, "save": "both",
        "sensitivity_beta": 0.75, "checkpoint_seconds": 0.0, "log_per_updates": 2, **changes,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in values.items()]


def _again(root: Path) -> int:
    import train

    return train.main(_settings(root, "runs"))


def _fresh(root: Path) -> int:
    import train

    return train.main(_settings(root, "out"))


def _go_on(root: Path) -> int:
    import train

    status = train.main(_settings(root, "broken"))
    for file in root.glob("broken/*/*/*/*/*/checkpoints/*/model.safetensors"):
        print(file.relative_to(root), hashlib.sha256(file.read_bytes()).hexdigest())
    return status


def _tables(root: Path) -> int:
    from experiments.study import tables

    return tables.main([str(root / "runs"), "--study", str(root / "results/study/study.json")])


def _significance(root: Path) -> int:
    from experiments.study import significance

    study = str(root / "results/study/study.json")
    return significance.main([str(root / "runs"), "--study", study, "--resamples", "100"])


def _report(root: Path) -> int:
    from experiments.study.report import __main__ as report

    study, out = root / "results/study/study.json", root / "out.html"
    status = report.main([str(root / "runs"), "--study", str(study), "--tests", "none", "--out", str(out)])
    if out.is_file():
        print(out.read_text(encoding="utf-8"))
    return status


def _figure2(root: Path) -> int:
    from experiments.glue import figure2

    status = figure2.main([*_study_arguments(root), "--results_dir", str(root / "out"), "--name", "figure"])
    for file in sorted((root / "out").rglob("*.csv")):
        print(file.name, file.read_text())
    return status


def _predict(root: Path) -> int:
    import predict

    (run,) = root.glob("runs/cola/*/pats/*/seed=1")
    status = 0
    for epoch in ("best", "last"):
        arguments = [str(run), str(root / "data/cola_dev.tsv"), "--epoch", epoch, "--device", "cpu"]
        status = status or predict.main(arguments)
    return status


def _predict_exported(root: Path) -> int:
    import predict

    return predict.main([str(root / "exported"), str(root / "data/cola_dev.tsv"), "--device", "cpu"])


def _export(root: Path) -> int:
    from mt_dnn import export

    (run,) = root.glob("runs/cola/*/pats/*/seed=1")
    status = 0
    for epoch in ("best", "last"):
        status = status or export.main([str(run), str(root / "out" / epoch), "--epoch", epoch])
    return status


def _search_tables(root: Path) -> int:
    from experiments.study.search.__main__ import main

    out = root / "out"
    status = main([str(root / "results/search/search.json"), "--runs", str(root / "runs"), "--out", str(out)])
    for file in sorted(out.glob("*.csv")):
        print(file.read_text())
    return status


COMMANDS: Mapping[str, Command] = {
    "again": _again,
    "fresh": _fresh,
    "go on": _go_on,
    "tables": _tables,
    "significance": _significance,
    "report": _report,
    "figure2": _figure2,
    "predict": _predict,
    "predict exported": _predict_exported,
    "export": _export,
    "search tables": _search_tables,
}

_RECIPE = """\
encoder: {encoder}
method: {method}
source: the damage table
settings: {{epochs: 5, batch_size: 16, precision: fp32, tensorboard: false, save: both, sensitivity_beta: 0.75,
  checkpoint_seconds: 0.0, log_per_updates: 2}}
tasks: {{cola: {{learning_rate: 3.0e-2}}}}
grid: {{learning_rate: [3.0e-2, 1.0e-2]}}
"""


def make(root: Path) -> None:
    """Fill a folder: data, an encoder, a study of two methods with a search, an export, a run that broke off."""
    from tests.tiny import as_glue, make_encoder, make_task

    make_encoder(root / "encoder")
    make_task(root / "tiny")
    as_glue(root / "tiny", root / "data")
    shutil.rmtree(root / "tiny")
    for method in ("vanilla", "pats"):
        (root / f"{method}.yml").write_text(_RECIPE.format(encoder=root / "encoder", method=method))
    _must(_outcome(_study, root, _SETUP_SECONDS))
    _must(_outcome(_search, root, _SETUP_SECONDS))
    _must(_outcome(_break_off, root, _SETUP_SECONDS), 75)
    _must(_outcome(_export_once, root, _SETUP_SECONDS))
    shutil.rmtree(root / "out", ignore_errors=True)


def _study_arguments(root: Path) -> list[str]:
    return [
        "--recipes", f"{root / 'vanilla.yml'},{root / 'pats.yml'}", "--data_dir", str(root / "data"), "--output_dir",
        str(root / "runs"), "--seeds", "2", "--tasks", "cola", "--devices", "cpu", "--workers_per_device", "1",
    ]  # fmt: skip


def _study(root: Path) -> int:
    from experiments.study.__main__ import main as study_main

    return study_main([*_study_arguments(root), "--results_dir", str(root / "results"), "--name", "study"])


def _search(root: Path) -> int:
    from experiments.study.__main__ import main as study_main

    more = ["--results_dir", str(root / "results"), "--name", "search", "--search", "grid", "--search_seeds", "101,"]
    return study_main([*_study_arguments(root), *more])


def _break_off(root: Path) -> int:
    import train
    from mt_dnn import progress

    @contextmanager
    def stopping(label: str, shown: bool = True) -> Iterator[Callable[[progress.Progress], None]]:
        yield lambda made: signal.raise_signal(signal.SIGTERM) if made.step == 12 else None

    progress.progress_bar = stopping
    return train.main(_settings(root, "broken"))


def _export_once(root: Path) -> int:
    from mt_dnn import export

    (run,) = root.glob("runs/cola/*/pats/*/seed=1")
    return export.main([str(run), str(root / "exported")])


def _must(outcome: Outcome, status: int = 0) -> None:
    if outcome.status != status:
        raise RuntimeError(f"exit status {outcome.status}, not {status}:\n{outcome.answer}\n{outcome.errors}")


def _outcome(command: Command, root: Path, seconds: int = _SECONDS) -> Outcome:
    """Run a command in a child process, which may crash or hang."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _in_child(command, root, out.fileno(), errors.fileno(), seconds)
        _, code = os.waitpid(child, 0)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Outcome(os.waitstatus_to_exitcode(code), _TIMES.sub("", texts[0]), texts[1])


def _in_child(command: Command, root: Path, out: int, errors: int, seconds: int) -> None:
    status = _RAISED
    try:
        os.dup2(out, 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGALRM, lambda *_: os._exit(_HANGS))
        signal.alarm(seconds)
        try:
            status = command(root) or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def damages(data: bytes, flips: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file's damaged forms, each with its name."""
    for _ in range(flips if data else 0):
        place = chance.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        yield "flip", bytes(flipped)
    for share in (0.25, 0.5, 0.9):
        yield "truncation", data[: int(share * len(data))]
    yield "truncation", data[:-1]
    yield "empty", b""


def classify(outcome: Outcome, whole: Outcome, file: Path) -> str:
    """What a damage of ``file`` did, from a command's outcome with and without it."""
    if outcome.status in (_HANGS, _RAISED) or outcome.status < 0 or "Traceback" in outcome.errors:
        return "traceback"
    if (outcome.status, outcome.answer) == (whole.status, whole.answer):
        return "harmless"
    said = outcome.errors.replace(whole.errors, "")
    named = file.name in said or file.parent.name in said or file.stem in said
    return "named" if named else "silent"


@dataclass(frozen=True, slots=True)
class Finding:
    """A damage and the worst that it did to one command."""

    victim: str
    file: str
    damage: str
    command: str
    kind: str
    outcome: Outcome


def damage_all(root: Path, flips: int, victims: Sequence[Victim] = VICTIMS) -> Iterator[Finding]:
    """Damage every file of the victims, one at a time, in a folder that :func:`make` filled."""
    whole = root.with_name("whole")
    shutil.copytree(root, whole)

    def restore() -> None:
        shutil.rmtree(root)
        shutil.copytree(whole, root)

    expected = {}
    for name in dict.fromkeys(command for victim in victims for command in victim.commands):
        restore()
        expected[name] = _outcome(COMMANDS[name], root)
        _must(expected[name])
    for victim in victims:
        files = sorted(path.relative_to(whole) for path in whole.glob(victim.pattern) if path.is_file())
        if not files:
            raise RuntimeError(f"{victim.label}: no file matches {victim.pattern}")
        for file in files:
            chance = random.Random(str(file.name))
            for damage, data in damages((whole / file).read_bytes(), flips, chance):
                for name in victim.commands:
                    restore()
                    (root / file).write_bytes(data)
                    outcome = _outcome(COMMANDS[name], root)
                    kind = classify(outcome, expected[name], root / file)
                    yield Finding(victim.label, str(file), damage, name, kind, outcome)


def table(findings: Sequence[Finding]) -> str:
    """The findings counted, as Markdown."""
    counts = Counter((f.victim, f.damage, f.kind) for f in findings)
    lines = ["| file | damage | " + " | ".join(KINDS) + " |", "|---|---|" + "---|" * len(KINDS)]
    for victim, damage in dict.fromkeys((f.victim, f.damage) for f in findings):
        row = [str(counts[victim, damage, kind]) for kind in KINDS]
        lines.append(f"| {victim} | {damage} | " + " | ".join(row) + " |")
    total = Counter(f.kind for f in findings)
    lines.append("| all | | " + " | ".join(str(total[kind]) for kind in KINDS) + " |")
    return "\n".join(lines) + "\n"


def prepare() -> None:
    """Bring in what the commands need, once for all children; nothing is computed, so that forking is safe."""
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    with suppress(ImportError):
        import matplotlib

        matplotlib.use("agg")
    import predict  # noqa: F401
    import train  # noqa: F401
    from experiments.study import significance, tables  # noqa: F401
    from experiments.study.report import __main__  # noqa: F401
    from mt_dnn import export, run, trained  # noqa: F401


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the faults; returns 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--flips", type=int, default=5, help="flipped bits per file [%(default)s]")
    parser.add_argument("--only", default="", help="files whose name in the table contains this")
    parser.add_argument("--out", type=Path, help="file for the table [standard output]")
    chosen = parser.parse_args(arguments)
    prepare()
    victims = [victim for victim in VICTIMS if chosen.only in victim.label]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(root / "xdg")
        make(root)
        findings = list(damage_all(root, chosen.flips, victims))
    text = table(findings)
    if chosen.out is not None:
        chosen.out.write_text(text, encoding="utf-8")
    print(text)
    faults = [f for f in findings if f.kind in ("silent", "traceback")]
    for fault in faults:
        print(f"{fault.kind}: {fault.damage} in {fault.file}, {fault.command}: {fault.outcome.errors[-600:]}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
