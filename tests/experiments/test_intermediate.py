"""One task first, then others from it, by one command."""

import argparse
from pathlib import Path

import pytest

from data_utils.json_file import read_json
from experiments.study.intermediate import build_parser, main, plan
from experiments.study.recipe import find_recipes
from mt_dnn.run_id import run_dir


@pytest.fixture
def arguments(tiny_encoder: Path, tiny_task: Path, tmp_path: Path) -> list[str]:
    return [
        "--encoder", str(tiny_encoder), "--first", "toyscore", "--then", "toy", "--methods", "vanilla",
        "--task_def", str(tiny_task / "task_def.yml"), "--data_dir", str(tiny_task), "--seeds", "1,", "--devices",
        "cpu", "--workers_per_device", "1", "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path),
        "--name", "x", "--set", "epochs=1",
    ]  # fmt: skip


def parsed(arguments: list[str], *more: str) -> argparse.Namespace:
    return build_parser().parse_args([*arguments, *more])


@pytest.mark.usefixtures("forked_workers")
def test_one_command_trains_both_and_compares_them(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan(parsed(arguments))
    assert main(arguments) == 0
    rows = [line.split("|")[1].strip() for line in (tmp_path / "x/table.md").read_text().splitlines() if "|" in line]
    assert rows[2:4] == ["vanilla", "vanilla, toyscore first"]
    first, second = planned.first[0].folder, planned.rows["vanilla, toyscore first"][0]
    begun = read_json(second.folder / "run.json")["begun_from"]
    assert begun["sha256"] == read_json(first / "result.json")["files"]["checkpoints/best/model.safetensors"]
    assert "begun_from" not in read_json(planned.rows["vanilla"][0].folder / "run.json")
    assert run_dir(second.config) == second.folder  # the name is what it was before the first run was there
    capsys.readouterr()
    assert main(arguments) == 0
    assert "all 2 runs are already done" in capsys.readouterr().err, "nothing is computed twice"
    assert main([*arguments, "--dry_run"]) == 0
    assert "3 runs: 3 done, 0 missing" in capsys.readouterr().out


def test_each_seed_has_its_own_first_run_or_all_have_one(arguments: list[str]) -> None:
    own = plan(parsed(arguments, "--seeds", "2", "--methods", "vanilla,pats"))
    assert [job.config.seed for job in own.first] == [1, 2]
    assert list(own.rows) == ["vanilla", "vanilla, toyscore first", "PATS", "PATS, toyscore first"]
    assert own.controls == {"vanilla, toyscore first": "vanilla", "PATS, toyscore first": "PATS"}
    begun = {job.config.init_checkpoint for job in own.rows["PATS, toyscore first"]}
    assert begun == {str(own.first[0].folder.parent)}
    one = plan(parsed(arguments, "--seeds", "2", "--first_seed", "7", "--set", "save=both", "--first_epoch", "last"))
    assert [job.config.seed for job in one.first] == [7]
    assert {job.config.init_checkpoint for job in one.rows["vanilla, toyscore first"]} == {
        f"{one.first[0].folder}:last"
    }


def test_settings_of_the_first_task_alone(arguments: list[str]) -> None:
    planned = plan(parsed(arguments, "--set", "toyscore.epochs=3"))
    assert [job.config.epochs for job in (*planned.first, *planned.rows["vanilla"])] == [3, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--set", "save=none"],
            "save is none, but the weights of the best epoch of toyscore are begun with; give --set",
        ),
        (["--first_epoch", "last"], "save is best, but the weights of the last epoch of toyscore are begun with"),
        (["--first", "toyscore,toy"], "--first toyscore,toy names 2; give one"),
        (["--first_method", "vanilla,pats"], "--first_method vanilla,pats names 2; give one"),
        (["--first_seed", "x"], "--first_seed 'x,'"),
        (["--first", "nope"], "nope"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_a_run_has_the_recipes_of_its_encoder(tiny_trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tiny_trained["cola"])
    (recipe,) = find_recipes(run, ["pats"])
    assert recipe.encoder == run
    assert recipe.borrowed[0].startswith(f"{run} is a run: the recipes of its encoder, ")
    assert not recipe.chosen_from_grid
