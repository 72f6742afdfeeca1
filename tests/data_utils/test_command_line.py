"""The manner of the commands: mistakes in one line, no shortened options, help in the author's lines."""

import argparse

import pytest

from data_utils.command_line import CommandParser, plain, status_of
from data_utils.errors import SettingError

TEXT = "What it does.\n\n    python it.py --seeds 3\n"


@pytest.fixture
def parser() -> CommandParser:
    made = CommandParser("it.py", TEXT, "\nExit status: 0 done.")
    made.add_argument("--seeds", type=int, help="how many")
    made.add_argument("--task_def")
    made.add_argument("--train_datasets")
    return made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--seed", "3"], "unknown setting --seed 3 (did you mean --seeds?)"),
        (["--task=mrpc"], "unknown setting --task=mrpc (did you mean --task_def?)"),
        (["--train_dataset", "a b"], "unknown setting --train_dataset a b (did you mean --train_datasets?)"),
        (["--t", "1"], "unknown setting --t 1 (did you mean --task_def or --train_datasets?)"),
        (["--sedes", "1"], "unknown setting --sedes 1 (did you mean --seeds?)"),
        (["--lambda", "1"], "unknown setting --lambda 1"),
        (["rest"], "unknown setting rest"),
        (["--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    given: list[str], told: str, parser: CommandParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(given)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {told}; see it.py --help\n"


def test_help_keeps_the_lines_of_the_text(parser: CommandParser) -> None:
    lines = parser.format_help().splitlines()
    options = lines.index("options:")
    assert lines.index("What it does.") < options < lines.index("    python it.py --seeds 3")
    assert lines[-1] == "Exit status: 0 done."


def test_other_messages_stay_as_they_are() -> None:
    assert plain("the following arguments are required: runs", argparse.ArgumentParser()).endswith("required: runs")


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    assert status_of(lambda: 75) == 75
    assert status_of(lambda: None) == 0
    assert status_of(lambda: fail(SettingError("--seeds 0: at least 1"))) == 2
    assert status_of(lambda: fail(FileNotFoundError("no such file"))) == 2
    assert capsys.readouterr().err == "error: --seeds 0: at least 1\nerror: no such file\n"
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: fail(ZeroDivisionError()))
