"""From a table of one's own to a table of two methods, and to predictions: one command each, no recipe written."""

import csv
from pathlib import Path

import numpy as np
import pytest

import predict
from data_utils.import_dataset import main as import_dataset
from experiments.study.__main__ import main as study
from experiments.study.report.__main__ import main as report
from mt_dnn.run import run

WORDS = ("film", "plot", "actor", "scene")


@pytest.mark.usefixtures("forked_workers")
def test_a_csv_becomes_a_table_of_two_methods(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "mood"])
        for i in range(60):
            mood = ("bad", "good", "quite")[i % 3]
            writer.writerow([f"r{i}", f'the "{rng.choice(WORDS)}", it is {mood}', mood])
    data, runs = tmp_path / "data", tmp_path / "runs"
    arguments = ["--task", "moods", "--text", "review", "--label", "mood", "--uid", "id", "--out", str(data)]
    assert import_dataset([str(tmp_path / "reviews.csv"), *arguments]) == 0

    own = ["--task_def", str(data / "task_def.yml"), "--data_dir", str(data), "--encoder", str(tiny_encoder)]
    where = ["--output_dir", str(runs), "--results_dir", str(tmp_path), "--name", "x", "--devices", "cpu"]
    short = ["--seeds", "1", "--set", "epochs=1", "--set", "max_seq_len=32", "--set", "tensorboard=false"]
    assert study([*own, *where, *short, "--methods", "vanilla,pats", "--workers_per_device", "1"], run=run) == 0
    table = (tmp_path / "x/table.md").read_text()
    assert "| method | moods macro-F1 |" in " ".join(table.split())
    assert "| vanilla " in table
    assert "| PATS " in table
    assert "no recipe names moods: the recipes' common settings are taken" in capsys.readouterr().err

    assert report([str(runs), "--study", str(tmp_path / "x/study.json"), "--out", str(tmp_path / "page.html")]) == 0
    (folder,) = runs.glob("moods/*/pats/*/seed=1")
    assert predict.main([str(folder), str(data / "moods_dev.tsv"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-7].startswith("uid\tlabel\tp_bad\tp_good\tp_quite")
