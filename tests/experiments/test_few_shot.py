"""A table of sizes and seeds by one command."""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_utils.errors import SettingError
from experiments.study import ablation, arguments, few_shot, intermediate, study
from experiments.study.few_shot import main, parse_sizes
from mt_dnn.config import RunConfig
from mt_dnn.data import open_datasets
from mt_dnn.run import open_run
from mt_dnn.run_id import run_id
from tests.experiments.fake_runs import calls, fake_run


def test_one_command_makes_a_table_of_methods_and_sizes(
    tmp_path: Path, tiny_task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "open_all", lambda config: None)  # fake runs need no token caches
    arguments = [
        "--encoder", "all-MiniLM-L6-v2", "--methods", "vanilla,noisytune", "--sizes", "32,8", "--tasks", "toy",
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--seeds", "2", "--devices", "cpu",
        "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path), "--name", "x",
    ]  # fmt: skip
    assert main(arguments, run=fake_run) == 0
    text = (tmp_path / "x/table.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if "examples" in line and line.startswith("|")]
    labels = ["vanilla, 8 examples", "NoisyTune, 8 examples", "vanilla, 32 examples", "NoisyTune, 32 examples"]
    assert rows[:4] == labels
    assert "train_balanced True" in text
    assert len(calls(tmp_path / "runs")) == 8
    assert main(arguments, run=fake_run) == 0
    assert len(calls(tmp_path / "runs")) == 8, "nothing is computed twice"
    assert main(arguments[:-2], run=fake_run) == 0
    assert (tmp_path / "all-MiniLM-L6-v2-few-shot/table.md").is_file()
    capsys.readouterr()
    assert main([*arguments, "--sizes", "8,71"]) == 2
    assert "train_size is 71, but" in capsys.readouterr().err
    rows = [line.split("\t") for line in (tiny_task / "toy_train.tsv").read_text().splitlines()]
    fewest = min(Counter(label for _, label, _ in rows).values())
    assert main([*arguments, "--sizes", str(2 * fewest), "--dry_run"]) == 0
    if 2 * fewest < len(rows):
        assert main([*arguments, "--sizes", str(2 * fewest + 1), "--dry_run"]) == 2
        assert f"legal: train_size at most {2 * fewest}" in capsys.readouterr().err
    assert main([*arguments, "--tasks", "toyscore", "--sizes", "8", "--dry_run"]) == 2
    assert "task toyscore has scores and no classes; leave it out (few_shot: --as_they_come)" in capsys.readouterr().err
    assert main([*arguments, "--tasks", "toyscore", "--sizes", "8", "--as_they_come", "--dry_run"]) == 0


@pytest.mark.parametrize(
    ("parser", "folder"),
    [
        (arguments.build_parser(), "the encoders' names, of a search with -search behind them"),
        (ablation.build_parser(), "the file's name"),
        (few_shot.build_parser(), "<encoder>-few-shot"),
        (intermediate.build_parser(), "<encoder>-<first>-first"),
    ],
)
def test_the_help_names_the_folder_that_a_command_writes(parser: ArgumentParser, folder: str) -> None:
    text = " ".join(parser.format_help().split())
    assert f"folder in --results_dir; default: {folder} how:" in text


def test_sizes_are_numbers() -> None:
    assert parse_sizes("100, 16,16") == [16, 100]
    for text in ("", "x", "0", "16,-1", "1e3", "9999999999"):
        with pytest.raises(SettingError, match="--sizes"):
            parse_sizes(text)


def test_a_balanced_run_trains_on_equally_many_of_every_class(tiny_run) -> None:  # type: ignore[no-untyped-def]
    config = tiny_run(train_size=8, train_balanced=True, epochs=1)
    labels = np.asarray(open_datasets(config).train.labels)
    with open_run(config) as trainer:
        assert np.bincount(labels[trainer.rows]).tolist() == [4, 4]
    config = tiny_run(train_size=8, train_balanced=True, train_datasets="toyscore")
    with pytest.raises(SettingError, match="task toyscore has scores and no classes"), open_run(config):
        pass


def test_the_setting_wants_a_size_and_changes_no_other_run() -> None:
    with pytest.raises(SettingError, match="train_balanced is true, but train_size is not given"):
        RunConfig(train_balanced=True)
    assert run_id(RunConfig(train_size=8, train_balanced=True)) != run_id(RunConfig(train_size=8))
    assert run_id(RunConfig()) == "55ad2fd33e73"  # as it was before there was such a setting
