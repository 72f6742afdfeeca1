"""The manner of the commands: mistakes in one line, no shortened options, help in the author's lines."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.command_line import CommandParser, plain, status_of
from data_utils.errors import SettingError

ROOT = Path(__file__).resolve().parents[2]
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
        (["rest"], "unexpected argument rest"),
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
    assert status_of(lambda: fail(SettingError("no\nsuch"))) == 2
    assert status_of(lambda: fail(MemoryError())) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --seeds 0: at least 1",
        "error: no such file",
        "error: no\\nsuch",
        "error: not enough memory; memory is short here, or limited (ulimit -v)",
    ]
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: fail(ZeroDivisionError()))


def python(code: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'"{sys.executable}" -c "$CODE" {redirect}'
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "CODE": code, **environment},
    )


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_an_ascii_output_takes_every_character(locale: dict[str, str]) -> None:
    code = (
        "import sys, logging; from data_utils.command_line import CommandParser, status_of\n"
        "CommandParser('it.py', 'What it d\\xb1es.').print_help()\n"
        "sys.exit(status_of(lambda: (print('79.45 \\xb1 1.56'), logging.warning('\\xb1'), sys.exit(0))))"
    )
    done = python(code, **locale)
    assert done.returncode == 0
    assert b"What it d\\xb1es." in done.stdout
    assert b"79.45 \\xb1 1.56" in done.stdout
    assert b"\\xb1" in done.stderr
    assert b"Error" not in done.stderr


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    code = "import sys; from data_utils.command_line import status_of; sys.exit(status_of(lambda: print('x')))"
    for unbuffered, named in (("", b"standard output"), ("1", b"standard output or a file")):
        done = python(code, "> /dev/full", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (2, b"error: cannot write %s: No space left on device\n" % named)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = (
        "import sys; from data_utils.command_line import status_of; sys.exit(status_of(lambda: print('x' * 1000000)))"
    )
    for unbuffered in ("", "1"):
        done = python(code, "| head -c 1; exit ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"x", b"")


def test_another_broken_pipe_is_an_error() -> None:
    code = (
        "import os, sys; from data_utils.command_line import status_of\n"
        "end, start = os.pipe()\n"
        "os.close(end)\n"
        "sys.exit(status_of(lambda: os.write(start, b'x')))"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (2, b"error: Broken pipe\n")
