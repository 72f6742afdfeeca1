"""What stands side by side was made of the same data, task definition and encoder; everything else is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_utils.json_file import read_json
from experiments.study import figures, significance, tables
from experiments.study.drawing import plotting
from experiments.study.report import __main__ as report_main
from mt_dnn.run_directory import RunDirectory
from tests.edits import edit_json, flip, replace_in_json
from tests.experiments.fake_runs import write_run


@pytest.fixture(autouse=True)
def drawn_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn and not written, which takes a second each; test_figures.py reads their files."""
    monkeypatch.setattr(plotting, "save", lambda figure, stem: [stem.with_suffix(".png")])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods x two seeds of two tasks on two encoders, with predictions and the checksums of their files."""
    folder = tmp_path_factory.mktemp("contents") / "runs"
    for encoder in ("bert-base-uncased", "roberta-base"):
        for task in ("cola", "rte"):
            for method in ("vanilla", "pats"):
                for seed in (1, 2):
                    write_predicted(folder, task, method, seed, encoder)
    return folder


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> Path:
    """Those runs, for a test to change."""
    return Path(shutil.copytree(written, tmp_path / "runs"))


def write_predicted(runs: Path, task: str, method: str, seed: int, encoder: str) -> None:
    path = write_run(runs, task, method, seed, best=50.0, last=50.0, init_checkpoint=encoder)
    directory = RunDirectory(path)
    labels = np.arange(20) % 2
    rng = np.random.default_rng([seed, len(method)])
    best = np.eye(2, dtype=np.float32)[np.where(rng.random(20) < 0.3, 1 - labels, labels)]
    arrays = {"uids": np.arange(20).astype("S"), "labels": labels, "best_logits": best, "last_logits": best}
    directory.write_predictions({f"{task}_dev.{name}": array for name, array in arrays.items()})
    directory.append_metrics({"step": 4, "epoch": 3, "loss": seed + len(task + method) / 100})
    result = directory.read_result()
    assert result is not None
    score = score_of(result.primary_metric, labels, best.argmax(axis=1))
    replace_in_json(directory.result_json, ("50.0", repr(score)))
    edit_json(directory.result_json, files=directory.hashes())


def score_of(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn import metrics

    return 100.0 * float(
        metrics.matthews_corrcoef(labels, predicted) if metric == "MCC" else metrics.accuracy_score(labels, predicted)
    )


COMMANDS: dict[str, Callable[[Path, Path], int]] = {
    "tables": lambda runs, out: tables.main([str(runs)]),
    "significance": lambda runs, out: significance.main([str(runs), "--resamples", "100"]),
    "figures": lambda runs, out: figures.main([str(runs), "--out", str(out), "--curves"]),
    "report": lambda runs, out: report_main.main([str(runs), "--out", str(out / "page.html")]),
}
ALL = list(COMMANDS)


def folder_of(runs: Path, task: str = "cola", method: str = "pats", seed: int = 2, encoder: str = "bert-*") -> Path:
    (path,) = runs.glob(f"{task}/{encoder}/{method}/*/seed={seed}")
    return path


def refused(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses the runs."""
    capsys.readouterr()
    assert COMMANDS[name](runs, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def change_identity(folder: Path, part: str, key: str, value: object) -> None:
    identity = read_json(folder / "run.json")["identity"]
    edit_json(folder / "run.json", identity=identity | {part: identity[part] | {key: value}})


@pytest.mark.parametrize("name", ALL)
def test_runs_of_the_same_contents_are_shown(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert COMMANDS[name](runs, tmp_path / "out") == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("data", "cola_train.tsv", "other", "cola_train.tsv differs"),
        ("task_def", "labels", ["b", "a"], "the task definition (labels: None against ['b', 'a']) differs"),
        ("encoder", "config.json", "other", "the encoder's config.json differs"),
    ],
)
def test_a_mixture_is_refused_and_both_runs_are_named(
    name: str, part: str, key: str, value: object, said: str, runs: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changed = folder_of(runs)
    change_identity(changed, part, key, value)
    line = refused(name, runs, tmp_path, capsys)
    assert said in line.replace("['b', 'a'] against None", "None against ['b', 'a']")
    assert str(changed) in line
    assert line.count("/seed=") == 2
    assert "they cannot be compared: delete one of them" in line


def test_other_data_under_another_encoder_are_a_mixture_and_another_encoder_is_not(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in runs.glob("*/roberta-base/*/*/seed=*"):
        change_identity(path, "encoder", "config.json", "roberta's")
    assert tables.main([str(runs)]) == 0
    for path in runs.glob("cola/roberta-base/*/*/seed=*"):
        change_identity(path, "data", "cola_train.tsv", "other")
    line = refused("tables", runs, tmp_path, capsys)
    assert "cola/bert-base-uncased/" in line
    assert "cola/roberta-base/" in line


def test_runs_of_one_seed_that_began_with_other_weights_are_a_mixture(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in runs.glob("cola/bert-base-uncased/*/*/seed=*"):
        change_identity(path, "encoder", f"{path.name}/checkpoints/best/model.safetensors", path.name)
    assert tables.main([str(runs)]) == 0
    change_identity(folder_of(runs), "encoder", "seed=2/checkpoints/best/model.safetensors", "other")
    line = refused("tables", runs, tmp_path, capsys)
    assert "the encoder's seed=2/checkpoints/best/model.safetensors differs" in line
    assert str(folder_of(runs)) in line
    assert str(folder_of(runs, method="vanilla")) in line


def test_runs_of_earlier_versions_stand_together_and_with_no_others(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = list(runs.rglob("run.json"))
    for path in paths:
        edit_json(path, identity=None)
    assert tables.main([str(runs)]) == 0
    change = {"data": {}, "task_def": {}, "encoder": {}}
    edit_json(folder_of(runs) / "run.json", identity=change)
    line = refused("tables", runs, tmp_path, capsys)
    assert "does not say what data and encoder it is of (an earlier version wrote it)" in line
    assert str(folder_of(runs)) in line


def test_a_run_that_has_not_ended_spoils_no_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_identity(folder_of(runs), "data", "cola_train.tsv", "other")
    (folder_of(runs) / "result.json").unlink()
    assert tables.main([str(runs)]) == 0


@pytest.mark.parametrize("name", ALL)
def test_results_that_were_swapped_are_refused(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = folder_of(runs) / "result.json", folder_of(runs, method="vanilla") / "result.json"
    ours, theirs = one.read_bytes(), two.read_bytes()
    one.write_bytes(theirs)
    two.write_bytes(ours)
    assert "and not of its folder; put it back, or delete it to run again" in refused(name, runs, tmp_path, capsys)
    one.write_bytes(ours)
    two.write_bytes(theirs)
    edit_json(one, seed=1)
    assert "the result of cola/bert-base-uncased/pats/" in refused(name, runs, tmp_path, capsys)


@pytest.mark.parametrize("harm", ["swap", "empty", "flip", "truncate"])
def test_predictions_that_are_not_the_results_are_refused(
    harm: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder_of(runs) / "predictions.npz"
    if harm == "swap":  # of the same scores: only the checksum tells
        other = folder_of(runs, encoder="roberta-*") / "predictions.npz"
        with np.load(other) as arrays:
            changed = {name: arrays[name].copy() for name in arrays}
        changed["cola_dev.uids"] = changed["cola_dev.uids"][::-1]
        RunDirectory(file.parent).write_predictions(changed)
    elif harm == "flip":
        flip(file)
    else:
        file.write_bytes(b"" if harm == "empty" else file.read_bytes()[:300])
    line = refused("significance", runs, tmp_path, capsys)
    assert f"{file} is damaged or of another run" in line
    assert f"delete {file.parent} to run again" in line


@pytest.mark.parametrize("name", ["figures", "report"])
def test_metrics_that_are_not_the_results_are_refused(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder_of(runs) / "metrics.jsonl"
    shutil.copy(folder_of(runs, method="vanilla", task="rte") / "metrics.jsonl", file)
    assert f"{file} is damaged or of another run" in refused(name, runs, tmp_path, capsys)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000, b'{"status": "ok"}', b'{"status": ["ok"]}'],
)
def test_a_damaged_result_is_one_line_everywhere(
    name: str, content: bytes, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder_of(runs) / "result.json"
    file.write_bytes(content)
    line = refused(name, runs, tmp_path, capsys)
    assert f"{file} is damaged" in line
    assert line.endswith("; delete it to run again")


@pytest.mark.parametrize("name", ALL)
def test_a_fifo_in_a_run_is_not_waited_for(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("metrics.jsonl", "predictions.npz"):
        path = folder_of(runs) / file
        path.unlink()
        os.mkfifo(path)
    (tmp_path / "out").mkdir()
    assert COMMANDS[name](runs, tmp_path / "out") == 0, "as if they had not been kept"
    path = folder_of(runs) / "result.json"
    path.unlink()
    os.mkfifo(path)
    assert "result.json is no regular file" in refused(name, runs, tmp_path, capsys)


@pytest.mark.parametrize("name", ["tables", "significance", "figures"])
def test_cells_of_a_study_that_match_nothing_are_named(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        {"encoder": encoder, "method": method, "task": "cola", "run_id": folder_of(runs, method=method).parent.name,
         "seeds": [1, 2]}
        for method, encoder in (("vanilla", "bert-base-uncased"), ("pats", "bert-base-uncased"))
    ]  # fmt: skip
    study = tmp_path / "study.json"
    main = {"tables": tables.main, "significance": significance.main, "figures": figures.main}[name]
    more = {"tables": [], "significance": ["--resamples", "100"], "figures": ["--out", str(tmp_path)]}[name]
    study.write_text(json.dumps({"cells": cells}))
    assert main([str(runs), "--study", str(study), *more]) == 0
    assert "warning" not in capsys.readouterr().err
    cells += [{**cells[0], "encoder": "bert"}, {**cells[0], "task": "rte"}]
    study.write_text(json.dumps({"cells": cells}))
    assert main([str(runs), "--study", str(study), *more]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    run_id = cells[0]["run_id"]
    assert line == (
        "warning: 2 cells of the study have no folder among the runs (not started, or of another task, encoder, method "
        f"or run id): cola/bert/vanilla/{run_id}, rte/bert-base-uncased/vanilla/{run_id}"
    )
